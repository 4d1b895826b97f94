"""Digests by which a file or the weights of a model are known again."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def file_digest(path: Path, kind: str = "sha256") -> str:
    """The digest of a file's content, in hexadecimal; `kind` is a name that `hashlib` knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def content_digest(path: Path) -> str:
    """The digest of a file's content; of a folder, over the names and contents of all files in it."""
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def file_stamp(path: Path) -> list[Any]:
    """What tells whether a file is still the same: its place, size and time; of a folder the sum and the latest."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return [str(path.resolve()), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]


def weights_digest(model: "nn.Module") -> str:
    """A SHA-256 over the names and values of all weights and buffers, wherever they are stored."""
    import torch  # not needed for files

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
