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

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from evae.data.preparing.partial import is_disk_error
from evae.models.contract_evae import EvaeError

PARTIAL = ".partial-"


@dataclass
class Checkpoint:
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


def save_checkpoint(
    root: Path,
    step: int,
    content: Checkpoint,
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
    final, partial = checkpoint_path(root, step), root / f"{PARTIAL}step-{step:08d}"
    with writing(f"the checkpoint {final}", partial):
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        save_file(content.rank_tensors, partial / f"rank-{rank:05d}.safetensors")
        _write_json(partial / f"rank-{rank:05d}.json", content.rank_record)
        if rank == 0:
            for name, tensors in content.shared.items():
                save_file(
                    {key: tensor.contiguous() for key, tensor in tensors.items()},
                    partial / f"{name}.safetensors",
                )
            _write_json(partial / "record.json", content.record)
        barrier()
        if rank == 0:
            _seal(partial)
            shutil.rmtree(final, ignore_errors=True)  # only there when a damaged one was resumed past
            os.rename(partial, final)
            _sync(root)
        barrier()
    return final


@contextlib.contextmanager
def writing(what: str, unfinished: Path | None = None) -> Iterator[None]:
    """A context in which a full disk, or one that may not be written, becomes one line that says what to do.

    Args:
        what: is written.
        unfinished: folder to delete then, whose files would take up the space.
    """
    try:
        yield
    except Exception as error:  # safetensors raises its own error type for a full disk
        if not is_disk_error(error):
            raise
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise EvaeError(
            f"could not write {what} ({error}); free space there, then start again with resume=true."
        ) from error


def load_checkpoint(root: Path, step: int, *, rank: int = 0) -> Checkpoint:
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
        if _sha256(file) != expected["sha256"]:
            raise _damaged(root, step, f"{name} does not match its checksum")
    return Checkpoint(
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
            doomed = root / f"{PARTIAL}old-{step:08d}"
            os.rename(checkpoint_path(root, step), doomed)
    clear_partial(root)


def clear_partial(root: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for entry in root.glob(f"{PARTIAL}*"):
        shutil.rmtree(entry, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file so that it is there either whole or not at all."""
    temporary = path.with_name(f"{PARTIAL}{path.name}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value))


def _seal(folder: Path) -> None:
    """Sync every file to the disk and write the manifest last."""
    manifest = {}
    for file in sorted(folder.iterdir()):
        _sync(file)
        manifest[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    _write_json(folder / "manifest.json", manifest)
    _sync(folder / "manifest.json")
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(root: Path, step: int, what: str) -> EvaeError:
    earlier = [s for s in list_checkpoints(root) if s < step]
    then = f"resume from step {earlier[-1]}" if earlier else "start the run from its first step"
    return EvaeError(f"the checkpoint {checkpoint_path(root, step)} is damaged: {what}; delete that folder to {then}.")
