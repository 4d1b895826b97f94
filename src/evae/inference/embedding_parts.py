"""Embeddings on their way to a file: finished parts on disk, so that a killed run goes on where it stopped.

A part is a fixed range of cells, whatever the number of processes, and is written under another name, then renamed:
a part that is there is whole. The manifest says what the parts are parts of.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evae.common.files import write_bytes, write_json
from evae.models.contract_evae import EvaeError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class EmbeddingParts:
    """The folder of the parts of one embedding.

    Attributes:
        folder: where they lie.
        n_cells: cells in all.
        width: numbers of one embedded cell.
        part_cells: cells of a part; the last one may have fewer.
    """

    folder: Path
    n_cells: int
    width: int
    part_cells: int

    def claim(self, identity: dict[str, Any]) -> None:
        """Make the folder, or take over the one that a stopped run left.

        Args:
            identity: what decides the numbers: model, cells, kind.

        Raises:
            EvaeError: the folder holds parts of another embedding.
        """
        identity = {**identity, "n_cells": self.n_cells, "width": self.width, "part_cells": self.part_cells}
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            found = json.loads(manifest.read_text())
            other = [k for k in identity if found.get(k) != identity[k]]
            if other:
                raise EvaeError(
                    f"{self.folder} holds parts of another embedding (another {', '.join(other)}) that was stopped; "
                    "remove that folder, or choose another output."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(manifest, identity)

    def __len__(self) -> int:
        return -(-self.n_cells // self.part_cells)

    def bounds(self, part: int) -> tuple[int, int]:
        """First cell of a part, and the cell after its last."""
        return part * self.part_cells, min(self.n_cells, (part + 1) * self.part_cells)

    def n_bytes(self, part: int) -> int:
        """Size of a part on disk."""
        low, high = self.bounds(part)
        return (high - low) * self.width * 4

    def is_done(self, part: int) -> bool:
        """Whether the part is on disk."""
        return self._path(part).is_file()

    def write(self, part: int, embedded: np.ndarray) -> None:
        """Store a part, float32 (cells of the part, width); it is there whole or not at all."""
        write_bytes(self._path(part), np.ascontiguousarray(embedded, dtype="<f4").data)

    def __iter__(self) -> Iterator[np.ndarray]:
        """All parts in order, float32 (cells of the part, width)."""
        for part in range(len(self)):
            low, high = self.bounds(part)
            values = np.fromfile(self._path(part), dtype="<f4")
            if values.size != (high - low) * self.width:
                raise EvaeError(f"{self._path(part)} is damaged; remove it and run the same command again.")
            yield values.reshape(high - low, self.width)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.f32"
