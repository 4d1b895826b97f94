"""Differential expression of real and predicted cells by cell type, with a cache for the real tables."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors import safe_open
from safetensors.numpy import save_file

from evae.common.files import atomic_write
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.metrics.agreement import agreement_metrics
from evae.evaluation.metrics.calibration import MATCHED
from evae.evaluation.metrics.differential import MOST_GROUPS, ControlRanks, DETable, differential_expression
from evae.evaluation.metrics.recovery import de_metrics
from evae.evaluation.protocols.distribution import split_halves
from evae.evaluation.protocols.record import Record
from evae.evaluation.systems.baselines import System, real_system, sampled
from evae.evaluation.systems.names import SPLIT_HALF

GROUP = "differential expression"
_METHOD = "evae mann-whitney-asymptotic bh geometric-mean 3"  # raise the number when the tables change
_NAMES, _VALUES = ("perturbations", "genes"), ("log2_fold_change", "p_value", "fdr")
_BATCH_VALUES = 1 << 18  # stored values that a core works on at a time


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
    against the same real controls. The real tables are kept in `cache`. With `matched`, every system is compared with
    half A of the real cells too, as half B is.
    """
    records: list[Record] = []
    for cell_type in comparison.cell_types:
        controls = ControlRanks(comparison.controls.matrix[comparison.control_rows[cell_type]])
        task = _Task(comparison, cell_type, controls, seed, cache)
        records += task.split_half()
        truth = task.real_table()
        for system in progress(systems, f"differential expression, {cell_type}"):
            records += task.score(system, truth, matched)
    return records


@dataclass(frozen=True)
class _Task:
    """Differential expression of one cell type."""

    comparison: Comparison
    cell_type: str
    controls: ControlRanks
    seed: int
    cache: Path | None

    @cached_property
    def key(self) -> str:
        """Of the tables that depend on real cells only."""
        return _digest(self.comparison, self.cell_type)

    def real_table(self) -> DETable:
        """The table of the real cells."""
        return cached(self.cache, self.key, lambda: self._table(real_system(self.comparison)))

    @cached_property
    def halves(self) -> tuple[System, System]:
        """The two halves of the real cells."""
        halves = split_halves(self.comparison, self.seed)
        first, second = (sampled(SPLIT_HALF, self.comparison.real, half, own=True) for half in halves)
        return first, second

    @cached_property
    def first_half(self) -> DETable:
        """The table of half A."""
        return cached(self.cache, f"{self.key}-seed{self.seed}-a", lambda: self._table(self.halves[0]))

    def split_half(self) -> list[Record]:
        """Half B of the real cells as the prediction of half A."""
        second = self.halves[1]
        if not self._names(second):
            return []
        predicted = cached(self.cache, f"{self.key}-seed{self.seed}-b", lambda: self._table(second))
        return self._records(second, predicted, self.first_half)

    def score(self, system: System, truth: DETable, matched: bool) -> list[Record]:
        """A system against the real table, and against that of half A if `matched`."""
        if not self._names(system):
            return []
        table = self._table(system)
        found = self._records(system, table, truth)
        if matched and self._names(self.halves[0]):
            found += self._records(system, table, self.first_half, MATCHED)
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

    def _table(self, system: System) -> DETable:
        sizes = system.available or self.comparison.n_real
        batches = _batches(system, self.cell_type, self._names(system), sizes, self.seed)
        return differential_expression(batches, self.controls, self.comparison.genes)


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


def cached(folder: Path | None, key: str, compute: Callable[[], DETable]) -> DETable:
    """The table stored under `key`, else computed and stored; None as folder stores nothing."""
    if folder is None:
        return compute()
    path = folder / f"{key}.safetensors"
    if path.exists():
        return read_table(path)
    table = compute()
    write_table(table, path)
    return table


def write_table(table: DETable, path: Path) -> None:
    """Write a table of differential expression as safetensors, with the names as metadata."""
    names = {name: json.dumps(getattr(table, name).tolist()) for name in _NAMES}
    values = {name: np.ascontiguousarray(getattr(table, name)) for name in _VALUES}
    with atomic_write(path) as temporary:
        save_file(values, temporary, names)


def read_table(path: Path) -> DETable:
    """Read a table written by `write_table`."""
    with safe_open(path, "numpy") as stored:
        names = (np.array(json.loads(stored.metadata()[name]), dtype=object) for name in _NAMES)
        return DETable(*names, *(stored.get_tensor(name) for name in _VALUES))


def _subset(table: DETable, names: list[str]) -> DETable:
    if table.perturbations.tolist() == names:
        return table
    position = {p: i for i, p in enumerate(table.perturbations.tolist())}
    rows = np.array([position[name] for name in names])
    return DETable(
        table.perturbations[rows],
        table.genes,
        table.log2_fold_change[rows],
        table.p_value[rows],
        table.fdr[rows],
    )


def _digest(comparison: Comparison, cell_type: str) -> str:
    """A key over everything that a real table depends on."""
    sha = hashlib.sha256(_METHOD.encode())
    for cells in (comparison.real, comparison.controls):
        sha.update(cells.digest(np.flatnonzero(cells.cell_type == cell_type)).encode())
    return sha.hexdigest()
