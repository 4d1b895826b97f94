"""Differential expression of real and predicted cells by cell type, with a cache for the real tables."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.cells.kept import is_kept, keep, load_kept
from evae.evaluation.metrics.agreement import agreement_metrics
from evae.evaluation.metrics.calibration import MATCHED
from evae.evaluation.metrics.differential import (
    HALVES,
    ControlRanks,
    DETable,
    differential_expression,
    differential_expression_of_halves,
)
from evae.evaluation.metrics.recovery import de_metrics
from evae.evaluation.metrics.sorted_values import MOST_GROUPS
from evae.evaluation.protocols.distribution import split_halves
from evae.evaluation.protocols.record import Record
from evae.evaluation.protocols.stored import is_stored, real_key, stored_records
from evae.evaluation.systems.baselines import System, real_system, sampled
from evae.evaluation.systems.names import SPLIT_HALF

GROUP = "differential expression"
_METHOD = "evae mann-whitney-asymptotic bh geometric-mean 3"  # raise the number when the tables change
_NAMES, _VALUES = ("perturbations", "genes"), ("log2_fold_change", "p_value", "fdr")
_MOST_KEPT = 1 << 27  # bytes of controls made ready
_BATCH_VALUES = 1 << 17  # stored values that a core works on at a time


def de_protocol(
    comparison: Comparison,
    systems: list[System],
    seed: int,
    progress: Progress,
    cache: Path | None,
    matched: bool = False,
) -> list[Record]:
    """Metrics of differential expression for every system, and for two halves of the real cells.

    Every system is tested with as many cells as it has (the model) or as there are real ones (the baselines),
    against the same real controls. The real tables, and what the split half gives, are kept in `cache`.
    With `matched`, every system is compared with half A of the real cells too, as half B is.
    """
    records: list[Record] = []
    for cell_type in comparison.cell_types:
        task = _Task(comparison, cell_type, seed, cache)
        known = is_stored(cache, task.half_key)
        tables = {} if known else task.real_tables([1, 2])
        records += stored_records(cache, task.half_key, partial(task.split_half, tables))
        wanted = [0, 1] if matched else [0]
        tables = {i: table for i, table in tables.items() if i in wanted}
        tables |= task.real_tables([i for i in wanted if i not in tables])
        truth, half = tables.pop(0), tables.pop(1, None)
        for system in progress(systems, f"differential expression, {cell_type}"):
            records += task.score(system, truth, half)
    return records


@dataclass(frozen=True)
class _Task:
    """Differential expression of one cell type."""

    comparison: Comparison
    cell_type: str
    seed: int
    cache: Path | None

    @cached_property
    def controls(self) -> ControlRanks:
        """The controls, made ready; kept unless they are many."""
        path = None if self.cache is None else self.cache / f"{self.coded_key}-ranks.safetensors"
        known = None if path is None else load_kept(path)
        if known is not None:
            return ControlRanks.of(known[0])
        rows = self.comparison.control_rows[self.cell_type]
        controls = ControlRanks(self.comparison.controls.matrix[rows])
        arrays = controls.arrays()
        if path is not None and sum(values.nbytes for values in arrays.values()) <= _MOST_KEPT:
            keep(path, arrays)
        return controls

    @cached_property
    def key(self) -> str:
        """Of the tables that depend on real cells only."""
        return _digest(self.comparison, self.cell_type)

    @cached_property
    def coded_key(self) -> str:
        """Of what depends on the code too."""
        return f"{real_key(self.comparison)}-{self.key[:16]}"

    @property
    def half_key(self) -> str:
        """Of the records of the split half."""
        return f"{self.coded_key}-seed{self.seed}"

    def real_tables(self, wanted: Sequence[int]) -> dict[int, DETable]:
        """The tables of the real cells (0), of half A (1) and of half B (2).

        All three are computed and stored where one of the wanted is missing; computed and returned without a cache.
        """
        if not wanted:
            return {}
        if self.cache is None:
            return dict(enumerate(self._real_tables()))
        keys = self.key, f"{self.key}-seed{self.seed}-a", f"{self.key}-seed{self.seed}-b"
        paths = [self.cache / f"{key}.safetensors" for key in keys]
        if not all(is_kept(paths[i]) for i in wanted):
            tables = self._real_tables()
            for path in paths:
                write_table(next(tables), path)  # and hold it no longer
        return {i: read_table(paths[i]) for i in wanted}

    def _real_tables(self) -> Iterator[DETable]:
        half_of = np.zeros(len(self.comparison.real), dtype=np.int64)
        for half, rows in enumerate(split_halves(self.comparison, self.seed), start=1):
            half_of[np.concatenate(list(rows.values()))] = half
        rows_of, real = self.comparison.real_rows, real_system(self.comparison)

        def batches() -> Iterator[tuple[list[str], sp.csr_matrix, np.ndarray, np.ndarray, Sequence[int]]]:
            for names, cells, codes in self._batches(real):
                rows = np.concatenate([rows_of[(self.cell_type, p)] for p in names])
                yield names, cells, codes, half_of[rows], HALVES

        tables = differential_expression_of_halves(batches(), self.controls, self.comparison.genes)
        systems = (real, *self.halves)
        yield from (_subset(next(tables), self._names(system)) for system in systems)

    @cached_property
    def halves(self) -> tuple[System, System]:
        """The two halves of the real cells."""
        halves = split_halves(self.comparison, self.seed)
        first, second = (sampled(SPLIT_HALF, self.comparison.real, half, own=True) for half in halves)
        return first, second

    def split_half(self, tables: dict[int, DETable]) -> list[Record]:
        """Half B of the real cells as the prediction of half A."""
        return self._records(self.halves[1], tables[2], tables[1]) if self._names(self.halves[1]) else []

    def score(self, system: System, truth: DETable, first: DETable | None) -> list[Record]:
        """A system against the real table, and against that of half A if it is given."""
        if not self._names(system):
            return []
        table = differential_expression(self._batches(system), self.controls, self.comparison.genes)
        found = self._records(system, table, truth)
        if first is not None and self._names(self.halves[0]):
            found += self._records(system, table, first, MATCHED)
        return found

    def _records(self, system: System, predicted: DETable, truth: DETable, level: str = "pair") -> list[Record]:
        known = set(truth.perturbations.tolist())
        names = [p for p in self._names(system) if p in known]
        halved = level == MATCHED or system.name == SPLIT_HALF
        n_real = (self.halves[0].available if halved else None) or self.comparison.n_real
        n_generated = system.available or self.comparison.n_real
        tables = _subset(predicted, names), _subset(truth, names)
        found = []
        for metric, values in (de_metrics(*tables) | agreement_metrics(*tables)).items():
            for p, value in zip(names, values.tolist(), strict=True):
                pair = (self.cell_type, p)
                cells = n_real[pair], n_generated[pair]
                found.append(Record(GROUP, level, system.name, metric, value, self.seed, *cells, *pair))
        return found

    def _names(self, system: System) -> list[str]:
        answered = set(system.pairs)
        return [p for p in self.comparison.perturbations(self.cell_type) if (self.cell_type, p) in answered]

    def _batches(self, system: System) -> Iterator[tuple[list[str], sp.csr_matrix, np.ndarray]]:
        sizes = system.available or self.comparison.n_real
        return _batches(system, self.cell_type, self._names(system), sizes, self.seed)


def _batches(
    system: System, cell_type: str, names: list[str], sizes: dict[Pair, int], seed: int
) -> Iterator[tuple[list[str], sp.csr_matrix, np.ndarray]]:
    """The cells of a few perturbations at a time: of a baseline only so many are dense at once."""
    rng = np.random.default_rng(seed)
    batch: list[str] = []
    parts: list[sp.csr_matrix] = []
    n_values = 0
    for i, name in enumerate(names):
        pair = (cell_type, name)
        parts.append(system.all_cells(pair, sizes[pair], rng))
        batch.append(name)
        n_values += parts[-1].nnz
        if n_values >= _BATCH_VALUES or len(batch) == MOST_GROUPS or i == len(names) - 1:
            codes = np.repeat(np.arange(len(batch)), [part.shape[0] for part in parts])
            yield batch, sp.vstack(parts, format="csr"), codes
            batch, parts, n_values = [], [], 0


def default_cache() -> Path:
    """Where tables of real cells are kept: $EVAE_CACHE, else ~/.cache/evae."""
    return Path(os.environ.get("EVAE_CACHE", Path.home() / ".cache" / "evae")) / "differential_expression"


def write_table(table: DETable, path: Path) -> None:
    """Write a table of differential expression as safetensors, with the names as metadata."""
    names = {name: json.dumps(getattr(table, name).tolist()) for name in _NAMES}
    values = {name: getattr(table, name) for name in _VALUES}
    keep(path, values, names)


def read_table(path: Path) -> DETable:
    """Read a table written by `write_table`."""
    known = load_kept(path)
    assert known is not None
    values, texts = known
    names = (np.array(json.loads(texts[name]), dtype=object) for name in _NAMES)
    return DETable(*names, *(values[name] for name in _VALUES))


def _subset(table: DETable, names: list[str]) -> DETable:
    if table.perturbations.tolist() == names:
        return table
    position = {p: i for i, p in enumerate(table.perturbations.tolist())}
    rows = np.array([position[name] for name in names], dtype=np.intp)
    return DETable(
        table.perturbations[rows],
        table.genes,
        table.log2_fold_change[rows],
        table.p_value[rows],
        table.fdr[rows],
    )


def _digest(comparison: Comparison, cell_type: str) -> str:
    """A key over everything that a real table depends on."""
    parts = [_METHOD, comparison.real.digest(), comparison.controls.digest(), cell_type]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
