"""The layout of anndata: `X`, `raw`, `layers`, `obs` and `var`, in an HDF5 file, a modality of one, or a Zarr store."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evae.data.reading.parts import Parts
from evae.data.reading.raw_counts import AUTO, SAMPLE, choose_counts, layers_of_counts
from evae.data.reading.stored_frame import StoredFrame
from evae.data.reading.stored_matrix import StoredMatrix
from evae.models.contract_evae import EvaeError, near_matches

RAW = (("raw/X", "raw/var"), ("raw.X", "raw.var"))  # the latter before anndata 0.7


def open_anndata(
    root: Any, path: Path, layer: str | None, scratch: Path | None, close: Callable[[], None], kind: str = "h5ad"
) -> Parts:
    """An AnnData on the disk.

    Args:
        root: the HDF5 or Zarr group that holds it.
        path: what to call it in messages.
        layer: None for `X`, "raw" for `raw/X`, "auto" for whichever holds counts, else the name of a layer.
        scratch: folder where a CSC matrix is converted to CSR; in memory if None.
        close: lets go of the file.
        kind: what it is.

    Raises:
        EvaeError: no such layer, or a matrix or table that is not whole.
    """
    samples = {
        name: partial(StoredMatrix(root[place], f"{place} of {path}").sample, SAMPLE)
        for name in _layers(root)
        for place, _ in [_locate(root, path, name)]
    }
    layer, note = choose_counts(samples, path) if layer == AUTO else (layer, "")
    where, var = _locate(root, path, layer)
    uns = root.get("uns")
    obs = StoredFrame(root["obs"], f"obs of {path}", uns)
    return Parts(
        kind=kind if not obs.is_old else f"{kind} before 0.7",
        where=where,
        matrix=StoredMatrix(root[where], f"the counts in {where} of {path}", scratch),
        obs=obs,
        var=StoredFrame(root[var], f"{var} of {path}", uns),
        layer=layer or "X",
        layers=list(samples),
        close=close,
        notes=[note] if note else [],
        counts_in=lambda: layers_of_counts(samples),
    )


def _layers(root: Any) -> list[str]:
    raw = ["raw"] if any(matrix in root and var in root for matrix, var in RAW) else []
    return [*(["X"] if "X" in root else []), *raw, *(sorted(root["layers"]) if "layers" in root else [])]


def _locate(root: Any, path: Path, layer: str | None) -> tuple[str, str]:
    """Where the matrix and its genes are."""
    if layer in (None, "X"):
        if "X" not in root:
            raise EvaeError(f"{path} has no X matrix; name a layer with counts.")
        return "X", "var"
    if layer == "raw":
        for matrix, var in RAW:
            if matrix in root and var in root:
                return matrix, var
        raise EvaeError(f"{path} has no counts under adata.raw; leave layer out, or name the one that holds them.")
    layers = list(root["layers"]) if "layers" in root else []
    if layer not in layers:
        known = near_matches(str(layer), layers) if layers else "The file has no layers; leave layer out."
        raise EvaeError(f"{path} has no layer '{layer}'. {known}")
    return f"layers/{layer}", "var"
