"""A run folder as the authors' training leaves it: configuration, statistics, weights of the latest checkpoint.

{run}/config.yaml                 settings of the run, with the resolved sizes of the model
{run}/dataset_stats.json          mean and standard deviation of the log library sizes, their median
{run}/checkpoints/latest          name of a folder
{run}/checkpoints/{name}/model.safetensors
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evae.common.messages import first_line
from evae.conversion.weights import Weights
from evae.models.contract_evae import EvaeError

WEIGHTS = "model.safetensors"
PARALLEL = "module."  # how the names begin where the model was saved inside its wrapper for several GPUs


@dataclass(frozen=True)
class Settings:
    """Settings of a file, or a part of them.

    Attributes:
        values: by name.
        file: where they stand.
        where: how the names of this part begin there, "" or "model." and the like.
    """

    values: dict[str, Any]
    file: str
    where: str = ""

    def get(self, name: str, default: Any) -> Any:
        """A value as the type of its `default`, which stands for one that is missing or null.

        Raises:
            EvaeError: the value has another type.
        """
        value, kind = self.values.get(name), type(default)
        if value is None:
            return default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number if kind is float else isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if not fits:
            raise EvaeError(f"{self.where}{name} in {self.file} is {value!r}, not of type {kind.__name__}; mend it.")
        return kind(value)

    def part(self, name: str) -> "Settings":
        """The settings under a name; none if it is missing."""
        return Settings(self.get(name, {}), self.file, f"{self.where}{name}.")

    def only(self, name: str, *known: Any) -> Any:
        """A value that must be one of `known`, of which the first stands for a missing one.

        Raises:
            EvaeError: the value is another one.
        """
        value = self.get(name, known[0])
        if value not in known:
            raise EvaeError(
                f"{self.where}{name} in {self.file} is {value!r}, which has no counterpart here; convert a run with "
                f"{' or '.join(map(repr, known))}."
            )
        return value


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        path: the folder.
        settings: of `config.yaml`.
        statistics: of `dataset_stats.json`.
    """

    path: Path
    settings: Settings
    statistics: Settings

    @property
    def model(self) -> Settings:
        return self.settings.part("model")

    @property
    def kind(self) -> str:
        """vae, autoregressive, masked_diffusion, flow_matching or scvi."""
        return str(self.model.get("type", "vae"))

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Read the settings of a run.

        Raises:
            EvaeError: no such folder, no `config.yaml`, or one that cannot be read.
        """
        if not path.is_dir():
            raise EvaeError(f"no such run folder: {path}")
        file = path / "config.yaml"
        if not file.is_file():
            raise EvaeError(f"{path} lacks config.yaml; give the folder of a whole run, not of one checkpoint.")
        try:
            values = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise EvaeError(f"{file} cannot be read ({first_line(error)}); copy the run again.") from None
        if not isinstance(values, dict):
            raise EvaeError(f"{file} holds no settings; copy the run again.")
        return cls(path, Settings(values, "config.yaml"), Settings(_statistics(path), "dataset_stats.json"))

    def weights(self) -> Weights:
        """The tensors of the latest checkpoint.

        Raises:
            EvaeError: no checkpoint, another format than safetensors, a damaged file.
        """
        latest = self.path / "checkpoints" / "latest"
        if not latest.is_file():
            raise EvaeError(f"{self.path} lacks checkpoints/latest, which names the checkpoint; copy the run again.")
        name = latest.read_text().strip()
        folder = latest.parent / name
        if not name or Path(name).name != name or not folder.is_dir():
            raise EvaeError(f"{latest} names '{name}', which is no folder beside it; copy the run again.")
        file = folder / WEIGHTS
        if not file.is_file():
            raise EvaeError(_no_weights(folder))
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise EvaeError(f"{file} is truncated or damaged ({first_line(error)}); copy it again.") from None
        return Weights(_unwrapped(tensors), str(file))


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith(PARALLEL) for name in tensors):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def _no_weights(folder: Path) -> str:
    unsafe = sorted(file.name for file in folder.glob("*model*.bin"))
    if unsafe:
        return (
            f"{folder / unsafe[0]} can run any code when it is opened, and is not read; save the "
            "run anew with Accelerate's safe_serialization=True, which writes model.safetensors."
        )
    return f"{folder} lacks {WEIGHTS}; copy the checkpoint again."


def _statistics(path: Path) -> dict[str, Any]:
    file = path / "dataset_stats.json"
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise EvaeError(f"{file} is truncated or damaged ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise EvaeError(f"{file} holds no JSON object; copy it again.")
    return values
