"""The run that a folder holds already: with which settings, whether it is finished, and whether a command may go on.

A run goes on with the settings that it began with. Those that leave the trained weights as they are may change, and
`max_steps` may be raised: from there on the learning rate is that of a run of so many steps.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError
from evae.training.resume.checkpoint import checkpoint_path, list_checkpoints
from evae.training.settings import Settings

SETTINGS = "settings.yaml"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")  # of a finished run, one of these
# What lies there is compared, not where it lies.
PLACES = ("dataset", "tokenizer", "perturbation_features", "checkpoint")


@dataclass(frozen=True)
class FormerRun:
    """The settings of a run, and how many processes wrote its last checkpoint; 0 where that is not known.

    Of the batch size that of the last checkpoint counts.
    """

    settings: dict[str, Any]
    processes: int

    @classmethod
    def read(cls, path: Path) -> "FormerRun":
        """Read the settings and the last checkpoint's record in a run folder.

        Raises:
            EvaeError: the settings cannot be read.
        """
        try:
            settings = dict(yaml.safe_load((path / SETTINGS).read_text()))
            int(settings["max_steps"])
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, KeyError):
            raise EvaeError(
                f"{path / SETTINGS} is damaged; set overwrite=true to start anew, or choose another output_dir."
            ) from None
        record: dict[str, Any] = {}
        steps = list_checkpoints(path / "checkpoints")
        with suppress(OSError, ValueError, IndexError):  # a damaged checkpoint is named when it is read
            record = json.loads((checkpoint_path(path / "checkpoints", steps[-1]) / "record.json").read_text())
        settings["batch_size"] = record.get("batch_size", settings.get("batch_size"))
        return cls(settings, int(record.get("ranks", 0)))

    @property
    def max_steps(self) -> int:
        """Updates in the whole run."""
        return int(self.settings["max_steps"])

    def moved(self, now: Settings) -> list[str]:
        """What lies in another place than before, one sentence each: whether it is the same is seen in training."""
        names = [name for name in PLACES if self._differs(name, now) and self._has_place(name, now)]
        moved = [name for name in names if _resolved(self.settings[name]) != _resolved(getattr(now, name))]
        return [self._sentence(name, now) for name in moved]

    def _has_place(self, name: str, now: Settings) -> bool:
        return bool(self.settings[name]) and bool(getattr(now, name))

    def changes(self, now: Settings, processes: int) -> list[str]:
        """What would give other weights, one sentence each.

        Args:
            now: settings of the command.
            processes: that it runs on. Their number may change where all together take as many cells as before.
        """
        may_change = {*now.MAY_CHANGE, "max_steps", "batch_size"}
        if now.final_weights == "last":
            may_change.add("eval_every")  # else it decides among which weights the best are chosen
        differ = [name for name in now.to_dict() if self._differs(name, now)]
        may_change |= {name for name in differ if name in PLACES and self._has_place(name, now)}
        names = [name for name in differ if name not in may_change]
        found = [self._sentence(name, now) for name in names]
        if now.max_steps < self.max_steps:
            found.append(f"{self._sentence('max_steps', now)}, but can only be raised")
        return found + self._changed_batch(now, processes)

    def _changed_batch(self, now: Settings, processes: int) -> list[str]:
        before = self.settings["batch_size"]
        ranks = self.processes or processes
        if before is None or before * ranks == now.batch_size * processes:
            return []
        if ranks == processes:
            return [self._sentence("batch_size", now)]
        mend = f"start {number_of(ranks, 'process', 'processes')} with batch_size={before}"
        if before * ranks % processes == 0:
            mend += f", or set batch_size={before * ranks // processes}"
        return [
            f"a pass took {number_of(before * ranks, 'cell')} and would take {now.batch_size * processes} in "
            f"{number_of(processes, 'process', 'processes')}: {mend}"
        ]

    def _differs(self, name: str, now: Settings) -> bool:
        return name in self.settings and name in now.to_dict() and self.settings[name] != getattr(now, name)

    def _sentence(self, name: str, now: Settings) -> str:
        return f"{name} was {self.settings[name]!r} and is {getattr(now, name)!r}"


def refuse_to_go_on(
    path: Path, settings: Settings, finished: bool, changes: list[str], longer: bool, moved: list[str]
) -> None:
    """Refuse what cannot go on, and what could where it was not asked for.

    Args:
        path: of the run folder.
        settings: of the command.
        finished: whether the run there came to its end.
        changes: why it cannot go on with these settings.
        longer: whether its `max_steps` is raised.
        moved: what lies in another place than before.

    Raises:
        EvaeError: it is so; the line offers resume=true only where that works.
    """
    a_run = "a finished run" if finished else "a run"
    anew = "set overwrite=true to start anew, or choose another output_dir"
    if changes:
        cannot = "cannot go on" if finished else "cannot be resumed"
        raise EvaeError(
            f"{a_run} in {path} {cannot} with other settings ({'; '.join(changes)}); change them back, {anew}."
        )
    if settings.resume:
        return
    what = f"{a_run} over other places ({'; '.join(moved)})" if moved else a_run
    then = f"train it on to step {settings.max_steps}" if longer else "go on with it"
    then += ", if the same lies there" if moved else ""
    raise EvaeError(
        f"output_dir {path} already holds {what}; set resume=true to {then}, overwrite=true to delete it, "
        "or choose another output_dir."
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a line that a kill cut short is left out."""
    file = path / "log.jsonl"
    lines = []
    for text in file.read_text().splitlines() if file.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def is_finished(path: Path) -> bool:
    """Whether a folder holds a run that came to its end, with all steps that its settings ask for."""
    lines = read_log(path)
    weights = any((path / name).is_file() for name in WEIGHTS)
    ended = bool(lines) and lines[-1].get("finished", False) and weights
    return ended and lines[-1]["step"] >= FormerRun.read(path).max_steps


def _resolved(places: Any) -> list[str]:
    """The absolute paths of one place or several; a Hub id, which is none, stays different from another one."""
    return [str(Path(place).resolve()) for place in ([places] if isinstance(places, str) else places)]
