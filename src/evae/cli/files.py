"""Files of the command line: h5ad in, results out whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evae.common.files import atomic_folder, atomic_write, check_room, explain_disk_errors
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd


def write_table(table: "pd.DataFrame", out: Path) -> None:
    """Write a table without its index, whole or not at all: parquet or tsv by the ending, else csv."""
    with explain_disk_errors(str(out)), atomic_write(out) as path:
        if out.suffix == ".parquet":
            table.to_parquet(path, index=False)
        else:
            table.to_csv(path, index=False, sep="\t" if out.suffix == ".tsv" else ",")


def need_cells(path: Path) -> None:
    """Raise `EvaeError` unless there is such a file or folder; its reader says whether it holds cells."""
    if not path.exists():
        raise EvaeError(f"no such file: {path}")


def need_file(path: Path) -> None:
    """Raise `EvaeError` unless there is such a file."""
    if path.is_dir():
        raise EvaeError(f"{path} is a folder; name a file.")
    if not path.is_file():
        raise EvaeError(f"no such file: {path}")


def need_folder(path: Path) -> None:
    """Raise `EvaeError` unless there is such a folder."""
    if not path.is_dir():
        raise EvaeError(f"no such folder: {path}")


def check_free(out: Path, overwrite: bool, option: str = "--out") -> None:
    """Raise `EvaeError` if writing `out`, which `option` names, would destroy something."""
    if out.is_dir():
        raise EvaeError(f"{out} is a folder; name a file.")
    if out.exists() and not overwrite:
        raise EvaeError(f"{out} exists; choose another {option}, or pass --overwrite.")
    check_room(out, 0)


def write_h5ad(adata: "ad.AnnData", out: Path) -> None:
    """Write an h5ad file, whole or not at all.

    Raises:
        EvaeError: the disk is full, or may not be written.
    """
    from anndata.io import write_elem

    from evae.common.hdf5 import writable_hdf5

    adata.strings_to_categoricals()  # as AnnData.write_h5ad does
    with explain_disk_errors(str(out)), atomic_write(out) as temporary, writable_hdf5(temporary) as file:
        write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
        if adata.raw is None:
            del file["raw"]  # which older versions of anndata cannot read


@contextmanager
def fresh_folder(out: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well.

    Args:
        out: the folder; may exist if it is empty, or, with `overwrite`, if it holds the file `marker`.
        marker: the file that tells our own results from a folder of something else.
        overwrite: replace earlier results.

    Raises:
        EvaeError: `out` is taken, or the disk is full or may not be written.
    """
    check_folder(out, marker, overwrite)
    with explain_disk_errors(str(out)), atomic_folder(out) as folder:
        yield folder


def check_folder(out: Path, marker: str, overwrite: bool) -> None:
    """Raise `EvaeError` if making the folder `out` anew would destroy something."""
    if out.exists() and not out.is_dir():
        raise EvaeError(f"{out} is a file; name a folder.")
    check_room(out, 0)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / marker).is_file():
        raise EvaeError(f"{out} holds other files; choose another --out.")
    if not overwrite:
        raise EvaeError(f"{out} exists; choose another --out, or pass --overwrite.")
