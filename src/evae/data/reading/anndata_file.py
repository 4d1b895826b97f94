"""Whatever a user hands over as cells, as AnnData: the AnnData itself, or the path of a file of them."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import scipy.sparse as sp

from evae.common.logs import logger
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.raw_counts import AUTO, choose_counts, values_of
from evae.data.reading.stored_frame import LEVELS
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    import anndata as ad  # 26 MB, which files do without

LOG = logger(__name__)

READ_CELLS = 8_192  # cells read at once


def read_h5ad(path: str | Path, layer: str | None = None, needed: tuple[str | None, ...] = ()) -> "ad.AnnData":
    """The raw counts of an h5ad file in memory, with the columns of its cells and genes.

    What else the file holds is not read, so that it does not matter whether it could be.

    Args:
        path: the file.
        layer: None for `X`, "raw", "auto" for whichever holds raw counts, or the name of a layer; it becomes `X`.
        needed: obs columns that must be readable, where the file has them; None among them is passed over. Of the
            others those that cannot be read are left out with a warning.

    Raises:
        EvaeError: no such file or layer, not an h5ad file, or the values are not raw counts.
    """
    with closing(FileCounts(path, layer)) as source:
        return _annotated(source, needed, np.arange(source.n_cells))


def read_chosen(source: FileCounts, rows: np.ndarray, needed: tuple[str | None, ...] = ()) -> "ad.AnnData":
    """As `read_h5ad`, of the cells `rows` (indices, sorted) only."""
    return _annotated(source, needed, rows)


def as_anndata(cells: Any, what: str, layer: str | None = None, needed: tuple[str | None, ...] = ()) -> "ad.AnnData":
    """Cells as AnnData that can be sliced, with the values that are asked for in X.

    Args:
        cells: an AnnData, returned as it is where its X is asked for, or the path of a file of them. A part of a backed
            AnnData is read into memory, for anndata cannot take a part of a part from disk.
        what: what to call the cells in a message, such as "the controls".
        layer: None for `X`, "raw", "auto" for whichever holds raw counts, or the name of a layer.
        needed: obs columns that must be readable; None among them is passed over.

    Raises:
        EvaeError: something else, a file that cannot be read, no such layer, or a file that anndata opens for what it
            is not.
    """
    if isinstance(cells, str | Path):
        return read_h5ad(cells, layer, needed)
    import anndata as ad

    if not isinstance(cells, ad.AnnData):
        kind = type(cells).__name__
        raise EvaeError(f"{what} must be an AnnData or the path of a file of them, not a {kind}; see anndata.AnnData.")
    if cells.isbacked:
        if not cells.file.is_open:  # reading a part of it into memory closes the file
            cells.file.open()
        for key in needed:
            check_names(cells, key)
        if "mod" in cells.file:
            names = ", ".join(cells.file["mod"])
            raise EvaeError(
                f"{what} come from {cells.filename}, which holds several modalities ({names}), and anndata takes it "
                f"for one AnnData of all; open one: anndata.io.read_elem(h5py.File('{cells.filename}')['mod/NAME'])."
            )
        if cells.is_view:
            cells = cells.to_memory()
    return cells if layer is None else _with_layer(cells, what, layer)


def check_names(cells: "ad.AnnData", key: str | None) -> None:
    """Raise `EvaeError` where anndata read an obs column of a backed AnnData as numbers whose names stand in the file.

    SeuratDisk writes factors so. Of cells in memory nothing tells it any more.
    """
    stored = cells.file["obs"] if cells.isbacked and key in cells.obs else None
    if isinstance(stored, h5py.Group) and key in stored.get(LEVELS, ()) and cells.obs[key].dtype.kind in "iu":
        raise EvaeError(
            f"{cells.filename} stores obs column '{key}' as SeuratDisk does, of which anndata reads the numbers and "
            "not the names; give the path of the file instead."
        )


def _with_layer(cells: "ad.AnnData", what: str, layer: str) -> "ad.AnnData":
    if layer == AUTO:
        layer = _layer_of_counts(cells, what)
    if layer == "X":
        return cells
    if layer == "raw":
        if cells.raw is None:
            raise EvaeError(f"{what} have no raw counts under adata.raw.")
        matrix, var = cells.raw.X, cells.raw.var
    elif layer in cells.layers:
        matrix, var = cells.layers[layer], cells.var
    else:
        raise EvaeError(f"there is no layer '{layer}'; there are {', '.join(cells.layers) or 'none'}.")
    import anndata as ad

    return ad.AnnData(matrix.to_memory() if hasattr(matrix, "to_memory") else matrix, obs=cells.obs, var=var)


def _layer_of_counts(cells: "ad.AnnData", what: str) -> str:
    held = {"X": cells.X, "raw": None if cells.raw is None else cells.raw.X, **dict(cells.layers)}
    samples = {name: partial(values_of, matrix) for name, matrix in held.items() if matrix is not None}
    layer, note = choose_counts(samples, what)
    if note:
        LOG.warning(f"note: {note}")
    return layer


def _annotated(source: FileCounts, needed: tuple[str | None, ...], rows: np.ndarray) -> "ad.AnnData":
    obs = source.obs
    for key in needed:
        if key is not None and key in obs:
            obs[key]  # raises where it cannot be read
    blocks = []
    for first, last in source.ranges(READ_CELLS):
        own = rows[(rows >= first) & (rows < last)] - first
        if len(own):
            blocks.append(source.block(first, last)[own])
    counts = sp.vstack(blocks, format="csr").astype(np.float32)
    import anndata as ad

    return ad.AnnData(counts, obs=obs.frame().iloc[rows], var=source.var.frame())
