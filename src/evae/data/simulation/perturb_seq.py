"""Simulated Perturb-seq counts with a known truth: the embedded default data and the ground truth of tests.

Genes are grouped in programmes with sparse loadings W (programmes, genes). For a cell of type t under
perturbation p, with library size l,

    eta_g  = base_g + sum_k (A_tk + z_k + m_tp * B_pk) W_kg + m_tp * D_pg
    rho_g  = exp(eta_g) / sum_h exp(eta_h)
    x_g    ~ NB(mean = l * rho_g, dispersion = theta_g)

    base_g ~ N(0, expression_spread^2)         how strongly a gene is expressed at all
    A_tk   ~ N(0, cell_type_spread^2)          programme activities of the cell type
    z_k    ~ N(0, cell_spread^2)               programme activities of the single cell
    B_pk   = +- effect_size on two programmes  the perturbation's effect, zero elsewhere
    D_pg   = log(0.15) on the target gene      the knock-down itself, zero elsewhere
    m_tp   ~ U(1 - modulation, 1 + modulation) how strongly this cell type answers; mean 1
    log l  ~ N(log(median), library_spread^2)
    theta_g: variance = mean + mean^2 / theta_g, theta_g log-normal around 3

The stored truth is the log fold change of exp(eta), before rho is made to sum to one: B_p W + D_p, in natural
logarithms, at m = 1.

With `context_dependence` c > 0 every cell has a state s that its marker genes show, and the programmes answer by it:

    eta_g += s V_g + m_tp * (h(s) - 1) * sum_k B_pk W_kg        so that B_p W is answered h(s) times
    h(s)   = 1 - c + c * tanh(2 s)                              at c = 1 from -1 to 1
    V_g    ~ U(0.5, 1) on 8 % of the genes, the markers         zero elsewhere
    s      ~ N(S_t, 0.3^2), S_t between 0.6 and 1.2 with one sign in one half of the cell types, the other in the rest

At c = 1 one half of the cell types answers in the opposite way, so that the mean response of others is worth nothing
in a new cell type, while its control cells show which half it belongs to.
"""

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError

CONTROL = "control"
KNOCK_DOWN = float(np.log(0.15))


