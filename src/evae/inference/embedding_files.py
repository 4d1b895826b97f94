"""An h5ad file of counts becomes a file of embeddings, in bounded memory, resumable, on one process or several."""

import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from anndata.io import write_elem

from evae.common.cluster import current_cluster
from evae.common.digests import file_stamp, weights_digest
from evae.common.files import atomic_write, check_room, explain_disk_errors, remove
from evae.common.hdf5 import writable_hdf5
from evae.common.logs import logger
from evae.common.progress import progress_bar
from evae.data.reading.file_counts import FileCounts
from evae.inference.checkpoint import Checkpoint
from evae.inference.embedding import CellEncoder
from evae.inference.embedding_parts import MANIFEST, EmbeddingParts
from evae.inference.workers import EmbeddedCells, ModelPlace, embed_on_worker, embed_part
from evae.models.contract_evae import EvaeError

LOG = logger(__name__)

PART_CELLS = 16_384
KEY = "X_evae"


@dataclass(frozen=True)
class EmbeddedFile:
    """What `embed_file` did.

    Attributes:
        path: the file, or the folder of a Zarr store.
        n_cells: cells in it.
        width: numbers of a cell.
        coverage: share of the model's gene panel, 0 to 1, that the cells measure.
        n_empty: cells without counts over the panel; their rows are NaN.
        n_resumed: cells that an earlier, stopped run had embedded already.
    """

    path: Path
    n_cells: int
    width: int
    coverage: float
    n_empty: int
    n_resumed: int


