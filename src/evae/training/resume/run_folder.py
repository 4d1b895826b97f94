"""The folder of one run: what it already holds, its settings, its log.

output_dir/
    .lock             while a training works in it
    settings.yaml     the resolved settings
    log.jsonl         one JSON object a line; "step" counts optimiser updates
    checkpoints/      see checkpoint.py
    config.json, model.safetensors, preprocessor_config.json, ...   the finished model
"""

import json
from pathlib import Path
from typing import Any

import yaml

from evae.common.files import UNFINISHED, explain_disk_errors, put_in_place, remove, remove_unfinished, write_text
from evae.models.contract_evae import EvaeError
from evae.training.resume.checkpoint import THEN_RESUME, list_checkpoints
from evae.training.resume.folder_lock import FolderLock
from evae.training.resume.former_run import SETTINGS, FormerRun, is_finished, read_log, refuse_to_go_on
from evae.training.settings import Settings

FRESH, RESUMED, FINISHED = "fresh", "resumed", "finished"
WRITTEN_BY_A_RUN = (
    "checkpoints",
    "tensorboard",
    "log.jsonl",
    "README.md",
    "*.json",
    "*.safetensors",
    "*_evae*.py",
)


class RunFolder:
    """Looks at `settings.output_dir` without changing it; `begin` is the first to write.

    Args:
        settings: of the training.
        processes: how many train together.
        lock: of the folder, if this process has it.

    Attributes:
        path: the folder.
        status: "fresh" (nothing there, or overwrite), "resumed", or "finished" (nothing left to do).
        shorter: of a run that goes on to a raised `max_steps`, the former one.
        begun: whether the run has begun to write.

    Raises:
        EvaeError: the folder holds a run and neither resume nor overwrite is set, the run had other settings,
            or the folder holds something else.
    """

    def __init__(self, settings: Settings, processes: int = 1, lock: FolderLock | None = None):
        settings.require("dataset", "output_dir")
        self.settings = settings
        self.path = Path(settings.output_dir)
        self.checkpoints = self.path / "checkpoints"
        self.log_path = self.path / "log.jsonl"
        self.shorter: int | None = None
        self._lock = lock or FolderLock(self.path)
        self.status = self._look(processes)
        self.begun = False

    def _look(self, processes: int) -> str:
        if not self.path.exists():
            return FRESH
        if not self.path.is_dir():
            raise EvaeError(f"output_dir {self.path} is a file; choose another output_dir.")
        if not (self.path / SETTINGS).is_file():
            if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise EvaeError(f"output_dir {self.path} holds files but no run; choose another output_dir.")
            return FRESH
        if self.settings.overwrite:
            return FRESH
        finished, former = is_finished(self.path), FormerRun.read(self.path)
        longer, moved = self.settings.max_steps > former.max_steps, former.moved(self.settings)
        if finished and not longer and self.settings.batch_size == former.settings["batch_size"]:
            processes = former.processes or processes  # there is nothing left to share
        changes = former.changes(self.settings, processes)
        if finished and not (changes or longer or moved):
            return FINISHED
        if finished and self.latest_checkpoint() is None:
            moved += [f"max_steps was {former.max_steps} and is {self.settings.max_steps}"] * longer
            changes.append(f"{'; '.join(moved)}, and its checkpoints are gone")
        refuse_to_go_on(self.path, self.settings, finished, changes, longer, moved)
        self.shorter = former.max_steps if longer else None
        return RESUMED

    def begin(self, main: bool = True) -> None:
        """Make the folder ready to train: clear what is to be overwritten, write the settings. One rank is `main`.

        The settings of a run that goes on are written by `go_on`, when its checkpoint was found to fit them.
        """
        self.begun = True
        if not main:
            return
        if self.status == FRESH:
            if (self.path / SETTINGS).exists():
                self._clear()
            self._write_settings()  # first: it marks the folder as a run
        with explain_disk_errors(f"to {self.path}", THEN_RESUME):
            self.checkpoints.mkdir(exist_ok=True)
        remove_unfinished(self.checkpoints)

    def notes(self, learning_rate: float) -> list[str]:
        """What to say of a run that goes on to a raised `max_steps`; nothing of others."""
        if self.shorter is None:
            return []
        longer = self.settings.max_steps
        return [
            f"max_steps raised from {self.shorter} to {longer}: from here on the learning rate is that of a run of "
            f"{longer} steps, {learning_rate:.3g} in the next one"
        ]

    def go_on(self, step: int, learning_rate: float) -> None:
        """Go on after `step` updates: drop the lines of the log after it, which the run writes again.

        Args:
            step: 0 for a run from its start.
            learning_rate: of the next update, for the log where `max_steps` was raised.
        """
        kept = [line for line in read_log(self.path) if line["step"] <= step and not line.get("finished")]
        if self.shorter is not None:
            now = {"max_steps": self.settings.max_steps, "max_steps_before": self.shorter}
            kept.append({"step": step, **now, "learning_rate_of_next_step": learning_rate})
        with explain_disk_errors(f"the log {self.log_path}", THEN_RESUME):
            write_text(self.log_path, "".join(json.dumps(line) + "\n" for line in kept))
        if self.status == RESUMED:
            self._write_settings()

    def _write_settings(self) -> None:
        text = yaml.safe_dump(self.settings.to_dict(), sort_keys=False)
        with explain_disk_errors(f"the settings to {self.path}", THEN_RESUME):
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / SETTINGS, text)

    def _clear(self) -> None:
        for pattern in WRITTEN_BY_A_RUN:
            for entry in self.path.glob(pattern):
                remove(entry)
        (self.path / SETTINGS).unlink(missing_ok=True)  # last: a kill before leaves a folder that is known

    def withdraw(self) -> None:
        """Remove what is half written, and a run that began here and has no checkpoint as a whole."""
        if self.begun:
            for folder in (self.path, self.checkpoints):
                remove_unfinished(folder)
            if self.status == FRESH and self.latest_checkpoint() is None:
                self._clear()
        self._lock.release()

    def latest_checkpoint(self) -> int | None:
        """The newest checkpoint's step, or none."""
        steps = list_checkpoints(self.checkpoints)
        return steps[-1] if steps else None

    def log(self, **values: Any) -> None:
        """Append one line to log.jsonl."""
        with explain_disk_errors(f"the log {self.log_path}", THEN_RESUME), self.log_path.open("a") as stream:
            stream.write(json.dumps(values) + "\n")

    def final_folder(self) -> Path:
        """An empty hidden folder for the finished model, inside the run folder."""
        folder = self.path / f"{UNFINISHED}final"
        remove(folder)
        folder.mkdir()
        return folder

    def publish(self, folder: Path, step: int, kept: int) -> None:
        """Move the finished model's files into place and write the line that marks the run as finished.

        Args:
            folder: from `final_folder`.
            step: updates made.
            kept: the step whose weights these are.
        """
        for file in sorted(folder.iterdir()):
            put_in_place(file, self.path / file.name)
        folder.rmdir()
        self.log(step=step, finished=True, weights_of_step=kept)