def simulate_perturb_seq(
    n_cells: int = 8_000,
    n_genes: int = 400,
    n_cell_types: int = 3,
    n_perturbations: int = 12,
    seed: int = 0,
    *,
    n_without_effect: int = 2,
    control_fraction: float = 0.2,
    n_programmes: int = 16,
    effect_size: float = 1.0,
    modulation: float = 0.2,
    median_library_size: float | None = None,
    expression_spread: float = 1.8,
    cell_type_spread: float = 0.7,
    cell_spread: float = 0.15,
    library_spread: float = 0.4,
    context_dependence: float = 0.0,
) -> ad.AnnData:
    """Simulate a screen of several cell types under the same perturbations (formula: see the module).

    Args:
        n_cells: cells in all.
        n_genes: genes, named GENE0001 and so on.
        n_cell_types: cell types, named type_A and so on, equally frequent.
        n_perturbations: perturbations beside the control, named after their target (KO-GENE0012).
        seed: of everything random; the same seed gives the same cells.
        n_without_effect: how many of the perturbations do nothing at all, not even to their target.
        control_fraction: share of cells that are controls.
        n_programmes: gene programmes; each moves about 8 % of the genes.
        effect_size: programme shift of a perturbation, in natural log units at loading 1.
        modulation: how far the response of a cell type may be above or below the shared one, as a share.
        median_library_size: median total counts of a cell; default 0.45 per gene, which gives 80-90 % zeros.
        expression_spread: standard deviation of log expression between genes.
        cell_type_spread: standard deviation of the cell types' programme activities.
        cell_spread: standard deviation of programme activities between cells of one type.
        library_spread: standard deviation of log library size.
        context_dependence: how far the response follows the cell's state, from 0, not at all, to 1, up to the
            opposite response.

    Returns:
        AnnData, X (cells, genes) CSR int32 raw counts; obs `perturbation` and `cell_type`;
        uns["simulation"]: `perturbations` (perturbations,), `cell_types` (types,), `log_fold_change`
        (perturbations, genes), `response` (types, perturbations) = m, `has_effect` (perturbations,).
        The control is the first entry of `perturbations`. With `context_dependence` also `state` (types,) = S,
        `state_loadings` (genes,) = V, `state_response` (types,) = h(S), by which the programmes answer beside m,
        and `knock_down` (perturbations, genes) = D.

    Raises:
        EvaeError: the sizes do not fit together.
    """
    if not 0 <= context_dependence <= 1 or (context_dependence and n_cell_types < 2):
        raise EvaeError("context_dependence must be from 0 to 1, and above 0 it needs at least two cell types.")
    _check_sizes(n_cells, n_genes, n_cell_types, n_perturbations, n_without_effect, n_programmes, control_fraction)
    rng = np.random.default_rng(seed)
    genes = [f"GENE{g + 1:0{max(4, len(str(n_genes)))}d}" for g in range(n_genes)]
    base = rng.normal(0.0, expression_spread, n_genes)
    loadings = programmes(rng, n_programmes, n_genes)  # (programmes, genes)
    activities = rng.normal(0.0, cell_type_spread, (n_cell_types, n_programmes))
    names, effects, knock_downs = _perturbations(
        rng, base, loadings, genes, n_perturbations, n_without_effect, effect_size
    )
    response = rng.uniform(1 - modulation, 1 + modulation, (n_cell_types, len(names)))

    cell_type, perturbation = _draw_labels(rng, n_cells, n_cell_types, n_perturbations, control_fraction)
    median = 0.45 * n_genes if median_library_size is None else median_library_size
    library_size = np.exp(rng.normal(np.log(median), library_spread, n_cells))
    theta = np.exp(rng.normal(np.log(3.0), 0.5, n_genes))

    log_fold_change = effects @ loadings + knock_downs  # (perturbations, genes)
    context = _Context.draw(seed, n_genes, n_cell_types, context_dependence) if context_dependence else None
    effect = response[cell_type, perturbation][:, None]  # (cells, 1)
    blocks = []
    for start in range(0, n_cells, 4096):  # dense only a block at a time
        rows = slice(start, start + 4096)
        own = activities[cell_type[rows]]
        own = own + rng.normal(0.0, cell_spread, own.shape)
        eta = base + own @ loadings + effect[rows] * log_fold_change[perturbation[rows]]
        if context:
            eta = eta + context.change(cell_type[rows], effect[rows] * (effects @ loadings)[perturbation[rows]])
        blocks.append(negative_binomial(rng, eta, library_size[rows], theta))

    types = [f"type_{letters(t)}" for t in range(n_cell_types)]
    truth: dict[str, Any] = {
        "perturbations": np.array(names, dtype=object),
        "cell_types": np.array(types, dtype=object),
        "log_fold_change": log_fold_change.astype(np.float32),
        "response": response.astype(np.float32),
        "has_effect": (np.abs(log_fold_change) > 0).any(1),
        "seed": seed,
    }
    if context:
        truth |= {**context.truth(), "knock_down": knock_downs.astype(np.float32)}
    return ad.AnnData(
        X=sp.vstack(blocks, format="csr"),
        obs=_labels(perturbation, names, cell_type, types),
        var=pd.DataFrame(index=genes),
        uns={"simulation": truth},
    )


@dataclass(frozen=True)
class _Context:
    """How cells answer by their own state (formula: see the module)."""

    dependence: float
    loadings: np.ndarray  # (genes,)
    states: np.ndarray  # (types,)
    rng: np.random.Generator  # apart from that of all else, which so draws the same with and without

    @classmethod
    def draw(cls, seed: int, n_genes: int, n_cell_types: int, dependence: float) -> "_Context":
        rng = np.random.default_rng([seed, 1])
        loadings = np.abs(programmes(rng, 1, n_genes)[0])
        sign = np.where(rng.permutation(n_cell_types) % 2, 1.0, -1.0)
        return cls(dependence, loadings, sign * rng.uniform(0.6, 1.2, n_cell_types), rng)

    def response(self, state: np.ndarray) -> np.ndarray:
        return 1 - self.dependence + self.dependence * np.tanh(2 * state)

    def change(self, cell_type: np.ndarray, effect: np.ndarray) -> np.ndarray:
        """What is added to eta, (cells, genes).

        Args:
            cell_type: (cells,).
            effect: of the programmes at a response of 1, (cells, genes).
        """
        state = self.rng.normal(self.states[cell_type], 0.3)[:, None]
        return state * self.loadings + (self.response(state) - 1) * effect

    def truth(self) -> dict[str, np.ndarray]:
        names = {"state": self.states, "state_loadings": self.loadings, "state_response": self.response(self.states)}
        return {name: values.astype(np.float32) for name, values in names.items()}