def embed_file(
    checkpoint: Checkpoint,
    file: str | Path,
    out: str | Path,
    kind: str = "latents",
    *,
    layer: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    part_cells: int = PART_CELLS,
    progress: bool = True,
) -> EmbeddedFile | None:
    """Embed all cells of an h5ad file.

    Under `torchrun` or `accelerate launch` every process embeds a contiguous share of the cells. Whatever the number
    of processes, and however often the run was killed and started again, the numbers are the same.

    Args:
        checkpoint: a loaded tokenizer or prior.
        file: h5ad file of raw counts.
        out: FILE.h5ad, a copy of the input with `obsm["X_evae"]`; FILE.zarr, an AnnData of obs and
            `obsm["X_evae"]` only; or FILE.parquet, columns `cell_id` and `embedding`.
        kind: "latents", "pooled" or "codes".
        layer: layer of raw counts, or "raw"; X if None.
        device: where to compute; a GPU if there is one, if None. With several processes each takes its own.
        overwrite: replace `out` if it exists.
        part_cells: cells that are stored, and redone after a kill, together.
        progress: show a progress bar.

    Returns:
        What was done; None on all processes but the first.

    Raises:
        EvaeError: an unreadable file, counts that are not raw, too little gene coverage, or `out` is taken.
    """
    out = Path(out)
    with ExitStack() as stack:
        write = _writer(out, overwrite)
        stack.push(partial(_remove_unclaimed, _parts_folder(out)))
        source = FileCounts(file, layer, _parts_folder(out))  # what is unpacked or converted lies with the parts
        stack.callback(source.close)
        if out.suffix == ".h5ad" and source.kind != "h5ad":
            raise EvaeError(f"{source.path} {_no_copy(source.kind)}")
        state = PartialState(cpu=not torch.cuda.is_available()) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        rank, n_ranks = (state.process_index, state.num_processes) if state else (0, 1)
        encoder = CellEncoder.align(checkpoint, source, kind, state.device if state and device is None else device)
        parts = EmbeddingParts(_parts_folder(out), source.n_cells, encoder.width, part_cells)
        stack.enter_context(explain_disk_errors(str(out), "give the same command again: it goes on where it stopped"))
        if rank == 0:
            for note in source.notes:
                LOG.warning(f"note: {note}")
            check_room(out, _room(out, source, parts))
            parts.claim(_identity(checkpoint, source, kind, layer))
            source.convert_to_csr()  # for all processes, before they read
        if state:
            state.wait_for_everyone()
        own = range(len(parts) * rank // n_ranks, len(parts) * (rank + 1) // n_ranks)
        try:
            n_resumed = _embed_parts(encoder, source, layer, parts, own, progress and rank == 0)
        except EvaeError:  # the file is at fault; once it is fixed these parts are of another file
            if n_ranks == 1:
                remove(parts.folder)
            raise
        if state:
            state.wait_for_everyone()
        if rank:
            return None
        with atomic_write(out) as temporary:
            n_empty = write(source, parts, encoder.facts(), temporary)
        remove(parts.folder)
    return EmbeddedFile(out, source.n_cells, encoder.width, encoder.coverage, n_empty, n_resumed)


def _embed_parts(
    encoder: CellEncoder, source: FileCounts, layer: str | None, parts: EmbeddingParts, own: range, progress: bool
) -> int:
    """Embed the parts `own` that are not on disk yet; returns how many cells were."""
    missing = [part for part in own if not parts.is_done(part)]
    cells = {part: parts.bounds(part)[1] - parts.bounds(part)[0] for part in own}
    cluster = current_cluster()
    with progress_bar(progress) as bar:
        advance = bar.start("embedding cells", sum(cells[part] for part in missing))
        if cluster is None:
            for part in missing:
                embed_part(encoder, source, parts, part, advance)
        else:
            elsewhere = replace(parts, folder=parts.folder.resolve())
            asked = EmbeddedCells(source.path.resolve(), layer, elsewhere.folder, encoder.kind, elsewhere)
            place = ModelPlace.of(encoder.checkpoint, encoder.device)
            done = cluster.in_order(embed_on_worker, ((place, asked, part) for part in missing))
            for part, _ in zip(missing, done, strict=True):
                advance(cells[part])
    return sum(cells.values()) - sum(cells[part] for part in missing)


def _room(out: Path, source: FileCounts, parts: EmbeddingParts) -> int:
    """Bytes that are still to be written, as far as that can be known: what is compressed is left out."""
    missing = sum(parts.n_bytes(part) for part in range(len(parts)) if not parts.is_done(part))
    if out.suffix != ".h5ad":
        return missing
    return missing + source.path.stat().st_size + sum(map(parts.n_bytes, range(len(parts))))


def _identity(checkpoint: Checkpoint, source: FileCounts, kind: str, layer: str | None) -> dict[str, object]:
    return {
        "model": weights_digest(checkpoint.tokenizer),
        "panel": checkpoint.processor.genes,
        "file": file_stamp(source.path),
        "layer": layer,
        "kind": kind,
    }


Writer = Callable[[FileCounts, EmbeddingParts, dict[str, object], Path], int]


def _writer(out: Path, overwrite: bool) -> Writer:
    writers: dict[str, Writer] = {".h5ad": _write_h5ad, ".zarr": _write_zarr, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise EvaeError(f"{out} is of no known kind; name an .h5ad, a .zarr or a .parquet file.")
    if out.is_dir() and not (out.suffix == ".zarr" and any((out / f).is_file() for f in (".zgroup", "zarr.json"))):
        raise EvaeError(f"{out} is a folder; name a file.")
    if out.exists() and not overwrite:
        raise EvaeError(f"{out} exists; choose another output, or pass overwrite=True.")
    return writers[out.suffix]


def _write_h5ad(source: FileCounts, parts: EmbeddingParts, facts: dict[str, object], temporary: Path) -> int:
    """A copy of the file with the embedding in obsm."""
    shutil.copyfile(source.path, temporary)
    n_empty = 0
    with writable_hdf5(temporary, new=False) as file:
        for group in ("obsm", "uns"):
            if group not in file:
                file.create_group(group).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        if KEY in file["obsm"]:
            del file["obsm"][KEY]
        shape = (parts.n_cells, parts.width)
        data = file["obsm"].create_dataset(KEY, shape, dtype="<f4", chunks=(min(parts.n_cells, 4096), parts.width))
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for part, values in enumerate(parts):
            data[slice(*parts.bounds(part))] = values
            n_empty += _empty(values)
        write_elem(file["uns"], KEY, facts)
    return n_empty


def _write_zarr(source: FileCounts, parts: EmbeddingParts, facts: dict[str, object], temporary: Path) -> int:
    """An AnnData on Zarr: the obs of the file and the embedding in obsm, without counts."""
    import zarr

    shell = ad.AnnData(obs=source.obs.frame(), var=pd.DataFrame(index=pd.Index([], dtype=str)), uns={KEY: facts})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata tells of a later default
        shell.write_zarr(temporary)
    n_empty = 0
    root = zarr.open_group(temporary, mode="r+", use_consolidated=False)
    obsm = root["obsm"]
    shape, chunks = (parts.n_cells, parts.width), (min(parts.n_cells, 4096), parts.width)
    data = obsm.create_array(KEY, shape=shape, chunks=chunks, dtype="float32")  # type: ignore[union-attr]
    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for part, values in enumerate(parts):
        data[slice(*parts.bounds(part))] = values
        n_empty += _empty(values)
    zarr.consolidate_metadata(str(temporary))
    return n_empty


def _write_parquet(source: FileCounts, parts: EmbeddingParts, facts: dict[str, object], temporary: Path) -> int:
    """Columns `cell_id` and `embedding`, one row group a part; the schema's metadata says what they are."""
    schema = pa.schema(
        [("cell_id", pa.string()), ("embedding", pa.list_(pa.float32(), parts.width))],
        metadata={KEY: str(facts)},
    )
    n_empty = 0
    with pq.ParquetWriter(temporary, schema) as writer:
        for part, values in enumerate(parts):
            low, high = parts.bounds(part)
            ids = pa.array(source.cell_ids(low, high).tolist(), pa.string())
            embedded = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), parts.width)
            writer.write_table(pa.table([ids, embedded], schema=schema))
            n_empty += _empty(values)
    return n_empty


def _empty(values: np.ndarray) -> int:
    return int(np.isnan(values[:, 0]).sum())


def _no_copy(kind: str) -> str:
    """Why no copy of a file can hold its embedding, and what to do."""
    if kind == "h5ad before 0.7":
        return (
            "was written by anndata before 0.7, whose files cannot hold an embedding of today; name a .zarr or "
            ".parquet file, or write the file anew with anndata first."
        )
    return f"is no h5ad file but {kind}, of which no copy is made; name a .zarr or .parquet file."


def _remove_unclaimed(folder: Path, kind: type[BaseException] | None, *_: Any) -> None:
    """After bad input: what was unpacked into a folder that no embedding has taken yet."""
    if kind is not None and issubclass(kind, EvaeError) and not (folder / MANIFEST).is_file():
        remove(folder)


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")
