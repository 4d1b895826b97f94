"""Pairs of perturbed and control cells: which control a perturbed cell may have been before its perturbation.

Nobody measures a cell twice. Within a cell type, optimal transport couples the perturbed cells with the controls such
that the squared distances between their latents, after the controls are moved by the mean difference, are smallest in
sum (Bunne et al., "Learning single-cell perturbation responses using neural optimal transport", 2023, couple so too).
The cost grows with the square of the block, so cells are taken in blocks: the time is linear in the number of cells.
"""

from collections.abc import Iterator

import numpy as np

from evae.models.contract_evae import EvaeError

BLOCK = 512  # perturbed cells that are coupled at once, with up to twice as many controls
DRAWS = 4  # controls drawn for every cell from the plan; training alternates between them
HOW = ("optimal-transport", "random")


def couple(
    latents: np.ndarray,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    controls: np.ndarray,
    control_latents: np.ndarray,
    control_cell_type: np.ndarray,
    *,
    control: int,
    names: list[str],
    how: str = "optimal-transport",
    n_draws: int = DRAWS,
    as_set: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Draw controls for every cell.

    Args:
        latents: of all cells, (cells, values).
        perturbation, cell_type: ids, (cells,).
        controls: for every cell that is itself a control its row in `control_latents`, -1 for others, (cells,).
        control_latents, control_cell_type: of the controls, (controls, values) and (controls,).
        control: id of the control.
        names: of the cell types, for messages.
        how: "optimal-transport", or "random" controls of the cell type.
        n_draws: controls drawn for every cell.
        as_set: the draws are read together, so a control stands among others of its cell type.
        seed: of the draws.

    Returns:
        rows of `control_latents`, int32 (cells, n_draws). A control is its own source.

    Raises:
        EvaeError: a cell type has perturbed cells and no controls.
    """
    if how not in HOW:
        raise EvaeError(f"coupling is '{how}'; give one of {', '.join(HOW)}.")
    sources = np.repeat(controls.astype(np.int32)[:, None], n_draws, axis=1)
    for kind in np.unique(control_cell_type) if as_set else ():
        own, pool = np.flatnonzero((controls >= 0) & (cell_type == kind)), np.flatnonzero(control_cell_type == kind)
        sources[own, 1:] = np.random.default_rng((seed, kind)).choice(pool, (len(own), n_draws - 1))
    for kind, name, rows in _groups(perturbation, cell_type, control):
        pool = np.flatnonzero(control_cell_type == kind)
        if not len(pool):
            raise EvaeError(
                f"the cell type '{names[kind]}' has perturbed cells but no training controls to start from; drop its "
                "cells, or set model.source_cells=0."
            )
        rng = np.random.default_rng((seed, kind, name))
        if how == "random":
            sources[rows] = rng.choice(pool, (len(rows), n_draws))
            continue
        shift = latents[rows].mean(0) - control_latents[pool].mean(0)
        for block in np.array_split(rng.permutation(rows), -(-len(rows) // BLOCK)):
            some = rng.choice(pool, min(len(pool), max(2 * len(block), 64)), replace=False)
            plan = _plan(latents[block], control_latents[some] + shift)
            points = rng.random((len(block), n_draws, 1))
            sources[block] = some[(plan.cumsum(1)[:, None] <= points).sum(2).clip(max=len(some) - 1)]
    return sources


def _groups(perturbation: np.ndarray, cell_type: np.ndarray, control: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cell type, perturbation and rows of every pair, the control left out."""
    order = np.lexsort((perturbation, cell_type))
    keys = np.stack([cell_type[order], perturbation[order]], axis=1)
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)]) if len(keys) else np.empty(0, dtype=int)
    for rows in np.split(order, starts[1:]):
        if len(rows) and perturbation[rows[0]] != control:
            yield int(cell_type[rows[0]]), int(perturbation[rows[0]]), np.sort(rows)


def _plan(targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Optimal transport between equal masses on both sides; each row, a target's, sums to 1."""
    import ot  # takes a second to import

    cost = ot.dist(targets.astype(np.float64), sources.astype(np.float64))
    mass = np.full(len(targets), 1 / len(targets)), np.full(len(sources), 1 / len(sources))
    plan: np.ndarray = ot.emd(*mass, cost / max(cost.max(), 1e-12), numItermax=2_000_000)
    shares: np.ndarray = plan / plan.sum(1, keepdims=True)
    return shares
