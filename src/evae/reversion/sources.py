"""Embeddings that are computed elsewhere: in obsm of the screen, or in a file of many a format.

| file | what is read |
| --- | --- |
| .h5ad, .zarr | `obsm`: the key after a colon (FILE.h5ad:X_scGPT), else X_NAME or NAME whatever its case, else the only one there is; without obsm a dense X, which is how scGPT's `embed_data(return_new_adata=True)` writes |
| .parquet | columns `cell_id` and `embedding` (as `evae embed` writes), else a table: names, then numbers |
| .csv, .tsv | a table: cell names, then numbers |
| .npy, .npz | an array of (cells, features); of .npz the only array of two axes, with the only one of strings as names |

Cells are matched by name where the file has names, else by order. Files are read in chunks, tables and .npz whole.
"""  # noqa: E501

import csv
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from anndata.io import read_elem

from evae.common.messages import number_of
from evae.data.reading.anndata_counts import AnnDataCounts, Counts
from evae.data.reading.stored_frame import StoredFrame
from evae.models.contract_evae import EvaeError, near_matches

CHUNK_CELLS = 8_192
SUFFIXES = (".h5ad", ".zarr", ".parquet", ".csv", ".tsv", ".npy", ".npz")
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Embedding:
    """An embedding of the cells of a screen, read as a stream.

    Attributes:
        name: what to call it.
        width: numbers of a cell.
        n_cells: cells of the screen that it covers.
        blocks: gives pairs (indices of cells in the screen, vectors (cells, width)), each cell at most once.
        about: where it comes from, in words.
    """

    name: str
    width: int
    n_cells: int
    blocks: Callable[[], Blocks]
    about: str


@dataclass(frozen=True)
class Vectors:
    """Rows of numbers in the order of their file, with the cells' names where it has them."""

    n: int
    width: int
    chunks: Callable[[], Iterable[np.ndarray]]
    cell_ids: np.ndarray | None


def open_embedding(name: str, where: Any, source: Counts) -> Embedding:
    """Open a precomputed embedding.

    Args:
        name: what to call it; also how its obsm key is found.
        where: a file (see the module), an obsm key of the screen itself, or an array (cells, features).
        source: the screen.

    Raises:
        EvaeError: no such file or key, or no or ambiguous cells in common with the screen.
    """
    if isinstance(where, np.ndarray):
        vectors, about = _array(where), "an array"
    else:
        path, key = _split_key(str(where))
        if path.suffix in SUFFIXES:
            if not path.exists():
                raise EvaeError(f"no such file: {path}")
            vectors, about = _open_file(name, path, key), str(where)
        else:
            vectors, about = _obsm(source, str(where)), f"obsm['{where}'] of the screen"
    rows = _match(name, vectors, source)

    def blocks() -> Blocks:
        start = 0
        for chunk in vectors.chunks():
            own = rows[start : start + len(chunk)]
            yield own[own >= 0], chunk[own >= 0]
            start += len(chunk)

    return Embedding(name, vectors.width, int((rows >= 0).sum()), blocks, about)


def _split_key(where: str) -> tuple[Path, str | None]:
    path, colon, key = where.rpartition(":")
    return (Path(path), key) if colon and path.endswith((".h5ad", ".zarr")) else (Path(where), None)


def _match(name: str, vectors: Vectors, source: Counts) -> np.ndarray:
    """For every row of the embedding its cell in the screen, -1 where the screen has no such cell."""
    in_order = np.arange(source.n_cells)
    if vectors.cell_ids is None:
        if vectors.n != source.n_cells:
            raise EvaeError(
                f"embedding '{name}' has {number_of(vectors.n, 'row')} without cell names, the screen "
                f"{number_of(source.n_cells, 'cell')}; give one row a cell in the order of the screen, or a file with "
                "cell names."
            )
        return in_order
    own = source.cell_ids(0, source.n_cells).astype(str)
    theirs = vectors.cell_ids.astype(str)
    if len(own) == len(theirs) and (own == theirs).all():
        return in_order
    for ids, what in ((own, "the screen"), (theirs, f"embedding '{name}'")):
        if len(np.unique(ids)) < len(ids):
            raise EvaeError(f"cell names stand more than once in {what}, so cells cannot be matched; make them unique.")
    rows = pd.Index(own).get_indexer(pd.Index(theirs))
    if (rows < 0).all():
        raise EvaeError(
            f"embedding '{name}' and the screen have no cell name in common (such as '{theirs[0]}' and '{own[0]}'); "
            "write the embedding with the obs names of the screen."
        )
    return rows


def _open_file(name: str, path: Path, key: str | None) -> Vectors:
    try:
        if path.suffix == ".h5ad":
            return _annotated(name, path, h5py.File(path, "r"), key)
        if path.suffix == ".zarr":
            import zarr

            return _annotated(name, path, zarr.open_group(path, mode="r"), key)
        if path.suffix == ".parquet":
            return _parquet(path)
        if path.suffix in (".csv", ".tsv"):
            return _csv(path, "\t" if path.suffix == ".tsv" else ",")
        return _npz(path) if path.suffix == ".npz" else _array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EvaeError(f"embedding '{name}' cannot be read from {path} ({error}).") from error


