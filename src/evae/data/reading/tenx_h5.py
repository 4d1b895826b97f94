"""The `.h5` of Cell Ranger: a sparse matrix of features by barcodes, stored barcode by barcode, so row by row for us.

Version 3 and on has one group `matrix` with `features` of several types, of which genes are kept; version 2 has a
group for each genome. The labels of cells are not in it; they come as a table (`--obs`).
"""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from evae.common.messages import number_of
from evae.data.reading.parts import MemoryFrame, Parts
from evae.data.reading.raw_counts import refuse_layer
from evae.data.reading.stored_matrix import StoredMatrix
from evae.models.contract_evae import EvaeError

GENES = "Gene Expression"


def is_tenx(file: h5py.File) -> bool:
    return bool(_groups(file))


def open_tenx(file: h5py.File, path: Path, layer: str | None) -> Parts:
    """The genes of a file of Cell Ranger.

    Raises:
        EvaeError: a layer is named, the file lacks a part, or it holds several genomes of version 2.
    """
    refuse_layer(layer, f"{path} is a file of 10x, which")
    groups = _groups(file)
    if len(groups) > 1:
        raise EvaeError(
            f"{path} holds several genomes ({', '.join(groups)}), each with its own cells; write one of them as h5ad, "
            "for example with scanpy.read_10x_h5(..., genome=...)."
        )
    group, name = file[groups[0]], f"the counts in {groups[0]} of {path}"
    missing = [part for part in ("data", "indices", "indptr", "shape", "barcodes") if part not in group]
    if missing:
        raise EvaeError(f"{name} lack {missing[0]}: the file was not written to its end; fetch it anew.")
    table, types = _features(group)
    kept, columns = genes_among(types)
    n_features, n_cells = (int(n) for n in group["shape"][:2])
    matrix = StoredMatrix(group, name, csr_shape=(n_cells, n_features), columns=columns)
    return Parts(
        kind="10x h5",
        where=groups[0],
        matrix=matrix,
        obs=MemoryFrame(pd.DataFrame(index=pd.Index(_texts(group["barcodes"])))),
        var=MemoryFrame(table.iloc[kept]),
        layer="X",
        layers=["X"],
        close=file.close,
        notes=left_out(types, path),
    )


def genes_among(types: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Places of the genes among features, all where no type says gene; and the columns to keep, None for all."""
    genes = np.flatnonzero(types == GENES)
    kept = genes if len(genes) else np.arange(len(types))
    return kept, kept if len(kept) < len(types) else None


def left_out(types: np.ndarray, path: Path) -> list[str]:
    """A sentence on features that are no genes, where there are genes too."""
    if not (types == GENES).any() or (types == GENES).all():
        return []
    others = pd.Series(types[types != GENES]).value_counts()
    return [
        f"{path}: left out are " + ", ".join(f"{number_of(n, 'feature')} of type {kind}" for kind, n in others.items())
    ]


def _groups(file: h5py.File) -> list[str]:
    """The groups that hold a matrix."""
    return [
        key
        for key in file
        if isinstance(file[key], h5py.Group)
        and "barcodes" in file[key]
        and ("features" in file[key] or "genes" in file[key])
    ]


def _features(group: h5py.Group) -> tuple[pd.DataFrame, np.ndarray]:
    """Names and ids of the features, and their types."""
    if "features" in group:
        stored = group["features"]
        ids, names = _texts(stored["id"]), _texts(stored["name"])
        types = _texts(stored["feature_type"]) if "feature_type" in stored else np.full(len(ids), GENES, dtype=object)
    else:
        ids, names = _texts(group["genes"]), _texts(group["gene_names"])
        types = np.full(len(ids), GENES, dtype=object)
    return pd.DataFrame({"gene_ids": ids}, index=pd.Index(names)), types


def _texts(stored: h5py.Dataset) -> np.ndarray:
    return np.array([t.decode() if isinstance(t, bytes) else str(t) for t in stored[()]], dtype=object)
