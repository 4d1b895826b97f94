"""Digests by which a file or the weights of a model are known again."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def file_digest(path: Path, kind: str = "sha256") -> str:
    """The digest of a file's content, in hexadecimal; `kind` is a name that `hashlib` knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def weights_digest(model: "nn.Module") -> str:
    """A SHA-256 over the names and values of all weights and buffers, wherever they are stored."""
    import torch  # not needed for files

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
