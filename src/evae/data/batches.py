"""Rows of Parquet shards, checked, and packed into sparse batches without a dense copy.

A sparse batch is a dict of torch tensors:

    gene_ids         (cells, max_expressed) int64, panel index; 0 where padded
    counts           (cells, max_expressed) float32; 0 marks padding
    library_size     (cells,) float32, total counts over the gene panel
    perturbation_ids (cells,) int64
    cell_type_ids    (cells,) int64

max_expressed is the largest number of expressed genes in the batch, rounded up to a multiple of 8.

Rows come through the `IterableDataset` of HF `datasets`, one for each lane of `evae.data.order`, which streams the row
groups in the order that is worked out there and cuts them into windows: as fast as reading them with pyarrow alone
(5.8 and 6.7 us a cell at best, over whole epochs of 38,000 cells x 2,000 genes on a busy machine). What `datasets`
itself would remember of its place is not used: a place is a batch number, from which the rows are known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from evae.data.card import PANEL_KEY
from evae.data.order import Piece, Window
from evae.data.shard_store import ShardStore
from evae.models.contract_evae import EvaeError

COLUMNS = ["genes", "counts", "perturbation", "cell_type"]
MEND = "fetch or make the dataset anew."


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a dataset are, as dataset.json and the vocabularies say; rows are checked against it.

    Attributes:
        gene_dtype, count_dtype: little-endian unsigned integers in the two binary columns.
        max_count: the largest count of any cell.
        panel: digest of the gene panel (`evae.data.card.panel_digest`).
        n_genes, n_perturbations, n_cell_types: sizes of the vocabularies.
    """

    gene_dtype: np.dtype
    count_dtype: np.dtype
    max_count: int
    panel: str
    n_genes: int
    n_perturbations: int
    n_cell_types: int


class LaneReader:
    """The rows of one lane, streamed by HF `datasets`, each row group checked.

    Args:
        store: where the shards lie.
        rows: what the rows must be.
        pieces: the lane, in order.
    """

    def __init__(self, store: ShardStore, rows: RowFormat, pieces: list[Piece]):
        self._store, self._format, self._pieces = store, rows, pieces
        self._file: tuple[str, Path, pq.ParquetFile] | None = None
        self._store.expect(pieces[0].shard if pieces else None)  # while the lanes before it wait for theirs

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """The lane in tables of `rows` rows, columns COLUMNS; the last one may be smaller."""
        from datasets import IterableDataset  # slow to import
        from datasets.iterable_dataset import ArrowExamplesIterable

        stream = IterableDataset(ArrowExamplesIterable(self._row_groups, {"pieces": self._pieces}))
        return stream.with_format("arrow").iter(batch_size=rows)

    def _row_groups(self, pieces: list[Piece]) -> Iterator[tuple[str, pa.Table]]:
        for piece in pieces:
            rows = self._row_group(piece).slice(piece.start, piece.stop - piece.start)
            yield f"{piece.shard}:{piece.row_group}", rows

    def _open(self, shard: str) -> tuple[Path, pq.ParquetFile]:
        """A shard, kept open: most often the next row group is one of the same shard."""
        if self._file is None or self._file[0] != shard:
            path = self._store.path(shard)
            file = pq.ParquetFile(path)
            panel = (file.schema_arrow.metadata or {}).get(PANEL_KEY, self._format.panel.encode()).decode()
            if panel != self._format.panel:
                raise EvaeError(f"{path} holds cells over another gene panel than its dataset; {MEND}")
            if self._file is not None:
                self._file[2].close()
            self._file = shard, path, file
            self._store.expect(self._next_shard(shard))
        return self._file[1:]

    def _next_shard(self, shard: str) -> str | None:
        """The shard that is read after this one; None at the lane's end."""
        names = list(dict.fromkeys(piece.shard for piece in self._pieces))
        after = names.index(shard) + 1
        return names[after] if after < len(names) else None

    def _row_group(self, piece: Piece) -> pa.Table:
        where = f"row group {piece.row_group} of {self._store.place(piece.shard)}"
        try:
            path, file = self._open(piece.shard)
            table = file.read_row_group(piece.row_group, columns=COLUMNS, use_threads=False)
            first = sum(file.metadata.row_group(g).num_rows for g in range(piece.row_group))
            if table.num_rows < piece.stop:
                raise EvaeError(f"{where} has {table.num_rows} rows, not {piece.stop}; {MEND}")
            _check_rows(table, self._format, first, path)
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise EvaeError(f"{where} cannot be read ({reason}); {MEND}") from error
        return table


