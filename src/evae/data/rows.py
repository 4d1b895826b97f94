"""How a cell stands in a shard: one row, the bytes of its CSR block in two binary columns, and its labels.

genes          indices into the panel, little-endian unsigned integers
counts         their counts, in the same order, little-endian unsigned integers
perturbation   class label, cell_type likewise
library_size   total counts over all genes of the source file
cell_id        the cell's name
batch          class label of the experimental batch, where the dataset has batches
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
REMEDY = "fetch or make the dataset anew."


def cell_features(
    genes: Sequence[str], perturbations: Sequence[str], cell_types: Sequence[str], batches: Sequence[str] = ()
) -> "Features":
    """The columns of the cells, as HF `datasets` sees them; the id of `genes` says which panel they count in."""
    from datasets import ClassLabel, Features, Value  # slow to import, and not needed to read shards

    batch = {"batch": ClassLabel(names=list(batches))} if batches else {}
    return Features(
        {
            "genes": Value("binary", id=f"panel {panel_digest(genes)}"),
            "counts": Value("binary"),
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
        gene_dtype, count_dtype: little-endian unsigned integers in the two binary columns.
        max_count: the largest count of any cell.
        panel: digest of the gene panel (`evae.data.format.panel_digest`).
        n_genes, n_perturbations, n_cell_types: sizes of the vocabularies.
        remedy: what to do about rows that are something else.
    """

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
            gene_dtype=np.dtype(info.statistics["gene_dtype"]),
            count_dtype=np.dtype(info.statistics["count_dtype"]),
            max_count=info.statistics["max_count"],
            panel=panel_digest(info.genes),
            n_genes=len(info.genes),
            n_perturbations=len(info.perturbations),
            n_cell_types=len(info.cell_types),
        )

    def check(self, table: pa.Table, name: str, first: int = 0) -> None:
        """Raise `EvaeError` naming the row where one is not what the dataset says.

        Args:
            table: columns COLUMNS.
            name: of the file, or of what else the rows come from.
            first: number of the first row in it.
        """
        genes, gene_ends = flat_values(table["genes"], self.gene_dtype)
        counts, count_ends = flat_values(table["counts"], self.count_dtype)
        if not np.array_equal(gene_ends, count_ends):
            row = first + int(np.flatnonzero(gene_ends != count_ends)[0]) - 1
            raise EvaeError(f"row {row} of {name} has not one count for each gene; {self.remedy}")
        limits = (
            ("gene index", genes, 0, self.n_genes - 1),
            ("count", counts, 1, self.max_count),
            ("perturbation", table["perturbation"].to_numpy(), 0, self.n_perturbations - 1),
            ("cell type", table["cell_type"].to_numpy(), 0, self.n_cell_types - 1),
        )
        for what, values, low, high in limits:
            if values.size and not low <= int(values.min()) <= int(values.max()) <= high:
                at = int(np.flatnonzero((values < low) | (values > high))[0])
                row = int(np.searchsorted(gene_ends, at, side="right")) - 1 if what in ("gene index", "count") else at
                raise EvaeError(
                    f"row {first + row} of {name} has the {what} {values[at]}, outside {low} to {high}, which "
                    f"dataset.json and the vocabularies state; {self.remedy}"
                )


def binary_rows(values: np.ndarray, indptr: np.ndarray) -> pa.Array:
    """A binary column whose rows are the bytes of values[indptr[i]:indptr[i + 1]], without a copy."""
    offsets = (indptr * values.dtype.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values).view(np.uint8))]
    return pa.Array.from_buffers(pa.binary(), len(indptr) - 1, buffers)


def flat_values(column: pa.Array | pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The values of a binary column end to end, and where each row begins (rows + 1,), in values.

    One chunk is not copied.
    """
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    if data is None or ends[-1] == ends[0]:
        return np.empty(0, dtype), np.zeros(len(ends), np.int64)
    sizes = ends - ends[0]
    if (sizes % dtype.itemsize).any():
        raise EvaeError(f"a binary column does not hold whole {dtype} values; {REMEDY}")
    values = np.frombuffer(data, dtype, count=int(sizes[-1]) // dtype.itemsize, offset=int(ends[0]))
    return values, sizes // dtype.itemsize