def _annotated(name: str, path: Path, root: Any, key: str | None) -> Vectors:
    """An AnnData on disk, HDF5 or Zarr."""
    keys = list(root["obsm"]) if "obsm" in root else []
    wanted = [k for k in keys if k.lower() in (f"x_{name.lower()}", name.lower())]
    if key is not None and key not in keys:
        raise EvaeError(f"{path} has no obsm['{key}']. {near_matches(key, keys) if keys else 'It has no obsm at all.'}")
    chosen = key or (wanted[0] if wanted else keys[0] if len(keys) == 1 else None)
    if chosen is None and keys:
        raise EvaeError(f"{path} holds several embeddings ({', '.join(keys)}); name one: {name}={path}:{keys[0]}")
    if chosen is None and ("X" not in root or not hasattr(root["X"], "shape")):
        raise EvaeError(f"{path} has neither obsm nor a dense X; write the embedding to obsm['X_{name}'].")
    stored = root["X"] if chosen is None else root["obsm"][chosen]
    if not hasattr(stored, "shape"):  # a data frame or a sparse matrix
        stored = read_elem(stored)
        stored = stored.toarray() if hasattr(stored, "toarray") else np.asarray(stored)
    return _array(stored, StoredFrame(root["obs"], f"obs of {path}").index())


def _obsm(source: Counts, key: str) -> Vectors:
    if isinstance(source, AnnDataCounts):
        return _array(np.asarray(_known(key, source.adata.obsm)))
    with h5py.File(source.path, "r") as file:
        if "obsm" not in file:
            raise EvaeError(f"{source.path} has no obsm; give '{key}' as a file, such as NAME=FILE.h5ad.")
        stored = _known(key, file["obsm"])
        if not isinstance(stored, h5py.Dataset):
            return _array(np.asarray(read_elem(stored)))
    return _array(h5py.File(source.path, "r")["obsm"][key])


def _known(key: str, obsm: Any) -> Any:
    if key not in obsm:
        known = near_matches(key, list(obsm)) if len(obsm) else "It has no obsm at all."
        raise EvaeError(f"'{key}' is neither an obsm key of the screen nor a file of {', '.join(SUFFIXES)}. {known}")
    return obsm[key]


def _array(values: Any, cell_ids: np.ndarray | None = None) -> Vectors:
    """Anything with rows that can be sliced; memory maps and stored arrays stay on disk."""
    if len(values.shape) != 2 or values.dtype.kind not in "fiu":
        raise EvaeError(f"an embedding is numbers of shape (cells, features), not {values.dtype} of {values.shape}.")
    n, width = (int(s) for s in values.shape)

    def chunks() -> Iterator[np.ndarray]:
        for low in range(0, n, CHUNK_CELLS):
            yield np.asarray(values[low : low + CHUNK_CELLS])

    return Vectors(n, width, chunks, cell_ids)


def _table(frame: pd.DataFrame, path: Path) -> Vectors:
    numbers = frame.select_dtypes("number")
    if numbers.shape[1] < max(1, frame.shape[1]):
        raise EvaeError(f"{path} has columns that are not numbers; keep cell names and the embedding only.")
    return _array(numbers.to_numpy(), frame.index.to_numpy().astype(str))


def _csv(path: Path, separator: str) -> Vectors:
    """A table as text. Cell names are taken as they are written: pandas reads 000 as 0, 1e5 as a number, NA as none."""
    frame = pd.read_csv(path, sep=separator, index_col=0)
    with path.open(newline="") as file:
        names = [row[0] for row in csv.reader(file, delimiter=separator) if row][1:]
    if len(names) != len(frame):
        raise EvaeError(
            f"{path} has {number_of(len(frame), 'row')} of numbers and {number_of(len(names), 'cell name')}; write "
            "one row a cell."
        )
    return _table(frame.set_axis(names, axis=0), path)


def _parquet(path: Path) -> Vectors:
    file = pq.ParquetFile(path)
    if "embedding" not in file.schema_arrow.names:
        frame = file.read().to_pandas()
        named = [c for c in frame.columns if frame[c].dtype.kind not in "fiub"]
        return _table(frame.set_index(named[0]) if named else frame, path)
    ids = file.read(["cell_id"])["cell_id"].to_numpy().astype(str)
    first = next(file.iter_batches(1, columns=["embedding"]))
    width = len(first.column(0)[0])

    def chunks() -> Iterator[np.ndarray]:
        for batch in file.iter_batches(CHUNK_CELLS, columns=["embedding"]):
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

    return Vectors(len(ids), width, chunks, ids)


def _npz(path: Path) -> Vectors:
    arrays = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    numbers = [a for a in arrays if a.ndim == 2 and a.dtype.kind in "fiu"]
    names = [a for a in arrays if a.ndim == 1 and a.dtype.kind in "US"]
    if len(numbers) != 1 or len(names) > 1:
        raise EvaeError(f"{path} holds {len(numbers)} arrays of (cells, features); keep one, and one of names.")
    return _array(numbers[0], names[0].astype(str) if names else None)


def in_memory(name: str, rows: np.ndarray, vectors: np.ndarray, about: str) -> Embedding:
    """An embedding of some cells of the screen that is small enough to hold."""

    def blocks() -> Blocks:
        for low in range(0, len(rows), CHUNK_CELLS):
            yield rows[low : low + CHUNK_CELLS], vectors[low : low + CHUNK_CELLS]

    return Embedding(name, vectors.shape[1], len(rows), blocks, about)
