"""What is looked for in the cells before they are prepared, and what of it is left out, where the user says so.

| `drop` | what is found | what is left out |
| --- | --- | --- |
| `unlabelled` | cells without perturbation, cell type or batch; an error where they are not left out | these cells |
| `several-guides` | cells with more than one guide (`guide_key`), whose label is no combination | these cells |
| `few` | perturbations with fewer than `min_cells` cells | their cells |
| `no-knock-down` | perturbations named after a gene that did not fall (see `knock_down`) | their cells |
| `batch-without-control` | batches (`batch_key`) without a control cell | all of their cells |
| `one-batch` | perturbations that stand in one of several batches only | their cells |
| `copies` | cells that stand more than once, with the same name and counts | all but the first |

Nothing is left out that is not named. The checks are made in this order, each of what the ones before leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evae.common.messages import number_of
from evae.common.progress import Bar
from evae.data.preparing.conventions import Named
from evae.data.preparing.describe import CellLabels
from evae.data.preparing.knock_down import without_knock_down
from evae.data.preparing.labelling import joined, read_labels
from evae.data.preparing.workers import Run
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError, look_up, parts_of

COPIES = "copies"
DROPS = ("unlabelled", "several-guides", "few", "no-knock-down", "batch-without-control", "one-batch", COPIES)
SHOWN = 5
SEPARATORS = "|;,"  # between guides


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        drop: the name by which it is left out.
        what: what was looked for.
        found: how many of these; None where it was not looked for.
        cells: how many cells these are.
        dropped: whether they are left out.
        names: the first of them.
    """

    drop: str
    what: str
    found: int | None
    cells: int
    dropped: bool
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What cells are labelled by, and which checks leave something out; see `prepare_dataset`."""

    named: Named
    batch_key: str | None
    cell_types: Sequence[str] | None
    drop: tuple[str, ...]
    min_cells: int
    guide_key: str | None

    def __post_init__(self) -> None:
        look_up(self.drop, DROPS, "name of a check in drop")
        if "several-guides" in self.drop and self.guide_key is None:
            raise EvaeError("drop names several-guides, which needs the obs column of the guides: guide_key.")
        batches = {"batch-without-control", "one-batch"} & set(self.drop)
        if batches and self.batch_key is None:
            raise EvaeError(f"drop names {min(batches)}, which needs the obs column of the batch: batch_key.")


class _Checks:
    """The cells that are left, and what was found so far."""

    def __init__(self, sources: list[FileCounts], asked: Asked, kept: np.ndarray):
        self.sources, self.asked, self.kept = sources, asked, kept
        self.found: list[Check] = []

    def labels(self) -> CellLabels:
        asked = self.asked
        return read_labels(self.sources, asked.named, asked.cell_types, self.kept, asked.batch_key)

    def cells(self, drop: str, what: str, bad: np.ndarray | None) -> None:
        """Note cells, (cells,) bool, and leave them out if that is asked for; None where nothing was looked for."""
        dropped = drop in self.asked.drop
        n = 0 if bad is None else int((bad & self.kept).sum())
        self.found.append(Check(drop, what, None if bad is None else n, n, dropped and n > 0))
        if dropped and bad is not None:
            self.kept = self.kept & ~bad

    def groups(self, drop: str, what: str, names: list[str] | None, known: Sequence[str], codes: np.ndarray) -> None:
        """Note perturbations or batches by their names, and leave their cells out if that is asked for."""
        dropped = drop in self.asked.drop
        bad = np.isin(codes, [known.index(name) for name in names or ()]) & self.kept
        found = None if names is None else len(names)
        self.found.append(Check(drop, what, found, int(bad.sum()), dropped and bool(names), (names or [])[:SHOWN]))
        if dropped:
            self.kept = self.kept & ~bad


def check_entry(
    sources: list[FileCounts], asked: Asked, kept: np.ndarray, chunk_size: int, run: Run, bar: Bar
) -> tuple[np.ndarray, CellLabels, list[Check]]:
    """Make all checks but that of copies, which needs the counts.

    Args:
        sources: the files.
        asked: what to look at, and what to leave out.
        kept: which cells are wanted, (cells,) bool.
        chunk_size: cells read at once.
        run: does the work on them (see `evae.data.preparing.workers`).
        bar: shows how far it is.

    Returns:
        Which cells are left, their labels, and what was found.

    Raises:
        EvaeError: missing labels that are not to be left out, or no control or no other cell is left.
    """
    checks = _Checks(sources, asked, kept)
    checks.cells("unlabelled", "cells without a label", _unlabelled(checks))
    _guides(checks)
    labels = checks.labels()
    counts = labels.table(checks.kept).sum(0)
    few = [n for n, times in zip(labels.perturbations[1:], counts[1:], strict=True) if times < asked.min_cells]
    what = f"perturbations with fewer than {asked.min_cells} cells"
    checks.groups("few", what, few, labels.perturbations, labels.perturbation)
    missed, told = without_knock_down(sources, labels, checks.kept, chunk_size, run, bar)
    what = f"perturbations whose gene did not fall, of {told:,} that can be told"
    checks.groups("no-knock-down", what, missed if told else None, labels.perturbations, labels.perturbation)
    _batches(checks, labels)
    if not checks.kept.any():
        raise EvaeError("the checks leave no cell; leave out less with drop.")
    return checks.kept, checks.labels(), checks.found


def _unlabelled(checks: _Checks) -> np.ndarray:
    """Which cells lack a label, (cells,) bool."""
    asked, bad = checks.asked, np.zeros(len(checks.kept), dtype=bool)
    keys = [asked.named.perturbation_key, *([] if asked.cell_types else [asked.named.cell_type_key])]
    ends = np.cumsum([0, *(source.n_cells for source in checks.sources)])
    for key in (*keys, *([asked.batch_key] if asked.batch_key else [])):
        for source, first, last in zip(checks.sources, ends, ends[1:], strict=False):
            missing = source.labels(key, gaps=True)[0] < 0
            n = int((missing & checks.kept[first:last]).sum())
            if n and "unlabelled" not in asked.drop:
                raise EvaeError(
                    f"obs column '{key}' of {source.path} is missing (NaN) in {number_of(n, 'cell')}; drop them first, "
                    "or with drop=unlabelled."
                )
            bad[first:last] |= missing
    return bad


def _guides(checks: _Checks) -> None:
    """Cells with several guides whose label names one perturbation."""
    asked, bad = checks.asked, None
    if asked.guide_key is not None:
        codes, names = joined(checks.sources, asked.guide_key)
        several = np.array([*map(_several, names), False])[codes]
        labels, known = joined(checks.sources, asked.named.perturbation_key)
        combined = [len(parts_of(name, set(known), asked.named.control)) > 1 for name in known]
        bad = several & ~np.array([*combined, False])[labels]
    checks.cells("several-guides", "cells with several guides", bad)


def _several(guides: str) -> bool:
    """Whether a label names several guides, or a number above one."""
    if guides.replace(".", "", 1).isdigit():
        return float(guides) > 1
    return any(sign in guides for sign in SEPARATORS)


def _batches(checks: _Checks, labels: CellLabels) -> None:
    """Batches without a control, then perturbations in one of several batches."""
    batch, batches = labels.batch, labels.batches
    if batch is None:
        codes = np.zeros(len(checks.kept), dtype=np.int32)
        checks.groups("batch-without-control", "batches without a control cell", None, [], codes)
        checks.groups("one-batch", "perturbations in one batch only", None, [], codes)
        return
    table = _table(batch, labels.perturbation, checks.kept, (len(batches), len(labels.perturbations)))
    lacking = [name for name, row in zip(batches, table, strict=True) if row.any() and not row[0]]
    checks.groups("batch-without-control", "batches without a control cell", lacking, batches, batch)
    table = _table(batch, labels.perturbation, checks.kept, table.shape)
    several = (table.any(axis=1)).sum() > 1
    once = [n for n, column in zip(labels.perturbations, table.T, strict=True) if several and (column > 0).sum() == 1]
    once = [name for name in once if name != labels.perturbations[0]]
    checks.groups("one-batch", "perturbations in one batch only", once, labels.perturbations, labels.perturbation)


def _table(rows: np.ndarray, columns: np.ndarray, kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    cells = np.ravel_multi_index((rows[kept], columns[kept]), shape)
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
