"""A small screen with known effects, for the tests of evaluation."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

N_GENES = 60
PERTURBATIONS = ("G0", "G1", "G2", "none")  # three knock-downs of genes of the panel, one without any effect


def make_screen(
    cell_types=("A", "B"), n_cells=40, n_controls=80, seed=0, prefix="cell", perturbations=PERTURBATIONS
) -> ad.AnnData:
    """Raw counts; each perturbation but "none" shifts six genes, the same in every cell type."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    base = fixed.gamma(0.6, 4.0, N_GENES) + 0.3
    type_shift = {c: np.exp(fixed.normal(0, 0.4, N_GENES)) for c in ("A", "B", "C")}
    effects = {p: np.ones(N_GENES) for p in ("control", *PERTURBATIONS)}
    effects |= {p: np.ones(N_GENES) for p in perturbations if p not in effects}
    for i, p in enumerate(PERTURBATIONS[:3]):
        effects[p][6 * i : 6 * i + 6] = np.exp(fixed.choice([-1.5, 1.5], 6))
    blocks, rows = [], []
    for c in cell_types:
        for p in ("control", *perturbations):
            n = n_controls if p == "control" else n_cells
            size = rng.gamma(8, 1 / 8, n)[:, None]
            blocks.append(rng.poisson(base * type_shift[c] * effects[p] * size))
            rows += [(p, c)] * n
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type"])
    obs.index = [f"{prefix}{seed}-{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(np.concatenate(blocks).astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="session")
def screen():
    """The training cells: both cell types, but only the controls and "none" of B."""
    cells = make_screen()
    held_out = (cells.obs.cell_type == "B") & cells.obs.perturbation.isin(["G0", "G1", "G2"])
    return cells[~held_out].copy()


@pytest.fixture(scope="session")
def real():
    """The held-out cells: B with G0, G1, G2."""
    cells = make_screen()
    held_out = (cells.obs.cell_type == "B") & cells.obs.perturbation.isin(["G0", "G1", "G2"])
    return cells[held_out].copy()


@pytest.fixture(scope="session")
def perfect():
    """A perfect generator: other cells of the true distribution."""
    cells = make_screen(cell_types=("B",), seed=1, prefix="generated")
    return cells[cells.obs.perturbation.isin(["G0", "G1", "G2"])].copy()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVAE_CACHE", str(tmp_path / "cache"))
