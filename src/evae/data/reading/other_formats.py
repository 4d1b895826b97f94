"""What a file or folder is that no reader takes, or that is not whole, and how it becomes an h5ad file.

Every recipe is one line for a shell, and needs no more than anndata unless it says so.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from evae.data.reading.stored_frame import as_text, columns_of
from evae.models.contract_evae import EvaeError

with suppress(ImportError):
    import hdf5plugin  # noqa: F401  # brings the filters of files that were compressed with it

HDF5_START = b"\x89HDF\r\n\x1a\n"
TABLES = {".csv": "", ".tsv": ", delimiter='\\t'", ".txt": ", delimiter='\\t'"}  # ending: what read_csv is told
BY_R = (".rds", ".rda", ".rdata")
PLUGIN_FILTERS = {32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"}
SHOWN = 4  # parts named in a message


def open_hdf5(path: Path) -> h5py.File:
    """Open an h5ad file for reading.

    Raises:
        EvaeError: no such file, or no HDF5 file; the message says what it is and what to do.
    """
    if path.is_dir():
        raise EvaeError(folder_instead(path))
    if not path.is_file():
        raise EvaeError(f"no such file: {path}")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise EvaeError(_file_instead(path, str(error))) from error


def check_layout(file: h5py.File, path: Path) -> None:
    """Raise `EvaeError` unless the file is laid out as h5ad, is whole, and the filters that it needs are there."""
    other = _other_layout(file, path)
    if other is not None:
        raise EvaeError(other)
    check_tables(file, str(path))
    check_filters(file, path)


def check_tables(root: Any, name: str) -> None:
    """Raise `EvaeError` where `obs` or `var` of an AnnData on the disk is not whole; `name` it in the message."""
    for table in ("obs", "var"):
        missing = _missing_part(root, table)
        if missing is not None:
            raise EvaeError(f"{name} has no {missing}: it was not written to its end; write it anew.")


def folder_instead(path: Path) -> str:
    """What a folder is that was given for an h5ad file, in one sentence with the way to one."""
    if (path / "dataset.json").is_file():
        return f"{path} is a dataset folder already, made by `evae prepare`; give an h5ad file here."
    return f"{path} is a folder without cells; name a file, or a folder that holds a Zarr store or a matrix.mtx."


def _file_instead(path: Path, reason: str) -> str:
    """What a file is that h5py cannot open."""
    with path.open("rb") as file:
        start = file.read(len(HDF5_START))
    if start == HDF5_START:
        return f"{path} is damaged, or was not written or fetched to its end ({reason}); fetch or write it anew."
    name = path.name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    if ending in TABLES:
        made = _command(f"anndata.io.read_csv('{path}'{TABLES[ending]})", path.with_name(f"{path.stem}.h5ad"))
        return f"{path} is a table; write it as h5ad, with .T before .write_h5ad if it has one row a gene: {made}"
    if ending in BY_R:
        return f"{path} holds objects of R; write them as h5ad in R, for example with anndataR's write_h5ad."
    return f"{path} is not a readable h5ad file ({reason}); write it with anndata."


def _other_layout(file: h5py.File, path: Path) -> str | None:
    """What an HDF5 file is that is no h5ad file; None for one that may be."""
    if "assays" in file and "meta.data" in file:
        return f"{path} is an h5Seurat file; write it as h5ad in R, for example with SeuratDisk's Convert."
    if not {"X", "layers", "obs", "var"} & set(file):
        held = f"it holds {', '.join(list(file)[:SHOWN])}" if len(file) else "it is empty"
        return f"{path} is an HDF5 file, but no h5ad file ({held}); write it with anndata."
    return None


def _missing_part(file: Any, table: str) -> str | None:
    """What of `obs` or `var` is missing where the writing of a file ended too early."""
    stored = file.get(table)
    if stored is None:
        return table
    if isinstance(stored, h5py.Dataset):
        return None
    by_anndata = as_text(file.attrs.get("encoding-type", "")) == "anndata"
    if by_anndata and "encoding-type" not in stored.attrs:  # which anndata writes last
        return f"whole {table}"
    missing = [column for column in columns_of(stored) if column not in stored]
    return f"'{missing[0]}' in {table}" if missing else None


def check_filters(file: h5py.Group, path: Path, parts: Iterable[str] = ("X", "raw", "layers", "obs", "var")) -> None:
    """Raise `EvaeError` where one of the parts was compressed by a filter that is not installed."""
    missing: set[int] = set()

    def look(_: str, stored: Any) -> None:
        if isinstance(stored, h5py.Dataset):
            made = stored.id.get_create_plist()
            used = (made.get_filter(i)[0] for i in range(made.get_nfilters()))
            missing.update(code for code in used if not h5py.h5z.filter_avail(code))

    for part in parts:
        stored = file.get(part)
        look(part, stored)
        if isinstance(stored, h5py.Group):
            stored.visititems(look)
    if missing:
        names = ", ".join(PLUGIN_FILTERS.get(code, f"HDF5 filter {code}") for code in sorted(missing))
        raise EvaeError(f"{path} is compressed with {names}, which is not installed: pip install hdf5plugin")


def _command(read: str, h5ad: Path) -> str:
    """A command that reads something and writes it as h5ad."""
    return f"python -c \"import anndata; {read}.write_h5ad('{h5ad}')\""