def _check_sizes(
    n_cells: int,
    n_genes: int,
    n_cell_types: int,
    n_perturbations: int,
    n_without_effect: int,
    n_programmes: int,
    control_fraction: float,
) -> None:
    if not 0 <= n_without_effect <= n_perturbations <= n_genes:
        raise EvaeError(
            "simulate_perturb_seq needs 0 <= n_without_effect <= n_perturbations <= n_genes; "
            f"got {n_without_effect}, {n_perturbations}, {n_genes}."
        )
    if min(n_cells, n_cell_types, n_programmes) < 1 or not 0 < control_fraction < 1:
        raise EvaeError("simulate_perturb_seq needs at least one cell, cell type and programme, and controls.")


def _draw_labels(
    rng: np.random.Generator, n_cells: int, n_cell_types: int, n_perturbations: int, control_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cell type and perturbation of every cell, (cells,) each; perturbation 0 is the control."""
    cell_type = rng.integers(n_cell_types, size=n_cells)
    perturbation = np.zeros(n_cells, dtype=np.int64)
    if n_perturbations:
        treated = rng.random(n_cells) >= control_fraction
        perturbation[treated] = rng.integers(1, n_perturbations + 1, size=int(treated.sum()))
    return cell_type, perturbation


def negative_binomial(
    rng: np.random.Generator, eta: np.ndarray, library_size: np.ndarray, theta: np.ndarray
) -> sp.csr_matrix:
    """Counts (cells, genes) of mean library_size * softmax(eta), as a gamma-Poisson mixture."""
    rate = np.exp(eta - eta.max(1, keepdims=True))
    mean = library_size[:, None] * rate / rate.sum(1, keepdims=True)
    return sp.csr_matrix(rng.poisson(rng.gamma(theta, mean / theta)).astype(np.int32))


def _labels(perturbation: np.ndarray, names: list[str], cell_type: np.ndarray, types: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "perturbation": pd.Categorical([names[p] for p in perturbation], categories=pd.Index(names)),
            "cell_type": pd.Categorical([types[t] for t in cell_type], categories=pd.Index(types)),
        },
        index=[f"cell{i}" for i in range(len(perturbation))],
    )


def programmes(rng: np.random.Generator, n_programmes: int, n_genes: int) -> np.ndarray:
    """Sparse signed loadings (programmes, genes): about 8 % of the genes each, at least three."""
    members = max(3, round(0.08 * n_genes))
    loadings = np.zeros((n_programmes, n_genes))
    for row in loadings:
        chosen = rng.choice(n_genes, size=min(members, n_genes), replace=False)
        row[chosen] = rng.uniform(0.5, 1.0, len(chosen)) * rng.choice([-1.0, 1.0], len(chosen))
    return loadings


def _perturbations(
    rng: np.random.Generator,
    base: np.ndarray,
    loadings: np.ndarray,
    genes: list[str],
    n_perturbations: int,
    n_without_effect: int,
    effect_size: float,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, programme effects (names, programmes) and knock-downs (names, genes), control first."""
    # Targets come from the better expressed half, where a knock-down can be seen.
    well_expressed = np.argsort(-base)[: max(n_perturbations, len(genes) // 2)]
    targets = np.sort(rng.choice(well_expressed, size=n_perturbations, replace=False))
    silent = set(rng.choice(n_perturbations, size=n_without_effect, replace=False).tolist())
    n_programmes = len(loadings)
    effects = np.zeros((n_perturbations + 1, n_programmes))
    knock_downs = np.zeros((n_perturbations + 1, len(genes)))
    for p, target in enumerate(targets, start=1):
        if p - 1 in silent:
            continue
        hit = rng.choice(n_programmes, size=min(2, n_programmes), replace=False)
        effects[p, hit] = effect_size * rng.choice([-1.0, 1.0], len(hit))
        knock_downs[p, target] = KNOCK_DOWN
    return [CONTROL] + [f"KO-{genes[t]}" for t in targets], effects, knock_downs


def letters(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(65 + rest) + name
    return name
