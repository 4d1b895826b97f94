"""Simulated reversion screens with a known truth: which knock-downs bring stressed cells back to rest.

Cells are drawn as in `evae.data.simulation.perturb_seq`, with a stress programme S that moves 15 % of the genes. For a
cell of arm a (0 untreated, 1 treated) with the knock-down of target p,

    eta_g = base_g + sum_k (z_k + B_pk) W_kg + a (1 - r_p) S_g + D_pg

    S_g   = +- stress_size * U(0.5, 1) on the stress genes, two thirds of them upwards
    r_p   = reversion of the stress by the knock-down: `reversion` for the true reverters, 0 else
    B_pk  = +- effect_size on two programmes for a third of the targets, reverters excepted, in both arms
    D_pg  = log(0.15) on the target gene itself
"""

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from evae.data.simulation.perturb_seq import KNOCK_DOWN, negative_binomial, programmes
from evae.models.contract_evae import EvaeError

CONDITIONS = ("Untreated", "Treated")
CONTROLS = ("SAFE_TARGET", "NO-TARGET")
BLOCK = 2_048


class ReversionScreen:
    """The genes and targets of a simulated screen, from which cells are drawn in blocks of any size.

    Args:
        n_genes: genes, named GENE0001 and so on.
        n_targets: knock-downs beside the two control labels, named after their gene.
        n_reverters: how many of them revert the stress.
        seed: of everything but the cells.
        reversion: share of the stress that a reverter takes away; 0 makes a screen without reverters.
        stress_size: shift of a stress gene at loading 1, natural log units.
        effect_size: shift of the programmes that a third of the targets move, natural log units.
        control_fraction: share of the cells that carry a control label.
        counts_per_gene: median library size over the number of genes.

    Attributes:
        targets: names, controls first.
        reverters: names of the true reverters.
    """

    def __init__(
        self,
        n_genes: int = 400,
        n_targets: int = 200,
        n_reverters: int = 6,
        seed: int = 0,
        *,
        reversion: float = 0.8,
        stress_size: float = 0.8,
        effect_size: float = 0.7,
        control_fraction: float = 0.1,
        counts_per_gene: float = 0.8,
    ):
        if not 0 <= n_reverters <= n_targets <= n_genes:
            raise EvaeError(
                "a simulated reversion screen needs 0 <= n_reverters <= n_targets <= n_genes; "
                f"got {n_reverters}, {n_targets}, {n_genes}."
            )
        rng = np.random.default_rng(seed)
        self.genes = [f"GENE{g + 1:0{max(4, len(str(n_genes)))}d}" for g in range(n_genes)]
        self.base = rng.normal(0.0, 1.5, n_genes)
        self.loadings = programmes(rng, 16, n_genes)
        stressed = rng.choice(n_genes, max(3, round(0.15 * n_genes)), replace=False)
        self.stress = np.zeros(n_genes)
        sign = rng.choice([1.0, 1.0, -1.0], len(stressed))
        self.stress[stressed] = stress_size * sign * rng.uniform(0.5, 1.0, len(stressed))
        hit = np.sort(rng.choice(n_genes, n_targets, replace=False))
        self.targets = [*CONTROLS, *(self.genes[g] for g in hit)]
        self.effects = np.zeros((len(self.targets), n_genes))  # of the knock-down, in both arms
        self.effects[np.arange(2, len(self.targets)), hit] = KNOCK_DOWN
        self.reversion = np.zeros(len(self.targets))
        shuffled = 2 + rng.permutation(n_targets)
        chosen, others = np.sort(shuffled[:n_reverters]), shuffled[n_reverters:]
        self.reversion[chosen] = reversion
        self.reverters = [self.targets[t] for t in chosen]
        for target in others[: n_targets // 3]:
            moved = rng.choice(len(self.loadings), 2, replace=False)
            self.effects[target] += effect_size * rng.choice([-1.0, 1.0], 2) @ self.loadings[moved]
        self.theta = np.exp(rng.normal(np.log(3.0), 0.5, n_genes))
        self.median_library_size = counts_per_gene * n_genes
        self.control_fraction = control_fraction

    def cells(self, n_cells: int, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
        """Draw cells: counts (cells, genes) CSR int32, arm (cells,) and target (cells,) as indices."""
        rng = np.random.default_rng(seed)
        arm = rng.integers(2, size=n_cells)
        target = rng.integers(2, len(self.targets), size=n_cells)
        control = rng.random(n_cells) < self.control_fraction
        target[control] = rng.integers(2, size=int(control.sum()))
        library = np.exp(rng.normal(np.log(self.median_library_size), 0.4, n_cells))
        blocks = []
        for low in range(0, n_cells, BLOCK):  # dense only a block at a time
            rows = slice(low, low + BLOCK)
            own = rng.normal(0.0, 0.15, (len(arm[rows]), len(self.loadings))) @ self.loadings
            stressed = (arm[rows] * (1 - self.reversion[target[rows]]))[:, None] * self.stress
            eta = self.base + own + self.effects[target[rows]] + stressed
            blocks.append(negative_binomial(rng, eta, library[rows], self.theta))
        return sp.vstack(blocks, format="csr"), arm, target

    def obs(self, arm: np.ndarray, target: np.ndarray) -> pd.DataFrame:
        """The labels of cells: `condition` and `gene_target`."""
        columns = {
            "condition": pd.Categorical.from_codes(arm, pd.Index(CONDITIONS)),
            "gene_target": pd.Categorical.from_codes(target, pd.Index(self.targets)),
        }
        return pd.DataFrame(columns, index=[f"cell{i}" for i in range(len(arm))])


def simulate_reversion_screen(n_cells: int = 30_000, seed: int = 0, **screen: float) -> ad.AnnData:
    """Simulate a screen of knock-downs with and without stress.

    Args:
        n_cells: cells in all.
        seed: of the screen and its cells.
        **screen: see `ReversionScreen`.

    Returns:
        AnnData, X (cells, genes) CSR int32 raw counts; obs `condition` (Untreated, Treated) and `gene_target`;
        uns["simulation"]["reverters"], names of the true reverters.
    """
    truth = ReversionScreen(seed=seed, **screen)  # type: ignore[arg-type]
    counts, arm, target = truth.cells(n_cells, seed)
    return ad.AnnData(
        counts,
        obs=truth.obs(arm, target),
        var=pd.DataFrame(index=truth.genes),
        uns={"simulation": {"reverters": np.array(truth.reverters, dtype=object), "seed": seed}},
    )


def write_reversion_screen(path: str | Path, truth: ReversionScreen, n_cells: int, block: int = 20_000) -> Path:
    """Write an h5ad file of any number of cells, a block of them in memory at a time."""
    path = Path(path)
    n_genes = len(truth.genes)
    indptr, arms, targets = [np.zeros(1, dtype=np.int64)], [], []
    with h5py.File(path, "w") as file:
        write_elem(file, "/", ad.AnnData(var=pd.DataFrame(index=truth.genes)))
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, n_genes)})
        stored = {
            name: matrix.create_dataset(name, (0,), maxshape=(None,), chunks=(1 << 18,), dtype=np.int32)
            for name in ("data", "indices")
        }
        for low in range(0, n_cells, block):
            counts, arm, target = truth.cells(min(block, n_cells - low), seed=low)
            for name, dataset in stored.items():
                dataset.resize((len(dataset) + counts.nnz,))
                dataset[-counts.nnz :] = getattr(counts, name)
            indptr.append(indptr[-1][-1] + counts.indptr[1:].astype(np.int64))
            arms.append(arm)
            targets.append(target)
        matrix.create_dataset("indptr", data=np.concatenate(indptr))
        write_elem(file, "obs", truth.obs(np.concatenate(arms), np.concatenate(targets)))
    return path
