"""Differential expression of every perturbation against the controls: Mann-Whitney U with Benjamini-Hochberg.

For each gene the two-sided asymptotic test with tie and continuity correction, as scipy.stats.mannwhitneyu(
method="asymptotic") and pdex give it, and false discovery rates over the genes of each perturbation. The fold
change is that of pdex's default, between geometric means:  log2( expm1(mean log1p x) / expm1(mean log1p
control) ),  0 where both are 0.

Written here because pdex sorts the controls again for every perturbation: here the nonzero control values of all genes
are sorted once, and those of a batch of perturbations are sorted and looked up among them in one go, a batch a core.
Zeros, the bulk of the data, are never touched: all are tied at the bottom. The tests compare the tables with those of
pdex.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr

from evae.common.cluster import spread
from evae.evaluation.metrics.false_discovery import false_discovery_rates
from evae.evaluation.metrics.lookup import Lookup
from evae.evaluation.metrics.sorted_values import (
    GROUP_BITS,
    HALF_BITS,
    MOST_GENES,
    MOST_GROUPS,
    VALUE_BITS,
    SortedValues,
    gene_slices,
    sorted_keys,
)
from evae.models.contract_evae import EvaeError

_LOOKUP = "lookup."
HALVES = 0, 1, 2  # all cells, and two halves of them


@dataclass(frozen=True)
class DETable:
    """Differential expression of the perturbations of one cell type.

    Attributes:
        perturbations: names, (perturbations,).
        genes: the panel, (genes,).
        log2_fold_change: against the controls, (perturbations, genes); infinite where one side is all zero.
        p_value: two-sided, (perturbations, genes).
        fdr: Benjamini-Hochberg over the genes of a perturbation, (perturbations, genes).
    """

    perturbations: np.ndarray
    genes: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray
    fdr: np.ndarray


class ControlRanks:
    """Control cells made ready to be compared with many perturbations."""

    def __init__(self, controls: sp.csr_matrix) -> None:
        """Sort the nonzero values of all genes.

        Args:
            controls: log1p expression, sparse (cells, genes), no negative values.
        """
        if controls.shape[0] == 0:
            raise EvaeError("differential expression needs control cells; pass controls=... or name their label.")
        self.n_cells, self.n_genes = controls.shape
        if self.n_genes > MOST_GENES:
            raise EvaeError(f"differential expression of {self.n_genes:,} genes; at most {MOST_GENES:,} can be tested.")
        by_gene, one_group = controls.tocsc(), np.zeros(self.n_cells, dtype=np.int64)
        n_values, n = np.diff(by_gene.indptr), 0
        keys = np.empty(by_gene.nnz + 1, dtype=np.int64)  # of which only what is filled takes memory
        count = np.empty(by_gene.nnz + 1, dtype=np.int32)
        sums = np.zeros(self.n_genes)
        for genes in gene_slices(by_gene):
            values = sorted_keys(by_gene, one_group, genes) >> GROUP_BITS + HALF_BITS
            first = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
            new = slice(n, n := n + len(first))
            keys[new] = values[first]  # each value of a gene once
            count[new] = np.diff(first, append=len(values))
            sums[genes] = _sums(by_gene, genes)
        del by_gene
        count[n] = 0
        self.geometric_mean = np.expm1(sums / self.n_cells)
        self._lookup = Lookup(keys[: n + 1], self.n_genes, VALUE_BITS)
        self._count = count[: n + 1]
        self._first: np.ndarray = np.cumsum(self._count, dtype=np.int32 if len(keys) < 1 << 30 else np.int64)
        self._first -= self._count
        self._zeros = (self.n_cells - n_values).astype(np.float64)
        self._start = np.cumsum(n_values) - n_values
        # sum of t^3 - t over the groups of tied nonzero controls
        tied = np.flatnonzero(self._count > 1)
        size = _cubed(self._count[tied].astype(np.float64))
        self._ties = np.bincount(keys[tied] >> VALUE_BITS, weights=size, minlength=self.n_genes)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "ControlRanks":
        """Those that `arrays` came from."""
        found, found._lookup = cls.__new__(cls), Lookup.__new__(Lookup)
        for name, values in arrays.items():
            owner = found._lookup if name.startswith(_LOOKUP) else found
            setattr(owner, name.removeprefix(_LOOKUP), values if values.ndim else values.item())
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, by name."""
        own = {name: np.asarray(value) for name, value in vars(self).items() if name != "_lookup"}
        return own | {_LOOKUP + name: np.asarray(value) for name, value in vars(self._lookup).items()}

    def test(self, cells: sp.csr_matrix, codes: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare groups of cells with the controls.

        Args:
            cells: log1p expression, sparse (cells, genes).
            codes: group of each cell, 0 .. n_groups - 1.
            n_groups: number of groups, at most `MOST_GROUPS`; each needs at least one cell.

        Returns:
            log2 fold change and p-value, (n_groups, genes) each.

        Raises:
            EvaeError: more groups than a key can name.
        """
        return self.test_halves(cells, codes, n_groups, np.zeros_like(codes), (0,))[0]

    def test_halves(
        self, cells: sp.csr_matrix, codes: np.ndarray, n_groups: int, halves: np.ndarray, wanted: Sequence[int] = HALVES
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`test` of all cells and of some of them, from one sort.

        Args:
            cells, codes, n_groups: as of `test`.
            halves: of each cell the half that it belongs to, 1 or 2; 0 where to none.
            wanted: which halves to compare, 0 for all cells.

        Returns:
            What `test` gives, for each of `wanted`; without meaning for groups that have no cell in it.
        """
        if n_groups > MOST_GROUPS:
            raise EvaeError(f"{n_groups:,} groups of cells; at most {MOST_GROUPS:,} can be tested at once.")
        sizes = [np.bincount(codes if h == 0 else codes[halves == h], minlength=n_groups) for h in wanted]
        results = [(np.empty((n_groups, self.n_genes)), np.empty((n_groups, self.n_genes))) for _ in wanted]
        by_gene, marks = cells.tocsc(), codes << HALF_BITS | halves
        for genes in gene_slices(by_gene):
            keys = sorted_keys(by_gene, marks, genes)  # those looked up in turn stand side by side
            half_of = (keys & (1 << HALF_BITS) - 1).astype(np.uint8)
            keys >>= HALF_BITS
            values = SortedValues(keys, self._lookup.find(keys >> GROUP_BITS))
            for half, n, (fold, p_value) in zip(wanted, sizes, results, strict=True):
                own = values if half == 0 else values.where(half_of == half)
                fold[:, genes], p_value[:, genes] = self._compare(own, genes, n)
        return results

    def _compare(self, values: SortedValues, genes: slice, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log2 fold change and p-value, (groups, genes) each.

        Args:
            values: of all groups, of some genes.
            genes: these.
            sizes: cells of each group, (groups,).
        """
        shape = genes.stop - genes.start, len(sizes)
        places = values.places(len(sizes), genes.start)
        n_values = np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
        sums = np.bincount(places, weights=values.expression(), minlength=n_values.size).reshape(shape)
        won, ties = self._statistics(values, places, n_values.size)
        zeros, own_zeros = self._zeros[genes, None], sizes - n_values
        u = won.reshape(shape) + n_values * (zeros - self._start[genes, None]) + 0.5 * zeros * own_zeros
        ties = ties.reshape(shape) + self._ties[genes, None] + _cubed(zeros + own_zeros)
        with np.errstate(divide="ignore", invalid="ignore"):
            fold = np.log2(np.expm1(sums / sizes) / self.geometric_mean[genes, None])
        fold[np.isnan(fold)] = 0.0  # neither side expresses the gene
        return fold.T, _p_values(u, ties, sizes, self.n_cells).T

    def _statistics(self, values: SortedValues, places: np.ndarray, n_places: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the nonzero values at every place: the sum of their places among the nonzero controls of all genes, and
        how much they add to the sums of tied nonzero controls; (n_places,) each.

        Args:
            values: of all groups, of some genes.
            places: gene of these * groups + group of each.
            n_places: genes * groups.
        """
        found = values.found
        tied: np.ndarray = self._count.take(found)  # controls of the same value
        tied *= self._lookup.keys.take(found) == values.keys >> GROUP_BITS
        twice: np.ndarray = self._first.take(found)
        twice *= 2
        twice += tied
        won = 0.5 * np.bincount(places, weights=twice, minlength=n_places)
        # (controls + own)^3 - (controls + own) less the same of the controls alone, where own is 1
        controls = tied.astype(np.float64)
        ties = np.bincount(places, weights=3 * controls * (controls + 1), minlength=n_places)
        again = np.flatnonzero(values.keys[1:] == values.keys[:-1])
        if len(again):  # values that several cells of a group have: what is missing where own is more than 1
            first = np.flatnonzero(np.append(True, again[1:] != again[:-1] + 1))
            own = np.diff(first, append=len(again)) + 1.0
            place, controls = places[again[first]], controls[again[first]]
            missing = own * (3 * controls * (own - 1) + own * own - 1)
            ties += np.bincount(place, weights=missing, minlength=n_places)
        return won, ties


def differential_expression(
    batches: Iterable[tuple[list[str], sp.csr_matrix, np.ndarray]],
    controls: ControlRanks,
    genes: np.ndarray,
) -> DETable:
    """Differential expression of many perturbations of one cell type.

    Args:
        batches: (names, cells, codes) with the cells of a few perturbations at a time, so that memory stays
            bounded; codes index the names.
        controls: the controls of the cell type.
        genes: the panel, (genes,).
    """
    whole = ((names, cells, codes, np.zeros_like(codes), (0,)) for names, cells, codes in batches)
    return next(differential_expression_of_halves(whole, controls, genes))


def differential_expression_of_halves(
    batches: Iterable[tuple[list[str], sp.csr_matrix, np.ndarray, np.ndarray, Sequence[int]]],
    controls: ControlRanks,
    genes: np.ndarray,
) -> Iterator[DETable]:
    """Differential expression of all cells and of two halves of them, from one sort.

    Args:
        batches: as of `differential_expression`, with the half of every cell and which tables are wanted; see
            `ControlRanks.test_halves`.
        controls: the controls of the cell type.
        genes: the panel, (genes,).

    Yields:
        The wanted tables, each with the names of all batches; a table is no longer held here when the next is made.
    """
    names: list[str] = []
    with ExitStack() as stack:  # of files, so that one table at a time is in memory
        files: list[tuple[IO[bytes], IO[bytes]]] = []
        for batch_names, tables in spread(_test, controls, batches):
            names += batch_names
            while len(files) < len(tables):
                files.append((stack.enter_context(TemporaryFile()), stack.enter_context(TemporaryFile())))
            for own, parts in zip(files, tables, strict=True):
                for file, part in zip(own, parts, strict=True):
                    part.tofile(file)
        for own in files:
            fold, p_value = (_read_back(file, len(genes)) for file in own)
            yield DETable(np.array(names, dtype=object), genes, fold, p_value, false_discovery_rates(p_value))
            del fold, p_value


def _read_back(file: IO[bytes], n_genes: int) -> np.ndarray:
    file.seek(0)
    return np.fromfile(file).reshape(-1, n_genes)


def _test(
    controls: ControlRanks,
    names: list[str],
    cells: sp.csr_matrix,
    codes: np.ndarray,
    halves: np.ndarray,
    wanted: Sequence[int],
) -> tuple[list[str], list[tuple[np.ndarray, np.ndarray]]]:
    return names, controls.test_halves(cells, codes, len(names), halves, wanted)


def _sums(by_gene: sp.csc_matrix, genes: slice) -> np.ndarray:
    """Sum of each of some genes in float64, (genes,)."""
    ends = by_gene.indptr[genes.start : genes.stop + 1]
    owner = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    return np.bincount(owner, weights=by_gene.data[ends[0] : ends[-1]], minlength=len(ends) - 1)


def _cubed(count: np.ndarray) -> np.ndarray:
    return count * count * count - count  # a power takes ten times as long


def _p_values(u: np.ndarray, ties: np.ndarray, n: np.ndarray, m: int) -> np.ndarray:
    """Two-sided normal approximation of U with continuity correction; 1 where all values are tied."""
    total = n + m
    mean = n * m / 2.0
    variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))
    distance = np.maximum(u, n * m - u) - mean - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * ndtr(-distance / np.sqrt(variance))
    return np.where(variance > 1e-12 * mean * total, p, 1.0).clip(0, 1)