def window_batches(
    tables: Sequence[pa.Table], window: Window, rows: RowFormat, first: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The sparse batches of a window, from batch number `first` on; the last one may be smaller.

    Args:
        tables: the window's rows, one table a lane.
    """
    table = pa.concat_tables(tables)
    n = table.num_rows
    order = np.arange(n) if window.permutation is None else window.permutation
    genes, counts = _one_array(table["genes"]), _one_array(table["counts"])
    labels = {k: table[k].to_numpy()[order] for k in ("perturbation", "cell_type")}
    for start in range((first - window.first_batch) * batch_size, n, batch_size):
        chosen = pa.array(order[start : start + batch_size])
        batch = pack(genes.take(chosen), counts.take(chosen), rows.gene_dtype, rows.count_dtype)
        batch["perturbation_ids"] = torch.from_numpy(labels["perturbation"][start : start + batch_size].copy())
        batch["cell_type_ids"] = torch.from_numpy(labels["cell_type"][start : start + batch_size].copy())
        yield batch


def _check_rows(table: pa.Table, rows: RowFormat, first: int, path: Path) -> None:
    """Raise `EvaeError` naming the file and the row where a row is not what the dataset says.

    Args:
        table: a row group, columns COLUMNS.
        rows: what the rows must be.
        first: number of its first row in the file.
        path: the file.
    """
    genes, gene_ends = flat_values(table["genes"], rows.gene_dtype)
    counts, count_ends = flat_values(table["counts"], rows.count_dtype)
    if not np.array_equal(gene_ends, count_ends):
        row = first + int(np.flatnonzero(gene_ends != count_ends)[0]) - 1
        raise EvaeError(f"row {row} of {path} has not one count for each gene; {MEND}")
    limits = (
        ("gene index", genes, 0, rows.n_genes - 1),
        ("count", counts, 1, rows.max_count),
        ("perturbation", table["perturbation"].to_numpy(), 0, rows.n_perturbations - 1),
        ("cell type", table["cell_type"].to_numpy(), 0, rows.n_cell_types - 1),
    )
    for name, values, low, high in limits:
        if values.size and not low <= int(values.min()) <= int(values.max()) <= high:
            at = int(np.flatnonzero((values < low) | (values > high))[0])
            row = int(np.searchsorted(gene_ends, at, side="right")) - 1 if name in ("gene index", "count") else at
            raise EvaeError(
                f"row {first + row} of {path} has the {name} {values[at]}, outside {low} to {high}, which "
                f"dataset.json and the vocabularies state; {MEND}"
            )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what combine_chunks gives for no or several chunks
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array


def flat_values(column: pa.ChunkedArray | pa.Array, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The values of a binary column end to end, and where each row begins (rows + 1,), in values; no copy."""
    array = _one_array(column) if isinstance(column, pa.ChunkedArray) else column
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if data is None or ends[-1] == ends[0]:
        return np.empty(0, dtype), np.zeros(len(ends), np.int64)
    sizes = ends - ends[0]
    if (sizes % dtype.itemsize).any():
        raise EvaeError(f"a binary column does not hold whole {dtype} values; {MEND}")
    values = np.frombuffer(data, dtype, count=int(sizes[-1]) // dtype.itemsize, offset=int(ends[0]))
    return values, sizes // dtype.itemsize


def pack(genes: pa.Array, counts: pa.Array, gene_dtype: np.dtype, count_dtype: np.dtype) -> dict[str, torch.Tensor]:
    """The two binary columns of a batch to padded tensors.

    Args:
        genes, counts: (cells,) binary, the bytes of the panel indices and of the counts.
        gene_dtype, count_dtype: what the bytes are.

    Returns:
        `gene_ids`, `counts`, `library_size` of a sparse batch.
    """
    longest = int(pc.max(pc.binary_length(counts)).as_py() or 0) // count_dtype.itemsize
    width = max(8, -(-longest // 8) * 8)
    values = torch.from_numpy(_padded(counts, width, count_dtype).astype(np.float32))
    return {
        "gene_ids": torch.from_numpy(_padded(genes, width, gene_dtype).astype(np.int64)),
        "counts": values,
        "library_size": values.sum(1),  # exact below 2^24 counts a cell
    }


def _padded(rows: pa.Array, width: int, dtype: np.dtype) -> np.ndarray:
    """The rows of a binary column (cells,) as (cells, width), zeros behind the end of each."""
    # The padding of strings is Arrow's one function that lays rows of bytes out in a rectangle: one copy, in C++.
    padded = pc.ascii_rpad(rows.view(pa.string()), width=width * dtype.itemsize, padding="\0")
    return np.frombuffer(padded.buffers()[2], dtype, count=len(rows) * width).reshape(len(rows), width)
