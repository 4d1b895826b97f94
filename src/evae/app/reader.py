"""Reads an uploaded file in a process of its own, which the app starts, bounds and outlives.

python -m evae.app.reader FILE OPTIONS, with the options as JSON. On standard output: the control cells (see `packed`).
On standard error, with exit code 2: one line that says what is wrong with the file.

A file from a browser is not trusted. HDF5 can point at other files of the machine (external links, external storage,
virtual datasets); such a file is refused before anything of it is read. Memory is bounded, so that a small file that
unpacks to a huge one ends this process and not the app.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
from safetensors.numpy import load, save

from evae.app.controls import LabelColumns, controls_of
from evae.common.messages import first_line
from evae.models.contract_evae import EvaeError

FAULT = 2
_PARTS = ("data", "indices", "indptr")


def packed(cells: ad.AnnData, notes: list[str]) -> bytes:
    """Cells as safetensors: the counts, and names and notes as JSON."""
    said = {
        "genes": list(cells.var_names),
        "ensembl_ids": cells.var["ensembl_id"].tolist(),
        "cell_type": cells.obs["cell_type"].tolist() if "cell_type" in cells.obs else None,
        "notes": notes,
    }
    counts = sp.csr_matrix(cells.X, dtype=np.float32)
    parts = {name: np.ascontiguousarray(getattr(counts, name)) for name in _PARTS}
    return save(parts | {"said": np.frombuffer(json.dumps(said).encode(), np.uint8)})


def unpacked(content: bytes) -> tuple[ad.AnnData, list[str]]:
    """The cells and notes of `packed`."""
    parts = load(content)
    said: dict[str, Any] = json.loads(parts.pop("said").tobytes())
    n_cells = len(parts["indptr"]) - 1
    counts = sp.csr_matrix(tuple(parts[name] for name in _PARTS), shape=(n_cells, len(said["genes"])))
    obs = pd.DataFrame(index=[str(i) for i in range(n_cells)])
    if said["cell_type"] is not None:
        obs["cell_type"] = said["cell_type"]
    var = pd.DataFrame({"ensembl_id": said["ensembl_ids"]}, index=said["genes"])
    return ad.AnnData(counts, obs=obs, var=var), said["notes"]


def check_alone(path: Path) -> None:
    """Raise `EvaeError` unless this is an HDF5 file whose content lies in the file itself."""
    if not h5py.is_hdf5(path):
        raise EvaeError(f"{path} is no h5ad file; write your cells with adata.write_h5ad('cells.h5ad').")

    def elsewhere(name: str, link: Any) -> str | None:  # an error raised in here would come out as a SystemError
        if isinstance(link, h5py.ExternalLink):
            return name
        entry = file[name] if isinstance(link, h5py.HardLink) else None
        return name if isinstance(entry, h5py.Dataset) and (entry.is_virtual or entry.external) else None

    with h5py.File(path) as file:
        name = file.visititems_links(elsewhere)
    if name is not None:
        raise EvaeError(f"{path} keeps '{name}' in another file; write your cells anew with adata.write_h5ad.")


def bound_memory(n_bytes: int) -> None:
    """Let this process take so much more memory, and no more; as far as the system can (Linux does)."""
    most = psutil.Process().memory_info().vms + n_bytes
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ValueError, OSError):  # macOS; there the time limit bounds it alone
        return


def main(path: Path, options: dict[str, Any]) -> None:
    """Read one file; `options` are `memory` (bytes), `most` (cells) and `columns` (of `LabelColumns`)."""
    bound_memory(options["memory"])
    try:
        check_alone(path)
        found = packed(*controls_of(path, LabelColumns(**options["columns"]), options["most"]))
    except EvaeError as error:
        said = str(error)
    except MemoryError:
        said = f"{path} takes too much memory to read; give fewer cells, such as control cells only."
    except Exception as error:  # of a file that is damaged in a way that no check knows
        said = f"{path} cannot be read ({first_line(error)}); write your cells anew with adata.write_h5ad."
    else:
        sys.stdout.buffer.write(found)
        return
    print(" ".join(said.split()), file=sys.stderr)
    raise SystemExit(FAULT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
