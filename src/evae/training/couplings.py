"""Pairs of perturbed and control cells: which control a perturbed cell may have been before its perturbation.

Nobody measures a cell twice. Within a cell type, and within an experimental batch where the dataset has batches,
optimal transport couples the perturbed cells with the controls such that the squared distances between their points,
after the controls are moved by the mean difference, are smallest in sum (Bunne et al., "Learning single-cell
perturbation responses using neural optimal transport", 2023, couple so too). The cost grows faster than the square of
the block, so cells are taken in blocks: the time is linear in the number of cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError

BLOCK = 512  # perturbed cells that are coupled at once, with up to twice as many controls
DRAWS = 4  # controls drawn for every cell from the plan; training alternates between them
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Cells:
    """What decides which cells are paired.

    Attributes:
        points: where the cells stand in the space of the coupling, (cells, values).
        perturbation, cell_type: ids, (cells,).
        batch: ids of the experimental batches, (cells,); all 0 where the dataset has none.
    """

    points: np.ndarray
    perturbation: np.ndarray
    cell_type: np.ndarray
    batch: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def part(self, rows: np.ndarray) -> "Cells":
        """Some of the cells."""
        return Cells(self.points[rows], self.perturbation[rows], self.cell_type[rows], self.batch[rows])


def couple(
    cells: Cells,
    controls: Cells,
    own: np.ndarray,
    *,
    control: int,
    names: list[str],
    how: str = "optimal-transport",
    n_draws: int = DRAWS,
    as_set: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Draw controls for every cell, of its cell type and batch; of its cell type where the batch has none.

    Args:
        cells: all cells.
        controls: those that may be drawn.
        own: for every cell that is itself a control its row in `controls`, -1 for others, (cells,).
        control: id of the control.
        names: of the cell types, for messages.
        how: "optimal-transport", or "random" controls.
        n_draws: controls drawn for every cell.
        as_set: the draws are read together, so a control stands among others.
        seed: of the draws.

    Returns:
        rows of `controls`, int32 (cells, n_draws). A control is its own source.

    Raises:
        EvaeError: a cell type has perturbed cells and no controls.
    """
    sources = np.repeat(own.astype(np.int32)[:, None], n_draws, axis=1)
    for (kind, batch, name), rows in _groups(cells):
        is_control = name == control
        if is_control and not as_set:
            continue
        pool = np.flatnonzero((controls.cell_type == kind) & (controls.batch == batch))
        pool = pool if len(pool) else np.flatnonzero(controls.cell_type == kind)
        if is_control and not len(pool):  # it is its own source all the same
            continue
        if not len(pool):
            raise EvaeError(
                f"the cell type '{names[kind]}' has perturbed cells but no training controls to start from; drop its "
                "cells, or set model.source_cells=0."
            )
        rng = np.random.default_rng((seed, kind, name, batch))
        if is_control:
            sources[rows, 1:] = rng.choice(pool, (len(rows), n_draws - 1))
        elif how == "random":
            sources[rows] = rng.choice(pool, (len(rows), n_draws))
        else:
            sources[rows] = _transported(cells.points[rows], controls.points[pool], pool, n_draws, rng)
    return sources


def without_control(cells: Cells, controls: Cells, control: int, kinds: list[str], batches: list[str]) -> str:
    """A sentence on perturbed cells whose batch has no control of their cell type; "" if there are none.

    Args:
        cells, controls, control: as in `couple`.
        kinds, batches: names of the cell types and of the batches.
    """
    width = int(max(cells.batch.max(initial=0), controls.batch.max(initial=0))) + 1
    group = cells.cell_type.astype(np.int64) * width + cells.batch
    having = np.unique(controls.cell_type.astype(np.int64) * width + controls.batch)
    lonely = group[(cells.perturbation != control) & ~np.isin(group, having)]
    if not len(lonely):
        return ""
    found = np.unique(lonely)
    shown = ", ".join(f"'{kinds[g // width]}' in '{batches[g % width]}'" for g in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{number_of(len(lonely), 'perturbed cell has', 'perturbed cells have')} no control of their cell type in "
        f"their batch ({shown}{more}); they are paired with controls of other batches"
    )


def _groups(cells: Cells) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """(cell type, batch, perturbation) and rows of every group."""
    keys = np.stack([cells.cell_type, cells.batch, cells.perturbation])
    order = np.lexsort(keys[::-1])
    starts = np.flatnonzero((np.diff(keys[:, order], axis=1) != 0).any(0)) + 1
    for rows in np.split(order, starts) if len(order) else ():
        kind, batch, name = (int(value) for value in keys[:, rows[0]])
        yield (kind, batch, name), np.sort(rows)


def _transported(
    points: np.ndarray, controls: np.ndarray, pool: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Of `pool`, whose points are `controls`, draws for every one of `points`: (cells, n_draws)."""
    drawn = np.empty((len(points), n_draws), dtype=np.int32)
    controls = controls + (points.mean(0) - controls.mean(0))
    for block in np.array_split(rng.permutation(len(points)), -(-len(points) // BLOCK)):
        some = rng.choice(len(pool), min(len(pool), max(2 * len(block), 64)), replace=False)
        plan = _plan(points[block], controls[some])
        chance = rng.random((len(block), n_draws, 1))
        chosen = (plan.cumsum(1)[:, None] <= chance).sum(2).clip(max=len(some) - 1)
        drawn[block] = pool[some[chosen]]
    return drawn


def _plan(targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Optimal transport between equal masses on both sides; each row, a target's, sums to 1."""
    import ot  # takes a second to import

    cost = ot.dist(targets.astype(np.float64), sources.astype(np.float64))
    mass = np.full(len(targets), 1 / len(targets)), np.full(len(sources), 1 / len(sources))
    plan: np.ndarray = ot.emd(*mass, cost / max(cost.max(), 1e-12), numItermax=2_000_000)
    shares: np.ndarray = plan / plan.sum(1, keepdims=True)
    return shares
