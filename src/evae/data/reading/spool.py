"""Cells that came as a stream, kept for the while of a conversion: a folder of Arrow files, read as one source.

Every file of the stream leaves one Arrow file, whole or not at all, with the columns `genes` (places among the genes)
and `counts`, one list a cell, and the labels; `genes.parquet` names the genes. `spool.json`, written last, says how
many cells each of them holds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from evae.common.files import write_json
from evae.data.reading.parts import LazyFrame, MemoryFrame, Parts
from evae.data.reading.raw_counts import refuse_layer
from evae.data.reading.stored_matrix import MAX_BLOCK_ENTRIES
from evae.models.contract_evae import EvaeError

MANIFEST, GENES = "spool.json", "genes.parquet"
LISTS = ("genes", "counts")
CELL_ID = "cell_id"


def is_spool(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def finish(folder: Path, title: str, notes: list[str]) -> None:
    """Say that all files are there.

    Args:
        folder: with `genes.parquet` and the Arrow files.
        title: what the cells are, for messages.
        notes: sentences on what was left out.
    """
    batches: list[list[Any]] = []
    for file in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(file)) as stored:
            reader = pa.ipc.open_file(stored)
            batches += [[file.name, i, reader.get_batch(i).num_rows] for i in range(reader.num_record_batches)]
    write_json(folder / MANIFEST, {"title": title, "notes": notes, "batches": batches})


class SpooledMatrix:
    """The counts, of which rows are read; see `StoredMatrix` for what each name means."""

    encoding = "csr"

    def __init__(self, folder: Path, batches: list[list[Any]], n_genes: int):
        self._folder, self._batches = folder, batches
        self._ends = np.cumsum([0, *(n for _, _, n in batches)])
        self.shape = (int(self._ends[-1]), n_genes)

    def close(self) -> None:
        """Nothing is held open."""

    def convert_to_csr(self) -> None:
        """It is."""

    def block_end(self, start: int, chunk_size: int) -> int:
        """The end of the last whole batch that fits."""
        cells = max(1, min(chunk_size, 4 * MAX_BLOCK_ENTRIES // max(1, self._mean_entries())))
        whole = int(self._ends[np.searchsorted(self._ends, start + cells, side="right") - 1])
        return min(self.shape[0], whole if whole > start else start + cells)

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        blocks = []
        first = int(np.searchsorted(self._ends, start, side="right")) - 1
        for b in range(first, len(self._batches)):
            low, high = max(start - int(self._ends[b]), 0), min(stop, int(self._ends[b + 1])) - int(self._ends[b])
            if high <= low:
                break
            blocks.append(self._csr(self._batch(b).slice(low, high - low)))
        found = sp.vstack(blocks, format="csr")
        found.sum_duplicates()
        return found

    def sample(self, n: int) -> np.ndarray:
        return self.rows(0, min(self.shape[0], max(1, n // 1_000))).data

    def column(self, name: str) -> pd.Series:
        """The labels of all cells."""
        parts = [self._batch(b).column(name).dictionary_encode() for b in range(len(self._batches))]
        return pa.chunked_array(parts).unify_dictionaries().to_pandas()

    def names(self) -> list[str]:
        """The columns of labels."""
        return [name for name in self._batch(0).schema.names if name not in LISTS] if self._batches else []

    def _mean_entries(self) -> int:
        lists = self._batch(0).column("genes")
        return max(1, len(lists.flatten()) // max(1, len(lists)))

    def _batch(self, b: int) -> pa.RecordBatch:
        name, i, _ = self._batches[b]
        with pa.memory_map(str(self._folder / name)) as stored:
            return pa.ipc.open_file(stored).get_batch(i)

    def _csr(self, batch: pa.RecordBatch) -> sp.csr_matrix:
        genes, counts = (batch.column(name) for name in LISTS)
        ends = np.concatenate([[0], np.cumsum(genes.value_lengths().to_numpy(zero_copy_only=False))])
        values = counts.flatten().to_numpy().copy(), genes.flatten().to_numpy().copy(), ends
        return sp.csr_matrix(values, shape=(len(genes), self.shape[1]))


def open_spool(path: Path, layer: str | None) -> Parts:
    """The cells of a finished folder.

    Raises:
        EvaeError: a layer is named, or there are no cells.
    """
    import pyarrow.parquet as pq

    said = json.loads((path / MANIFEST).read_text())
    refuse_layer(layer, said["title"])
    if not said["batches"]:
        raise EvaeError(f"{said['title']} holds no cell of these values; ask for others with where.")
    var = pq.read_table(path / GENES).to_pandas()
    matrix = SpooledMatrix(path, said["batches"], len(var))
    return Parts(
        kind="stream",
        where="the stream",
        matrix=matrix,
        obs=LazyFrame(matrix.column(CELL_ID).to_numpy(), [n for n in matrix.names() if n != CELL_ID], matrix.column),
        var=MemoryFrame(var.set_index("gene_symbol")),
        layer="X",
        layers=["X"],
        close=matrix.close,
        notes=said["notes"],
        title=said["title"],
    )
