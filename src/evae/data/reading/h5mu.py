"""The RNA modality of an h5mu file (mudata), with the labels of its cells, wherever these stand.

mudata keeps labels in the `obs` of the modality, in that of the whole file, or there as `rna:LABEL`.
"""

from pathlib import Path

import h5py

from evae.data.reading.anndata_layout import open_anndata
from evae.data.reading.joined_frame import JoinedFrame
from evae.data.reading.other_formats import check_filters, check_tables
from evae.data.reading.parts import Parts
from evae.data.reading.stored_frame import StoredFrame
from evae.models.contract_evae import EvaeError

OF_RNA = ("rna", "gex", "gene expression", "transcriptome")  # names of the modality, without case
CHOICE = "mod/"


def open_h5mu(file: h5py.File, path: Path, layer: str | None, scratch: Path | None) -> Parts:
    """The modality of RNA.

    Args:
        layer: as of an h5ad file; "mod/NAME" names the modality, "mod/NAME/LAYER" its layer too.

    Raises:
        EvaeError: it is not clear which modality holds the RNA, or there is none of this name.
    """
    name, layer = _chosen(file, path, layer)
    root = file["mod"][name]
    check_tables(root, f"mod/{name} of {path}")
    check_filters(root, path)
    parts = open_anndata(root, path, layer, scratch, file.close, "h5mu")
    parts.where = f"mod/{name}/{parts.where}"
    counts_in = parts.counts_in
    parts.counts_in = lambda: [f"{CHOICE}{name}/{found}" for found in counts_in()]
    parts.layer = f"{CHOICE}{name}/{parts.layer}"
    if "obs" in file:
        whole = StoredFrame(file["obs"], f"obs of {path}")
        more = {c.removeprefix(f"{name}:"): c for c in whole if ":" not in c or c.startswith(f"{name}:")}
        parts.obs = JoinedFrame(parts.obs, whole, {new: c for new, c in more.items() if new not in parts.obs})
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
