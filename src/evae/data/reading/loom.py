"""A loom file (linnarssonlab.org, file format 2 and 3), read with h5py: a dense matrix of genes by cells, in tiles.

`row_attrs` are the genes, `col_attrs` the cells. anndata reads loom through loompy, whole; this needs neither.
"""

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from evae.data.reading.parts import Parts
from evae.data.reading.raw_counts import AUTO, SAMPLE, choose_counts, layers_of_counts
from evae.data.reading.stored_frame import StoredFrame
from evae.data.reading.stored_matrix import MAX_BLOCK_ENTRIES
from evae.models.contract_evae import EvaeError, near_matches

CELLS = ("CellID", "cell_id", "obs_names", "cell_names", "barcode", "barcodes")
GENES = ("Gene", "gene", "var_names", "gene_names", "Accession")


class LoomMatrix:
    """A matrix of genes by cells, of which cells are read; see `StoredMatrix` for what each name means."""

    encoding = "dense"

    def __init__(self, stored: h5py.Dataset, name: str):
        self._stored, self._name = stored, name
        self.shape = (int(stored.shape[1]), int(stored.shape[0]))

    def close(self) -> None:
        """Nothing is held."""

    def convert_to_csr(self) -> None:
        """It is read as it stands."""

    def block_end(self, start: int, chunk_size: int) -> int:
        """Where a block ends: whole tiles, so that none is read twice."""
        tile = self._stored.chunks[1] if self._stored.chunks else 1
        cells = max(1, min(chunk_size, 4 * MAX_BLOCK_ENTRIES // max(1, self.shape[1])))
        whole = (start + cells) // tile * tile
        return min(self.shape[0], whole if whole > start else start + cells)

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        try:
            return sp.csr_matrix(self._stored[:, start:stop].T)
        except OSError as error:
            raise EvaeError(
                f"{self._name} cannot be read at the cells {start} to {stop} ({error}); fetch the file anew."
            ) from error

    def sample(self, n: int) -> np.ndarray:
        cells = max(1, n // (2 * max(1, self.shape[1])))
        return np.concatenate([np.ravel(self._stored[:, :cells]), np.ravel(self._stored[:, -cells:])])


def is_loom(file: h5py.File) -> bool:
    return isinstance(file.get("matrix"), h5py.Dataset) and ("col_attrs" in file or "row_attrs" in file)


def open_loom(file: h5py.File, path: Path, layer: str | None) -> Parts:
    """A loom file; `layer` names one of its layers, as velocyto's `spliced`.

    Raises:
        EvaeError: no such layer, or no tables of genes and cells.
    """
    layers = sorted(file["layers"]) if "layers" in file else []
    places = {"X": "matrix", **{name: f"layers/{name}" for name in layers}}
    samples = {name: partial(LoomMatrix(file[place], place).sample, SAMPLE) for name, place in places.items()}
    layer, note = choose_counts(samples, path) if layer == AUTO else (layer or "X", "")
    if layer not in places:
        raise EvaeError(f"{path} has no layer '{layer}'. {near_matches(str(layer), layers)}")
    where = places[layer]
    tables = [_table(file, place, names, path) for place, names in (("col_attrs", CELLS), ("row_attrs", GENES))]
    matrix = LoomMatrix(file[where], f"the counts in {where} of {path}")
    return Parts(
        kind="loom",
        where=where,
        matrix=matrix,
        obs=tables[0],
        var=tables[1],
        layer=layer,
        layers=list(places),
        close=file.close,
        notes=[note] if note else [],
        counts_in=lambda: layers_of_counts(samples),
    )


def _table(file: h5py.File, place: str, names: tuple[str, ...], path: Path) -> StoredFrame:
    stored: Any = file.get(place)
    index = next((name for name in names if stored is not None and name in stored), None)
    if index is None:
        what, wanted = ("cells", names[0]) if place == "col_attrs" else ("genes", names[0])
        raise EvaeError(f"{path} does not name its {what}: {place} has no '{wanted}'; write it anew with loompy.")
    return StoredFrame(stored, f"{place} of {path}", index=index)
