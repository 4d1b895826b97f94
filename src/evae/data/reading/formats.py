"""Which format a file or folder is in, and its reader.

| what | is read by |
| --- | --- |
| `.h5ad` of anndata since 0.5 and of writers in R and Julia | `anndata_layout` |
| an AnnData in a Zarr store, of Zarr format 2 or 3, a folder or zipped | `zarr_store` |
| `.h5mu`, the modality of RNA | `h5mu` |
| `.loom` | `loom` |
| `.h5` of Cell Ranger, version 2 and on | `tenx_h5` |
| a SOMA experiment, as of CELLxGENE's Census | `soma` |
| folders with a `.mtx` of 10x, STARsolo, Parse or kallisto | `mtx_folder` |
| any of these files, gzipped as a whole | `gzipped`, then the above |

What else a file may be is named by `other_formats`, with the way to one of these.
"""

from pathlib import Path

import h5py

from evae.data.reading.anndata_layout import open_anndata
from evae.data.reading.gzipped import is_gzipped, unpacked
from evae.data.reading.h5mu import open_h5mu
from evae.data.reading.loom import is_loom, open_loom
from evae.data.reading.mtx_folder import find_mtx, open_mtx
from evae.data.reading.other_formats import check_filters, check_layout, folder_instead, open_hdf5
from evae.data.reading.parts import Parts
from evae.data.reading.soma import is_soma, open_soma
from evae.data.reading.spool import is_spool, open_spool
from evae.data.reading.tenx_h5 import is_tenx, open_tenx
from evae.data.reading.zarr_store import is_zarr, open_zarr
from evae.models.contract_evae import EvaeError


def open_parts(path: Path, layer: str | None, scratch: Path | None) -> Parts:
    """Open a file or folder by what it holds, whatever its name.

    Raises:
        EvaeError: there is none, of no known format, not whole, or without the layer.
    """
    if is_spool(path):
        return open_spool(path, layer)
    if is_zarr(path):
        return open_zarr(path, layer, scratch)
    if is_soma(path):
        return open_soma(path, layer)
    if (mtx := find_mtx(path)) is not None:
        return open_mtx(path, mtx, layer, scratch)
    if path.is_dir():
        raise EvaeError(folder_instead(path))
    if not is_gzipped(path):
        return _open_hdf5(open_hdf5(path), path, layer, scratch)
    file, remove = unpacked(path, scratch)
    try:
        parts = _open_hdf5(open_hdf5(file), path, layer, scratch)
    except EvaeError:
        remove()
        raise
    parts.kind, close = f"gzipped {parts.kind}", parts.close

    def close_and_remove() -> None:
        close()
        remove()

    parts.close = close_and_remove
    return parts


def _open_hdf5(file: h5py.File, path: Path, layer: str | None, scratch: Path | None) -> Parts:
    try:
        if "mod" in file:
            return open_h5mu(file, path, layer, scratch)
        if is_loom(file) or is_tenx(file):
            check_filters(file, path, file)
            return open_loom(file, path, layer) if is_loom(file) else open_tenx(file, path, layer)
        check_layout(file, path)
        return open_anndata(file, path, layer, scratch, file.close)
    except EvaeError:
        file.close()
        raise
