"""An AnnData in a Zarr store of format 2 or 3, sharded or not, as a folder or a zip file; read by `zarr`."""

from pathlib import Path
from zipfile import is_zipfile

from evae.common.messages import first_line
from evae.data.reading.anndata_layout import open_anndata
from evae.data.reading.other_formats import check_tables
from evae.data.reading.parts import Parts
from evae.models.contract_evae import EvaeError

MARKS = ("zarr.json", ".zgroup", ".zattrs")


def is_zarr(path: Path) -> bool:
    """Whether it is a Zarr store of whatever content."""
    if path.is_dir():
        return any((path / mark).is_file() for mark in MARKS)
    return path.name.lower().endswith((".zarr.zip", ".zip")) and is_zipfile(path)


def open_zarr(path: Path, layer: str | None, scratch: Path | None) -> Parts:
    """The AnnData of a store.

    Raises:
        EvaeError: no AnnData, or not a whole one.
    """
    import zarr  # slow to import, and not needed for other files
    from zarr.storage import ZipStore

    store = ZipStore(path, mode="r") if path.is_file() else path
    try:
        root = zarr.open_group(store, mode="r")
    except Exception as error:  # zarr raises whatever its stores and codecs raise
        raise EvaeError(f"{path} cannot be opened as a Zarr group ({first_line(error)}); write it anew.") from error
    if "obs" not in root and "var" not in root:
        held = ", ".join(list(root)[:4]) or "nothing"
        raise EvaeError(f"{path} is a Zarr store, but no AnnData (it holds {held}); name the store of an AnnData.")
    check_tables(root, str(path))
    return open_anndata(root, path, layer, scratch, root.store.close, "Zarr")
