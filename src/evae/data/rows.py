"""How a cell stands in a shard: one row, the bytes of its CSR block in three binary columns, and its labels.

genes          a byte for each expressed gene, in the panel's order: how far its index is from the one before (the
               first: from 0), modulo 256
counts         a byte for each of them: the count, modulo 256
high           pairs of little-endian 4-byte numbers, in most rows none: a place in the bytes of genes and counts, one
               after the other, and how many times 256 are to be added there
perturbation   class label, cell_type likewise
library_size   total counts over all genes of the source file
cell_id        the cell's name
batch          class label of the experimental batch, where the dataset has batches

Datasets of format 1 have no column `high`. Their `genes` are indices and their `counts` counts, little-endian unsigned
integers of the widths that dataset.json states. `RowFormat.cells` reads both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from evae.data.format import PANEL_KEY, DatasetInfo, panel_digest
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    from datasets import Features

COLUMNS = ["genes", "counts", "perturbation", "cell_type"]  # what a batch is made of
HIGH = "high"
BYTE, PAIRS = np.dtype("u1"), np.dtype("<u4")
REMEDY = "fetch or make the dataset anew."


def cell_features(
    genes: Sequence[str], perturbations: Sequence[str], cell_types: Sequence[str], batches: Sequence[str] = ()
) -> "Features":
    """The columns of the cells, as HF `datasets` sees them; the id of `genes` says which panel they count in."""
    from datasets import ClassLabel, Features, Value  # slow to import, and not needed to read shards

    batch = {"batch": ClassLabel(names=list(batches))} if batches else {}
    return Features(
        {
            "genes": Value("binary", id=f"steps over panel {panel_digest(genes)}"),
            "counts": Value("binary"),
            HIGH: Value("binary"),
            "perturbation": ClassLabel(names=list(perturbations)),
            "cell_type": ClassLabel(names=list(cell_types)),
            "library_size": Value("int64"),
            "cell_id": Value("string"),
            **batch,
        }
    )


def shard_schema(features: "Features", genes: Sequence[str]) -> pa.Schema:
    """The schema of the shards: what `datasets` reads, and which panel the gene indices count in."""
    schema: pa.Schema = features.arrow_schema
    return schema.with_metadata({**(schema.metadata or {}), PANEL_KEY: panel_digest(genes)})


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a dataset are, as dataset.json and the vocabularies say; rows are checked against it.

    Attributes:
        steps: whether genes are stored as steps of a byte (format 2).
        gene_dtype, count_dtype: little-endian unsigned integers that hold any gene index and any count.
        max_count: the largest count of any cell.
        panel: digest of the gene panel (`evae.data.format.panel_digest`).
        n_genes, n_perturbations, n_cell_types: sizes of the vocabularies.
        remedy: what to do about rows that are something else.
    """

    steps: bool
    gene_dtype: np.dtype
    count_dtype: np.dtype
    max_count: int
    panel: str
    n_genes: int
    n_perturbations: int
    n_cell_types: int
    remedy: str = REMEDY

    @classmethod
    def of(cls, info: DatasetInfo) -> "RowFormat":
        """What the rows of a dataset must be."""
        return cls(
            steps=info.statistics["format_version"] > 1,
            gene_dtype=np.dtype(info.statistics["gene_dtype"]),
            count_dtype=np.dtype(info.statistics["count_dtype"]),
            max_count=info.statistics["max_count"],
            panel=panel_digest(info.genes),
            n_genes=len(info.genes),
            n_perturbations=len(info.perturbations),
            n_cell_types=len(info.cell_types),
        )

    @property
    def columns(self) -> list[str]:
        """The columns that a batch is made of."""
        return [*COLUMNS, HIGH] if self.steps else COLUMNS

    def cells(self, table: pa.Table, name: str = "the cells", first: int = 0) -> "FlatCells":
        """Genes and counts of rows.

        Args:
            table: columns `genes`, `counts`, and `high` where genes are steps.
            name: of the file, or of what else the rows come from.
            first: number of the first row in it.

        Raises:
            EvaeError: a row has not one count for each gene, or damaged high numbers.
        """
        genes, gene_ends = flat_values(table["genes"], BYTE if self.steps else self.gene_dtype)
        counts, ends = flat_values(table["counts"], BYTE if self.steps else self.count_dtype)
        if not np.array_equal(gene_ends, ends):
            row = first + int(np.flatnonzero(gene_ends != ends)[0]) - 1
            raise EvaeError(f"row {row} of {name} has not one count for each gene; {self.remedy}")
        if not self.steps:
            return FlatCells(genes, counts, ends, np.zeros((0, 2), PAIRS), np.zeros_like(ends), steps=False)
        pairs, pair_ends = flat_values(table[HIGH], PAIRS)
        cells = FlatCells(genes, counts, ends, pairs[: len(pairs) // 2 * 2].reshape(-1, 2), pair_ends // 2, steps=True)
        rows, _, of_count = cells.places()
        most = np.where(of_count, np.iinfo(self.count_dtype).max, np.iinfo(self.gene_dtype).max)
        damaged = (cells.high[:, 0] >= 2 * np.diff(ends)[rows]) | (cells.high[:, 1] > most >> 8)
        if damaged.any() or (pair_ends % 2).any():
            odd = np.flatnonzero(pair_ends % 2) - 1
            row = first + int(min([*rows[damaged], *odd[:1]]))
            raise EvaeError(f"row {row} of {name} has damaged high numbers; {self.remedy}")
        return cells

    def check(self, table: pa.Table, name: str, first: int = 0) -> None:
        """Raise `EvaeError` naming the row where one is not what the dataset says.

        Args:
            table: columns COLUMNS.
            name: of the file, or of what else the rows come from.
            first: number of the first row in it.
        """
        cells = self.cells(table, name, first)
        genes, counts, ends = cells.indices(), cells.whole_counts(), cells.ends
        limits = (
            ("gene index", genes, 0, self.n_genes - 1),
            ("count", counts, 1, self.max_count),
            ("perturbation", table["perturbation"].to_numpy(), 0, self.n_perturbations - 1),
            ("cell type", table["cell_type"].to_numpy(), 0, self.n_cell_types - 1),
        )
        for what, values, low, high in limits:
            if values.size and not low <= int(values.min()) <= int(values.max()) <= high:
                at = int(np.flatnonzero((values < low) | (values > high))[0])
                row = int(np.searchsorted(ends, at, side="right")) - 1 if what in ("gene index", "count") else at
                raise EvaeError(
                    f"row {first + row} of {name} has the {what} {values[at]}, outside {low} to {high}, which "
                    f"dataset.json and the vocabularies state; {self.remedy}"
                )
        falls = np.flatnonzero(genes[1:] <= genes[:-1]) + 1 if self.steps else np.empty(0, np.int64)
        falls = falls[~np.isin(falls, ends)]
        if falls.size:
            row = first + int(np.searchsorted(ends, falls[0], side="right")) - 1
            raise EvaeError(f"row {row} of {name} has genes that are not in the panel's order; {self.remedy}")


@dataclass(frozen=True)
class FlatCells:
    """Cells end to end, as they are stored.

    Attributes:
        genes, counts: (expressed genes of all cells,) indices into the panel, or steps from one to the next, and
            counts; of steps and their counts the low bytes.
        ends: (cells + 1,) where each cell begins.
        high: (high numbers, 2) place in the cell's genes and counts, and how many times 256 are to be added there.
        high_ends: (cells + 1,) where the high numbers of each cell begin.
        steps: whether the genes are steps.
    """

    genes: np.ndarray
    counts: np.ndarray
    ends: np.ndarray
    high: np.ndarray
    high_ends: np.ndarray
    steps: bool

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each high number the cell, the place in `genes` or `counts`, and whether it is one of a count."""
        rows = np.repeat(np.arange(len(self.ends) - 1), np.diff(self.high_ends))
        sizes, places = np.diff(self.ends)[rows], self.high[:, 0].astype(np.int64)
        of_count = places >= sizes
        return rows, self.ends[rows] + places - np.where(of_count, sizes, 0), of_count

    def indices(self) -> np.ndarray:
        """Indices into the panel, whatever is stored."""
        if not self.steps:
            return self.genes
        _, at, of_count = self.places()
        steps = self.genes.astype(np.int64)
        steps[at[~of_count]] += self.high[~of_count, 1].astype(np.int64) << 8
        starts = self.ends[:-1][self.ends[1:] > self.ends[:-1]]
        if starts.size:  # one running sum over all cells, which each cell's first step brings back to 0
            steps[starts[1:]] -= np.add.reduceat(steps, starts)[:-1]
        return np.cumsum(steps, out=steps)

    def whole_counts(self) -> np.ndarray:
        """Counts, unsigned integers as narrow as they allow."""
        _, at, of_count = self.places()
        if not of_count.any():
            return self.counts
        counts = self.counts.astype(np.uint32)
        counts[at[of_count]] += self.high[of_count, 1] << 8
        return counts


def stored_cells(genes: np.ndarray, counts: np.ndarray, indptr: np.ndarray) -> list[pa.Array]:
    """The columns `genes`, `counts` and `high` of cells, from the arrays of their CSR matrix.

    Args:
        genes: (expressed genes of all cells,) rising indices into the panel.
        counts: likewise, integers above 0.
        indptr: (cells + 1,) where each cell begins.
    """
    n_cells, filled = len(indptr) - 1, indptr[:-1][np.diff(indptr) > 0]
    steps = np.diff(genes.astype(np.int32), prepend=np.int32(0))
    steps[filled] = genes[filled]
    wide, places = [], []
    for i, values in enumerate((steps, counts)):
        at = np.flatnonzero(values > 255)
        rows = np.searchsorted(indptr, at, side="right") - 1
        begin, end = (indptr[edge].astype(np.int64) for edge in (rows, rows + 1))
        places.append(rows)
        wide.append(np.stack([at - begin + i * (end - begin), values[at].astype(np.int64) >> 8], axis=1))
    rows = np.concatenate(places)
    pairs = np.concatenate(wide)[np.argsort(rows, kind="stable")].astype(PAIRS)
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_cells))])
    low = (binary_rows(values.astype(BYTE), indptr) for values in (steps, counts))  # modulo 256
    return [*low, binary_rows(pairs.ravel(), 2 * ends)]


def binary_rows(values: np.ndarray, indptr: np.ndarray) -> pa.Array:
    """A binary column whose rows are the bytes of values[indptr[i]:indptr[i + 1]], without a copy."""
    offsets = (indptr * values.dtype.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values).view(np.uint8))]
    return pa.Array.from_buffers(pa.binary(), len(indptr) - 1, buffers)


def flat_values(column: pa.Array | pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The values of a binary column end to end, and where each row begins (rows + 1,), in values.

    One chunk is not copied.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_flat_chunk(chunk, dtype) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    sizes = np.concatenate([np.diff(ends) for _, ends in parts])
    return np.concatenate([values for values, _ in parts]), np.concatenate([[0], np.cumsum(sizes)])


def _flat_chunk(column: pa.Array, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset)
    first, last = int(ends[0]), int(ends[-1])
    if data is None or first == last:
        return np.empty(0, dtype), np.zeros(len(ends), np.int64)
    sizes = ends - np.int64(first)
    if dtype.itemsize > 1:
        if (sizes % dtype.itemsize).any():
            raise EvaeError(f"a binary column does not hold whole {dtype} values; {REMEDY}")
        sizes //= dtype.itemsize
    return np.frombuffer(data, dtype, int(sizes[-1]), first), sizes
