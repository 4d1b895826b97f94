"""Simulated drug screens with known dose curves: how strongly cells answer follows a Hill curve, and grows with time.

Cells are drawn as in `evae.data.simulation.perturb_seq`. For a cell of type t under drug p at dose d for h hours,

    eta_g   = base_g + sum_k (A_tk + z_k + s_p(d, h) B_pk) W_kg
    s_p     = d^n_p / (d^n_p + EC50_p^n_p) * (1 - exp(-h / tau_p))        the strength, 0 to 1

    log10 EC50_p ~ U over the middle half of the doses' range, n_p ~ U(0.8, 1.8), tau_p ~ U(6, 24)
    B_pk         = +- effect_size on two programmes

so that drugs have curves of their own, and the mean at a dose lies between those of its neighbours.
"""

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.data.simulation.perturb_seq import CONTROL, letters, negative_binomial, programmes
from evae.models.contract_evae import EvaeError

BLOCK = 4_096


def simulate_dose_screen(
    n_cells: int = 8_000,
    n_genes: int = 400,
    n_cell_types: int = 2,
    n_drugs: int = 6,
    seed: int = 0,
    *,
    doses: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
    times: Sequence[float] = (24.0,),
    effect_size: float = 1.5,
    control_fraction: float = 0.15,
    n_programmes: int = 16,
    median_library_size: float | None = None,
) -> ad.AnnData:
    """Simulate a screen of drugs at several doses and times (formula: see the module).

    Args:
        n_cells: cells in all.
        n_genes: genes, named GENE0001 and so on.
        n_cell_types: cell types, named type_A and so on.
        n_drugs: drugs, named DrugA and so on.
        seed: of everything random.
        doses: uM, given to every drug.
        times: hours, likewise; controls are taken at the same times.
        effect_size: programme shift at full strength, natural log units at loading 1.
        control_fraction: share of cells that are controls.
        n_programmes: gene programmes.
        median_library_size: median total counts of a cell; default 0.45 per gene.

    Returns:
        AnnData, X (cells, genes) CSR int32 raw counts; obs `perturbation`, `cell_type`, `dose_value`, `dose_unit`
        and `time`, of controls with dose 0; uns["simulation"]: `drugs`, `ec50`, `hill`, `tau` (drugs,) and
        `log_fold_change` (drugs, genes) at full strength.

    Raises:
        EvaeError: no cells, drugs, doses or times, or such as are not above 0.
    """
    levels, hours = np.sort(np.asarray(doses, dtype=float)), np.sort(np.asarray(times, dtype=float))
    sizes = (n_cells, n_genes, n_cell_types, n_drugs, n_programmes, len(levels), len(hours))
    if min(sizes) < 1 or levels[0] <= 0 or hours[0] <= 0 or not 0 < control_fraction < 1:
        raise EvaeError("a simulated dose screen needs cells, genes, drugs, and doses and times above 0.")
    rng = np.random.default_rng(seed)
    base, loadings = rng.normal(0.0, 1.8, n_genes), programmes(rng, n_programmes, n_genes)
    activities = rng.normal(0.0, 0.7, (n_cell_types, n_programmes))
    low, high = np.log10(levels[0]), np.log10(levels[-1])
    curves = {
        "ec50": 10 ** rng.uniform(low + 0.25 * (high - low), high - 0.25 * (high - low), n_drugs),
        "hill": rng.uniform(0.8, 1.8, n_drugs),
        "tau": rng.uniform(6.0, 24.0, n_drugs),
    }
    effects = np.zeros((n_drugs, n_programmes))
    for own in effects:
        own[rng.choice(n_programmes, min(2, n_programmes), replace=False)] = effect_size * rng.choice([-1.0, 1.0])
    change = effects @ loadings  # (drugs, genes)

    cell_type, drug = rng.integers(n_cell_types, size=n_cells), rng.integers(n_drugs, size=n_cells)
    treated = rng.random(n_cells) >= control_fraction
    dose = np.where(treated, rng.choice(levels, n_cells), 0.0)
    time = rng.choice(hours, n_cells)
    power = strength(dose, time, *(own[drug] for own in curves.values()))
    library = np.exp(rng.normal(np.log(median_library_size or 0.45 * n_genes), 0.4, n_cells))
    theta, blocks = np.exp(rng.normal(np.log(3.0), 0.5, n_genes)), []
    for start in range(0, n_cells, BLOCK):  # dense only a block at a time
        rows = slice(start, start + BLOCK)
        own = activities[cell_type[rows]]
        own = own + rng.normal(0.0, 0.15, own.shape)
        blocks.append(
            negative_binomial(rng, base + own @ loadings + power[rows, None] * change[drug[rows]], library[rows], theta)
        )
    names = [f"Drug{letters(d)}" for d in range(n_drugs)]
    kinds = [f"type_{letters(t)}" for t in range(n_cell_types)]
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical.from_codes(np.where(treated, drug + 1, 0), pd.Index([CONTROL, *names])),
            "cell_type": pd.Categorical.from_codes(cell_type, pd.Index(kinds)),
            "dose_value": dose,
            "dose_unit": "uM",
            "time": time,
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    truth = {"drugs": np.array(names, dtype=object), **curves, "log_fold_change": change, "seed": seed}
    genes = pd.DataFrame(index=[f"GENE{g + 1:0{max(4, len(str(n_genes)))}d}" for g in range(n_genes)])
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=genes, uns={"simulation": truth})


def strength(dose: np.ndarray, time: np.ndarray, ec50: np.ndarray, hill: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """How strongly cells answer, 0 to 1: a Hill curve of the dose, and growing with time (hours)."""
    power: np.ndarray = dose**hill / (dose**hill + ec50**hill) * (1 - np.exp(-time / tau))
    return power
