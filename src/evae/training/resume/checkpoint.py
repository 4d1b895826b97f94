"""Checkpoints on disk: exact, atomic, safetensors and JSON only.

    checkpoints/step-00001000/
        NAME.safetensors          what all ranks share (weights, optimiser, moving average), written by rank 0
        rank-00000.safetensors    what belongs to one rank (random states)
        rank-00000.json           the same rank's position in the data
        record.json               step, losses, number of ranks
        manifest.json             size and SHA-256 of every file above

A checkpoint is written into a hidden folder, synced to the disk and renamed, so a folder with the final name
is complete at whatever moment the process dies.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from evae.common.digests import file_digest
from evae.common.files import UNFINISHED, explain_disk_errors, put_in_place, remove, remove_unfinished, sync, write_json
from evae.models.contract_evae import EvaeError

THEN_RESUME = "start again with resume=true"  # what to do once the disk can be written


@dataclass
class TrainingState:
    """What one rank reads back from a checkpoint.

    Attributes:
        record: the JSON record that all ranks share.
        shared: file name -> tensors that all ranks share.
        rank_tensors: the tensors of this rank; empty if the run had fewer ranks.
        rank_record: the JSON record of this rank; empty if the run had fewer ranks.
    """

    record: dict[str, Any]
    shared: dict[str, dict[str, Tensor]]
    rank_tensors: dict[str, Tensor]
    rank_record: dict[str, Any]


def checkpoint_path(root: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` updates."""
    return root / f"step-{step:08d}"


def list_checkpoints(root: Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    if not root.is_dir():
        return []
    matches = (re.fullmatch(r"step-(\d{8,})", entry.name) for entry in root.iterdir() if entry.is_dir())
    return sorted(int(match.group(1)) for match in matches if match)


def write_checkpoint(
    root: Path,
    step: int,
    content: TrainingState,
    *,
    rank: int = 0,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Write one checkpoint; every rank calls this with its own content.

    Args:
        root: the folder of all checkpoints.
        step: updates made so far.
        content: what to write; `record` and `shared` are used on rank 0 only.
        rank: this process's number.
        barrier: waits for all ranks.

    Returns:
        The checkpoint's folder.

    Raises:
        EvaeError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final, partial = checkpoint_path(root, step), root / f"{UNFINISHED}step-{step:08d}"  # one name for all ranks
    with explain_disk_errors(f"the checkpoint {final}", THEN_RESUME, partial):
        if rank == 0:
            remove(partial)
            partial.mkdir(parents=True)
        barrier()
        save_file(content.rank_tensors, partial / f"rank-{rank:05d}.safetensors")
        write_json(partial / f"rank-{rank:05d}.json", content.rank_record, indent=None)
        if rank == 0:
            for name, tensors in content.shared.items():
                save_file(
                    {key: tensor.contiguous() for key, tensor in tensors.items()},
                    partial / f"{name}.safetensors",
                )
            write_json(partial / "record.json", content.record)
        barrier()
        if rank == 0:
            _write_manifest(partial)
            put_in_place(partial, final)  # a checkpoint is there only when a damaged one was resumed past
            sync(root)
        barrier()
    return final


def read_checkpoint(root: Path, step: int, *, rank: int = 0) -> TrainingState:
    """Read the checkpoint after `step` updates and check every byte of it.

    Raises:
        EvaeError: a file is missing, truncated or altered.
    """
    folder = checkpoint_path(root, step)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        raise _damaged(root, step, "manifest.json is missing or unreadable") from None
    shared = [name for name in manifest if name.endswith(".safetensors") and not name.startswith("rank-")]
    mine = [name for name in (f"rank-{rank:05d}.safetensors", f"rank-{rank:05d}.json") if name in manifest]
    for name in [*shared, *mine, "record.json"]:
        file, expected = folder / name, manifest[name]
        if not file.is_file():
            raise _damaged(root, step, f"{name} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise _damaged(root, step, f"{name} has {file.stat().st_size} of {expected['bytes']} bytes")
        if file_digest(file) != expected["sha256"]:
            raise _damaged(root, step, f"{name} does not match its checksum")
    return TrainingState(
        record=json.loads((folder / "record.json").read_text()),
        shared={name.removesuffix(".safetensors"): load_file(folder / name) for name in shared},
        rank_tensors=load_file(folder / mine[0]) if mine else {},
        rank_record=json.loads((folder / mine[1]).read_text()) if mine else {},
    )


def prune_checkpoints(root: Path, keep: int, best: int | None = None) -> None:
    """Delete all checkpoints but the newest `keep` and the one of step `best`; clear unfinished ones."""
    steps = list_checkpoints(root)
    for step in steps[: max(len(steps) - keep, 0)]:
        if step != best:
            # Renamed first: a kill half-way through the deletion must not leave a damaged checkpoint.
            os.rename(checkpoint_path(root, step), root / f"{UNFINISHED}old-{step:08d}")
    remove_unfinished(root)


def _write_manifest(folder: Path) -> None:
    files = sorted(folder.iterdir())
    manifest = {file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for file in files}
    write_json(folder / "manifest.json", manifest)


def _damaged(root: Path, step: int, what: str) -> EvaeError:
    earlier = [s for s in list_checkpoints(root) if s < step]
    then = f"resume from step {earlier[-1]}" if earlier else "start the run from its first step"
    return EvaeError(f"the checkpoint {checkpoint_path(root, step)} is damaged: {what}; delete that folder to {then}.")
