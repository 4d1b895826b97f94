"""A SOMA experiment on the disk (`tiledbsoma`, extra `soma`), as CELLxGENE's Census and TileDB-SOMA write them.

The cells stand in `obs`, the genes in `ms/RNA/var`, each with a number of its own (`soma_joinid`), and the counts in
the sparse arrays of `ms/RNA/X`: one called `data` where an AnnData was written, `raw` and `normalized` in the Census.
The `raw` of an AnnData is a measurement of its own, `ms/raw`.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.extras import require
from evae.common.messages import first_line
from evae.data.reading.h5mu import OF_RNA
from evae.data.reading.parts import LazyFrame, MemoryFrame, Parts
from evae.data.reading.raw_counts import AUTO, SAMPLE, choose_counts, layers_of_counts
from evae.data.reading.stored_matrix import MAX_BLOCK_ENTRIES
from evae.models.contract_evae import EvaeError, near_matches

MARK = "__tiledb_group.tdb"  # a file or a folder in every group of TileDB
NUMBER, DATA = "soma_joinid", "data"
BUFFER_BYTES = 32 << 20  # of a column that is read, where tiledbsoma takes 1 GB
CELLS, GENES = ("obs_id", "cell_id", "barcode"), ("var_id", "feature_name", "feature_id")  # columns of names


def is_soma(path: Path) -> bool:
    """Whether it is a group of TileDB."""
    return (path / MARK).exists()


class SomaMatrix:
    """A sparse array of cells by genes, of which cells are read; see `StoredMatrix` for what each name means.

    Args:
        stored: the array.
        numbers: of the cells and of the genes, as rows and columns of the array, rising.
        name: what to call it in messages.
    """

    encoding = "csr"

    def __init__(self, stored: Any, numbers: tuple[np.ndarray, np.ndarray], name: str):
        self._stored, self._cells, genes, self._name = stored, *numbers, name
        self.shape = (len(self._cells), len(genes))
        self._column = np.full(int(genes.max(initial=-1)) + 1, -1, dtype=np.int32)  # by the number of a gene
        self._column[genes] = np.arange(len(genes))

    def close(self) -> None:
        """The experiment is closed as a whole."""

    def convert_to_csr(self) -> None:
        """It is read by rows."""

    def block_end(self, start: int, chunk_size: int) -> int:
        return min(self.shape[0], start + max(1, min(chunk_size, MAX_BLOCK_ENTRIES // self._mean_entries)))

    @cached_property
    def _mean_entries(self) -> int:
        return max(1, int(self._stored.nnz) // max(1, self.shape[0]))

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        numbers = self._cells[start:stop]
        in_a_row = numbers[-1] - numbers[0] == len(numbers) - 1
        wanted = slice(int(numbers[0]), int(numbers[-1])) if in_a_row else numbers
        try:
            found = self._stored.read((wanted,)).tables().concat()
        except Exception as error:  # TileDB raises errors of its own
            raise EvaeError(
                f"{self._name} cannot be read at the cells {start} to {stop} ({first_line(error)}); fetch it anew."
            ) from error
        cell, gene, values = (found[column].to_numpy() for column in ("soma_dim_0", "soma_dim_1", "soma_data"))
        row, column = np.searchsorted(numbers, cell), self._column[gene]
        block = sp.csr_matrix((values, (row, column)), shape=(stop - start, self.shape[1]))
        block.sum_duplicates()
        return block

    def sample(self, n: int) -> np.ndarray:
        cells = min(self.shape[0], max(1, n // (2 * self._mean_entries)))
        ends = self.rows(0, cells), self.rows(self.shape[0] - cells, self.shape[0])
        return np.concatenate([end.data for end in ends])


class SomaFrame(LazyFrame):
    """The cells.

    Args:
        stored: the data frame.
        numbers: of the rows.
    """

    def __init__(self, stored: Any, numbers: np.ndarray):
        columns = [name for name in stored.schema.names if not name.startswith("soma_")]
        index = next((name for name in CELLS if name in columns), None)
        names = numbers if index is None else _column(stored, index).to_numpy()
        super().__init__(names, [name for name in columns if name != index], partial(_column, stored))


def open_soma(path: Path, layer: str | None) -> Parts:
    """The RNA of an experiment.

    Args:
        path: its folder.
        layer: None for the array `data`, "raw" for `raw` or the measurement of this name, "auto" for whichever holds
            raw counts, else the name of an array.

    Raises:
        EvaeError: no experiment, no RNA in it, no such array, or `tiledbsoma` is not installed.
    """
    require("tiledbsoma", f"reading {path}, a SOMA experiment,", "soma")
    import tiledbsoma

    context = tiledbsoma.SOMATileDBContext(tiledb_config={"soma.init_buffer_bytes": BUFFER_BYTES})
    try:
        experiment = tiledbsoma.open(str(path), context=context)
    except Exception as error:
        raise EvaeError(f"{path} cannot be opened as SOMA ({first_line(error)}); name an experiment.") from error
    if not isinstance(experiment, tiledbsoma.Experiment):
        experiment.close()
        raise EvaeError(f"{path} is a SOMA {type(experiment).__name__}; name the folder of the whole experiment.")
    try:
        return _parts(experiment, path, layer)
    except EvaeError:
        experiment.close()
        raise


def _parts(experiment: Any, path: Path, layer: str | None) -> Parts:
    places = _places(experiment, path)
    cells = _column(experiment.obs, NUMBER).to_numpy()

    def matrix(name: str) -> SomaMatrix:
        measurement, array = places[name]
        genes = _column(experiment.ms[measurement].var, NUMBER).to_numpy()
        where = f"ms/{measurement}/X/{array}"
        return SomaMatrix(experiment.ms[measurement].X[array], (cells, genes), f"the counts in {where} of {path}")

    samples = {name: partial(lambda name: matrix(name).sample(SAMPLE), name) for name in places}
    layer, note = choose_counts(samples, path) if layer == AUTO else (layer or "X", "")
    if layer not in places:
        raise EvaeError(f"{path} has no array '{layer}'. {near_matches(str(layer), list(places))}")
    measurement, array = places[layer]
    return Parts(
        kind="SOMA",
        where=f"ms/{measurement}/X/{array}",
        matrix=matrix(layer),
        obs=SomaFrame(experiment.obs, cells),
        var=MemoryFrame(_genes(experiment.ms[measurement].var)),
        layer=layer,
        layers=list(places),
        close=experiment.close,
        notes=[note] if note else [],
        counts_in=lambda: layers_of_counts(samples),
    )


def _places(experiment: Any, path: Path) -> dict[str, tuple[str, str]]:
    """The arrays by the names of layers: their measurement, and their name in it."""
    names = list(experiment.ms)
    of_rna = [name for name in names if name.lower() in OF_RNA] or [name for name in names if name != "raw"]
    if len(of_rna) != 1:
        held = ", ".join(names) or "none"
        raise EvaeError(f"{path} has the measurements {held}, and none or several of them are called RNA; name one so.")
    found = {"X" if array == DATA else array: (of_rna[0], array) for array in experiment.ms[of_rna[0]].X}
    if "raw" in names and DATA in experiment.ms["raw"].X:
        found.setdefault("raw", ("raw", DATA))
    return found


def _genes(stored: Any) -> pd.DataFrame:
    """The genes by their numbers, with their names as index."""
    table = stored.read().concat().to_pandas().sort_values(NUMBER)
    index = next((name for name in GENES if name in table), NUMBER)
    return table.drop(columns=NUMBER).set_index(pd.Index(table[index].astype(str), name=None))


def _column(stored: Any, column: str) -> pd.Series:
    """A column in the order of the rows' numbers."""
    try:
        table = stored.read(column_names=sorted({NUMBER, column})).concat().to_pandas()
    except Exception as error:  # of TileDB, or of Arrow, as where the categories were never written
        raise EvaeError(
            f"column '{column}' of {stored.uri} cannot be read ({first_line(error)}); write the experiment anew."
        ) from error
    return table.sort_values(NUMBER, kind="stable", ignore_index=True)[column]
