"""The pairs of a training: made once, the same on all ranks, and kept in the run's folder for when it is resumed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from evae.common.files import explain_disk_errors, write_bytes
from evae.training import couplings
from evae.training.couplings import DRAWS, Cells, couple
from evae.training.resume.checkpoint import THEN_RESUME

FILE = "pairs.safetensors"
VERSION = 1  # raise it where the same cells and settings would give other pairs than before
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class PairSettings:
    """What pairs depend on besides the cells.

    Attributes:
        how, n_draws, as_set, seed: see `couple`.
        space: "latents" or "pca", see `evae.training.components`.
    """

    how: str
    space: str
    n_draws: int
    as_set: bool
    seed: int

    @classmethod
    def of(cls, config: Any, settings: Any) -> "PairSettings":
        """Those of a prior's configuration and the training's settings; a set of controls is a random one."""
        n, as_set = config.source_cells, config.source_cells > 1
        how = "random" if as_set else settings.coupling
        return cls(how, settings.coupling_space, max(DRAWS, n), as_set, settings.seed)

    @property
    def needs_points(self) -> bool:
        """Whether it matters where the cells stand."""
        return self.how != "random"


def pairing_key(wanted: PairSettings, *data: Any) -> str:
    """A digest of all that changes the pairs: `data` says which cells, and by which tokenizer they are encoded."""
    content = [VERSION, couplings.BLOCK, astuple(wanted), data]
    return hashlib.sha256(json.dumps(content, default=list, sort_keys=True).encode()).hexdigest()


def make_pairs(
    wanted: PairSettings, cells: Mapping[str, Cells], control: int, names: list[str]
) -> dict[str, np.ndarray]:
    """Controls for the cells of both splits; they are training controls, but a validation control is its own source.

    Args:
        wanted: how.
        cells: split -> its cells.
        control: id of the control.
        names: of the cell types, for messages.

    Returns:
        split -> int32 (cells, draws): rows of the training controls, which the validation controls follow.

    Raises:
        EvaeError: a cell type has perturbed cells and no training controls.
    """
    pool = cells["train"].part(np.flatnonzero(cells["train"].perturbation == control))
    found, first = {}, 0
    for split in SPLITS:
        is_control = cells[split].perturbation == control
        own = np.where(is_control, first + np.cumsum(is_control) - 1, -1)
        found[split] = couple(
            cells[split], pool, own, control=control, names=names,
            how=wanted.how, n_draws=wanted.n_draws, as_set=wanted.as_set, seed=wanted.seed,
        )  # fmt: skip
        first = len(pool)
    return found


def kept_or_made(
    folder: Path, key: str, sizes: Mapping[str, tuple[int, int]], make: Callable[[], dict[str, np.ndarray]],
    accelerator: Accelerator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The pairs that the folder of the run keeps, if they are these, else what `make` makes; alike on all ranks.

    Args:
        folder: of the run.
        key: from `pairing_key`.
        sizes: split -> shape of its pairs.
        make: makes them; every rank calls it, so that all meet the same errors.
        accelerator: the main rank's file and pairs count.
    """
    kept = load_pairs(folder, key) if accelerator.is_main_process else None
    if kept is not None and any(kept[split].shape != tuple(shape) for split, shape in sizes.items()):
        kept = None
    if accelerator.num_processes == 1:
        return make() if kept is None else kept
    there = broadcast(torch.tensor(int(kept is not None), device=accelerator.device))
    if not there:
        kept = make()
    elif kept is None:
        kept = {split: np.zeros(shape, dtype=np.int32) for split, shape in sizes.items()}
    sent = {split: broadcast(torch.from_numpy(kept[split]).to(accelerator.device)) for split in SPLITS}
    return {split: pairs.cpu().numpy() for split, pairs in sent.items()}


def load_pairs(folder: Path, key: str) -> dict[str, np.ndarray] | None:
    """The pairs in the folder of a run; None where there are none, others, or a file that cannot be read."""
    try:
        with safe_open(folder / FILE, framework="numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {split: file.get_tensor(split) for split in SPLITS}
    except (OSError, SafetensorError):
        return None


def keep_pairs(folder: Path, key: str, pairs: Mapping[str, np.ndarray]) -> None:
    """Write the pairs into the folder of a run, whole or not at all, unless they are there."""
    if load_pairs(folder, key) is None:
        with explain_disk_errors(f"the pairs to {folder}", THEN_RESUME):
            write_bytes(folder / FILE, save(dict(pairs), {"key": key}))
