"""The RNA modality of an h5mu file (mudata), with the labels of its cells, wherever these stand.

mudata keeps labels in the `obs` of the modality, in that of the whole file, or there as `rna:LABEL`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from evae.data.reading.anndata_layout import open_anndata
from evae.data.reading.other_formats import check_filters, missing_part
from evae.data.reading.parts import Frame, Parts
from evae.data.reading.stored_frame import StoredFrame
from evae.models.contract_evae import EvaeError

OF_RNA = ("rna", "gex", "gene expression", "transcriptome")  # names of the modality, without case
CHOICE = "mod/"


class WholeObs(Mapping[str, Any]):
    """The obs of a modality; the columns that it lacks come from the obs of the whole file, by the names of cells."""

    def __init__(self, own: Frame, whole: Frame, modality: str):
        self._own, self._whole, self._modality = own, whole, modality
        names = {c.removeprefix(f"{modality}:"): c for c in whole if ":" not in c or c.startswith(f"{modality}:")}
        self._more = {name: column for name, column in names.items() if name not in own}
        self._rows: np.ndarray | None = None

    def index(self, rows: slice = slice(None)) -> np.ndarray:
        return self._own.index(rows)

    def frame(self) -> pd.DataFrame:
        return self._own.frame().assign(**{column: self[column] for column in self._more})

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._more

    def __contains__(self, column: object) -> bool:
        return column in self._own or column in self._more

    def __len__(self) -> int:
        return len(list(self))

    def __getitem__(self, column: str) -> Any:
        if column in self._own:
            return self._own[column]
        if self._rows is None:
            self._rows = pd.Index(self._whole.index()).get_indexer(pd.Index(self._own.index()))
        values = pd.Series(self._whole[self._more[column]])
        return values.reindex(self._rows).array  # -1 is no row, so missing


def open_h5mu(file: h5py.File, path: Path, layer: str | None, scratch: Path | None) -> Parts:
    """The modality of RNA.

    Args:
        layer: as of an h5ad file; "mod/NAME" names the modality, "mod/NAME/LAYER" its layer too.

    Raises:
        EvaeError: it is not clear which modality holds the RNA, or there is none of this name.
    """
    name, layer = _chosen(file, path, layer)
    root = file["mod"][name]
    for table in ("obs", "var"):
        if (missing := missing_part(root, table)) is not None:
            raise EvaeError(f"mod/{name} of {path} has no {missing}: it was not written to its end; write it anew.")
    check_filters(root, path)
    parts = open_anndata(root, path, layer, scratch, file.close, "h5mu")
    parts.where = f"mod/{name}/{parts.where}"
    counts_in = parts.counts_in
    parts.counts_in = lambda: [f"{CHOICE}{name}/{found}" for found in counts_in()]
    parts.layer = f"{CHOICE}{name}/{parts.layer}"
    if "obs" in file:
        parts.obs = WholeObs(parts.obs, StoredFrame(file["obs"], f"obs of {path}"), name)
    return parts


def _chosen(file: h5py.File, path: Path, layer: str | None) -> tuple[str, str | None]:
    """The modality, and its layer."""
    modalities = list(file["mod"])
    if layer is not None and layer.startswith(CHOICE):
        name, _, rest = layer.removeprefix(CHOICE).partition("/")
        if name not in modalities:
            raise EvaeError(f"{path} has no modality '{name}'; it has {', '.join(modalities)}.")
        return name, rest or None
    of_rna = [name for name in modalities if name.lower() in OF_RNA] if len(modalities) > 1 else modalities
    if len(of_rna) != 1:
        raise EvaeError(
            f"{path} holds several modalities ({', '.join(modalities)}), and none or several of them are called rna; "
            f'say which holds the RNA: layer="{CHOICE}{modalities[0]}".'
        )
    return of_rna[0], layer
