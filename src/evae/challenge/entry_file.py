"""An entry written block by block, so that memory does not grow with it: an h5ad file, packed as .vcc.

A .vcc is a tar of `meta.json` and `pred.h5ad.zst`, as `vcc prep` of vcc-cli 0.3 writes it. An entry of 360,000 cells
takes some 15 GB as h5ad, which is on the disk for a while.
"""

import json
import shutil
import tarfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from anndata.io import write_elem

from evae.challenge.lists import CONTEXT, MAX_COUNTS, MAX_STORED, TARGET, EntryPlan
from evae.common.files import atomic_write, explain_disk_errors
from evae.models.contract_evae import EvaeError

BYTES_STORED = 8  # of a stored entry: value and column
_CHUNK = 1 << 20
_COPY = 1 << 24


def write_entry(plan: EntryPlan, blocks: Iterable[sp.csr_matrix], out: Path) -> int:
    """Write an entry, whole or not at all.

    Args:
        plan: what it holds.
        blocks: its rows in order, raw counts (cells, genes).
        out: *.vcc or *.h5ad.

    Returns:
        its stored entries.

    Raises:
        EvaeError: the blocks hold what the challenge refuses, or the disk is full.
    """
    with atomic_write(out) as temporary, explain_disk_errors(str(out)):
        if out.suffix == ".h5ad":
            return _write_h5ad(plan, blocks, temporary)
        # a name that the next process removes, should this one be killed
        with TemporaryDirectory(prefix=f"{temporary.name}-", dir=out.parent) as folder:
            cells, packed, meta = (Path(folder) / name for name in ("pred.h5ad", "pred.h5ad.zst", "meta.json"))
            stored = _write_h5ad(plan, blocks, cells)
            with cells.open("rb") as source, pa.CompressedOutputStream(str(packed), "zstd") as target:
                shutil.copyfileobj(source, target, _COPY)
            cells.unlink()
            meta.write_text(json.dumps(_meta(plan, stored), sort_keys=True))
            with tarfile.open(temporary, "w") as tar:
                for path in (meta, packed):
                    tar.add(path, arcname=path.name, filter=_anonymous)
        return stored


def _meta(plan: EntryPlan, stored: int) -> dict[str, object]:
    facts = {"schema": 1, "nnz": stored, "n_obs": plan.n_cells, "n_vars": len(plan.genes), "contexts": plan.contexts}
    facts |= {"perts_fingerprint": plan.fingerprint, "written_by": f"evae {version('evae')}"}
    return facts if plan.panel_id is None else facts | {"panel_id": plan.panel_id}


def _write_h5ad(plan: EntryPlan, blocks: Iterable[sp.csr_matrix], path: Path) -> int:
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", _obs(plan))
        write_elem(file, "var", pd.DataFrame(index=pd.Index(plan.genes, dtype=object)))
        group = file.create_group("X")
        shape = np.array([plan.n_cells, len(plan.genes)])
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        ends = _write_rows(plan, blocks, group)
        group.create_dataset("indptr", data=ends)
        return int(ends[-1])


def _write_rows(plan: EntryPlan, blocks: Iterable[sp.csr_matrix], group: h5py.Group) -> np.ndarray:
    """Write values and columns; returns where each row ends, (cells + 1,)."""
    data, indices = (
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,))
        for name, dtype in (("data", np.float32), ("indices", np.int32))
    )
    pair = np.repeat(np.arange(len(plan.cells)), list(plan.cells.values()))  # of each row
    ends, counted, done, stored = [np.zeros(1, dtype=np.int64)], np.zeros(len(plan.cells)), 0, 0
    for block in blocks:
        block.sort_indices()
        _check(block, done)
        if stored + block.nnz > MAX_STORED:
            raise EvaeError(f"the entry has more than {MAX_STORED:,} stored counts; predict fewer expressed genes.")
        for part, values in ((data, block.data), (indices, block.indices)):
            part.resize((stored + block.nnz,))
            part[stored:] = values
        ends.append(stored + block.indptr[1:].astype(np.int64))
        stored += block.nnz
        np.add.at(counted, pair[done : done + block.shape[0]], np.asarray(block.sum(axis=1)).ravel())
        done += block.shape[0]
    if (counted == 0).any():
        context, target = list(plan.cells)[int(np.argmin(counted))]
        raise EvaeError(
            f"all predicted cells of {target} in {context} are without counts, which the challenge refuses; give a "
            "model that was trained longer."
        )
    return np.concatenate(ends)


def _obs(plan: EntryPlan) -> pd.DataFrame:
    repeats = list(plan.cells.values())
    columns = {
        name: pd.Categorical(np.repeat(np.array([pair[i] for pair in plan.cells], dtype=object), repeats))
        for i, name in ((1, TARGET), (0, CONTEXT))
    }
    return pd.DataFrame(columns, index=pd.Index([str(i) for i in range(plan.n_cells)], dtype=object))


def _check(block: sp.csr_matrix, first: int) -> None:
    """Raise unless a block holds what the challenge takes: whole, non-negative, not too many."""
    data = block.data
    if len(data) and not (np.isfinite(data).all() and data.min() >= 0 and (data == np.rint(data)).all()):
        raise EvaeError("the predictions hold values that are no raw counts; predict with a model of counts.")
    totals = np.asarray(block.sum(axis=1)).ravel()
    if len(totals) and totals.max() > MAX_COUNTS:
        cell = first + int(totals.argmax())
        raise EvaeError(
            f"cell {cell} has {totals.max():,.0f} counts, and the challenge takes {MAX_COUNTS:,}; leave out control "
            "cells with so many."
        )


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member
