"""Whatever a user hands over as cells, as AnnData: the AnnData itself, or the path of an h5ad file."""

import warnings
from pathlib import Path
from typing import Any

import anndata as ad

from evae.models.contract_evae import EvaeError


def read_h5ad(path: Path, backed: bool = False) -> ad.AnnData:
    """Read an h5ad file, or open it with X left on disk.

    Raises:
        EvaeError: no such file, or not an h5ad file.
    """
    if not path.is_file():
        raise EvaeError(f"no such file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # duplicate names raise later, with the fix
            return ad.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:  # anndata raises whatever its readers raise; it is a damaged file all the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EvaeError(f"{path} is not a readable h5ad file ({reason}); write it with anndata.") from error


def as_anndata(cells: Any, what: str) -> ad.AnnData:
    """Cells as AnnData that can be sliced.

    Args:
        cells: an AnnData, returned as it is, or the path of an h5ad file. A part of a backed AnnData is read into
            memory, for anndata cannot take a part of a part from disk.
        what: what to call the cells in a message, such as "controls".

    Raises:
        EvaeError: something else, or a file that cannot be read.
    """
    if isinstance(cells, str | Path):
        return read_h5ad(Path(cells))
    if not isinstance(cells, ad.AnnData):
        kind = type(cells).__name__
        raise EvaeError(f"{what} must be an AnnData or the path of an h5ad file, not a {kind}; see anndata.AnnData.")
    return cells.to_memory() if cells.isbacked and cells.is_view else cells
