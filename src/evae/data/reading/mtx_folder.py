"""A matrix in the text format of Matrix Market, with tables of its genes and cells beside it; read by scipy.

| writer | matrix | stored as | genes | cells |
| --- | --- | --- | --- | --- |
| Cell Ranger, STARsolo | matrix.mtx | genes x cells | features.tsv or genes.tsv: id, name, type | barcodes.tsv |
| Parse (split-pipe) | count_matrix.mtx, DGE.mtx | cells x genes | all_genes.csv | cell_metadata.csv, with labels |
| kallisto, bustools | cells_x_genes.mtx | cells x genes | *.genes.txt | *.barcodes.txt |

Which way a matrix lies is told by its shape; where there are as many cells as genes, by the writer. All may be gzipped
and have a prefix, as on GEO. The text is read once, into memory (some 30 bytes an entry), and kept as HDF5 in the
scratch folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from evae.common.files import atomic_write
from evae.common.messages import number_of
from evae.data.reading.parts import MemoryFrame, Parts
from evae.data.reading.raw_counts import refuse_layer
from evae.data.reading.stored_matrix import PARTS, StoredMatrix
from evae.data.reading.tenx_h5 import GENES, genes_among, left_out
from evae.models.contract_evae import EvaeError

MTX = (".mtx", ".mtx.gz")


@dataclass(frozen=True)
class Writer:
    """What a writer calls its files: endings of their names, before .gz; and whether a row is a cell."""

    name: str
    genes: tuple[str, ...]
    cells: tuple[str, ...]
    cells_first: bool


WRITERS = (
    Writer("Parse", ("all_genes.csv", "genes.csv"), ("cell_metadata.csv",), True),
    Writer("10x", ("features.tsv", "genes.tsv"), ("barcodes.tsv",), False),
    Writer("kallisto", ("genes.txt",), ("barcodes.txt",), True),
)


def find_mtx(path: Path) -> Path | None:
    """The matrix of a folder, or the file itself if it is one; None if it is none.

    Raises:
        EvaeError: a folder with several.
    """
    if path.is_file():
        return path if path.name.lower().endswith(MTX) else None
    found = sorted(p for p in path.glob("*") if p.name.lower().endswith(MTX)) if path.is_dir() else []
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:4])
        raise EvaeError(f"{path} holds several matrices ({names}); name one of these files.")
    return found[0] if found else None


def open_mtx(path: Path, mtx: Path, layer: str | None, scratch: Path | None) -> Parts:
    """The matrix with its tables.

    Args:
        path: what to call it in messages.
        mtx: the matrix.
        layer: None, or "X".
        scratch: folder that keeps the matrix as HDF5; in memory if None.

    Raises:
        EvaeError: a table is missing, or no shape fits them.
    """
    refuse_layer(layer, str(path))
    writer, genes_file, cells_file = _tables(mtx)
    var, types = _genes(genes_file)
    obs = _cells(cells_file)
    name = f"the counts in {mtx.name} of {path}"
    kept, columns = genes_among(types)
    shape = (len(obs), len(var))
    kept_file = None if scratch is None else scratch / "counts.h5"
    stored, close = _stored(mtx, writer, shape, kept_file)
    return Parts(
        kind=f"mtx of {writer.name}",
        where=mtx.name,
        matrix=StoredMatrix(stored, name, csr_shape=shape, columns=columns),
        obs=MemoryFrame(obs),
        var=MemoryFrame(var.iloc[kept]),
        layer="X",
        layers=["X"],
        close=close,
        notes=left_out(types, path),
    )


def _stored(
    mtx: Path, writer: Writer, shape: tuple[int, int], kept: Path | None
) -> tuple[Mapping[str, Any], Callable[[], None]]:
    """The parts of the CSR matrix (cells, genes), in memory or in the file `kept`, and what closes it."""
    if kept is not None and kept.is_file():
        file = h5py.File(kept, "r")
        return file, file.close
    counts = _read(mtx, writer, *shape)
    if kept is None:
        return {part: getattr(counts, part) for part in PARTS}, _none
    with atomic_write(kept) as temporary, h5py.File(temporary, "w") as made:
        for part in PARTS:
            made[part] = getattr(counts, part)
    return _stored(mtx, writer, shape, kept)


def _none() -> None:
    """Nothing is open."""


def _tables(mtx: Path) -> tuple[Writer, Path, Path]:
    """Who wrote a matrix, and its tables of genes and cells: those with the same prefix, else the only ones."""
    files = sorted(p for p in mtx.parent.iterdir() if p.is_file())
    stem = mtx.name.lower().removesuffix(".gz").removesuffix(".mtx")
    prefix = stem[: -len("matrix")] if stem.endswith("matrix") else stem
    for writer in WRITERS:
        genes, cells = (_of(files, names, prefix) for names in (writer.genes, writer.cells))
        if genes and cells:
            return writer, genes, cells
    raise EvaeError(
        f"{mtx} lacks the tables of its genes and cells; put features.tsv and barcodes.tsv (10x), or all_genes.csv and "
        "cell_metadata.csv (Parse), into its folder."
    )


def _of(files: list[Path], names: tuple[str, ...], prefix: str) -> Path | None:
    found = [p for p in files if p.name.lower().removesuffix(".gz").endswith(names)]
    exact = [p for p in found if prefix and p.name.lower().startswith(prefix)]
    plain = [p for p in found if p.name.lower().removesuffix(".gz") in names]
    return next((some[0] for some in (exact, plain, found) if len(some) == 1), None)


def _genes(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Names and ids of the genes, and the types of features."""
    if ".csv" in path.name.lower():  # Parse, with a header
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        names = table["gene_name"] if "gene_name" in table else table.iloc[:, 0]
        types = np.full(len(table), GENES, dtype=object)
        return table.rename(columns={"gene_id": "gene_ids"}).set_index(pd.Index(names, name=None)), types
    table = pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    names = table[1] if table.shape[1] > 1 else table[0]
    types = table[2].to_numpy(dtype=object) if table.shape[1] > 2 else np.full(len(table), GENES, dtype=object)
    return pd.DataFrame({"gene_ids": table[0].to_numpy()}, index=pd.Index(names, name=None)), types


def _cells(path: Path) -> pd.DataFrame:
    """The cells; Parse's table holds their labels too."""
    if ".csv" in path.name.lower():
        return pd.read_csv(path, index_col=0, dtype={0: str}).rename(index=str)
    names = pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)[0]
    return pd.DataFrame(index=pd.Index(names.to_numpy()))


def _read(mtx: Path, writer: Writer, n_cells: int, n_genes: int) -> sp.csr_matrix:
    """The counts (cells, genes), whichever way they lie."""
    try:
        stored = scipy.io.mmread(mtx)
    except (ValueError, EOFError, OverflowError) as error:
        raise EvaeError(f"{mtx} is damaged, or was not fetched to its end ({error}); fetch it anew.") from error
    either = {(n_cells, n_genes): True, (n_genes, n_cells): False}
    if stored.shape not in either:
        raise EvaeError(
            f"{mtx} is {stored.shape[0]:,} x {stored.shape[1]:,}, but the tables beside it name "
            f"{number_of(n_genes, 'gene')} and {number_of(n_cells, 'cell')}; put files of one sample together."
        )
    cells_first = writer.cells_first if n_cells == n_genes else either[stored.shape]
    return sp.csr_matrix(stored if cells_first else stored.T)
