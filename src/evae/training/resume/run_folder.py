"""The folder of one run: what it already holds, its settings, its log.

output_dir/
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

    Attributes:
        path: the folder.
        status: "fresh" (nothing there, or overwrite), "resumed", or "finished" (nothing left to do).
        begun: whether the run has begun to write.

    Raises:
        EvaeError: the folder holds a run and neither resume nor overwrite is set, the run had other settings,
            or the folder holds something else.
    """

    def __init__(self, settings: Settings):
        settings.require("dataset", "output_dir")
        self.settings = settings
        self.path = Path(settings.output_dir)
        self.checkpoints = self.path / "checkpoints"
        self.log_path = self.path / "log.jsonl"
        self.status = self._look()
        self.begun = False
        self._made_here = not self.path.exists()

    def _look(self) -> str:
        if not self.path.exists():
            return FRESH
        if not self.path.is_dir():
            raise EvaeError(f"output_dir {self.path} is a file; choose another output_dir.")
        if not (self.path / "settings.yaml").is_file():
            if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise EvaeError(f"output_dir {self.path} holds files but no run; choose another output_dir.")
            return FRESH
        if self.settings.overwrite:
            return FRESH
        changed = self._changed_settings()
        finished = self._is_finished()
        if finished and not changed:
            return FINISHED
        if not self.settings.resume:
            what = "a finished run with other settings" if finished else "a run"
            raise EvaeError(
                f"output_dir {self.path} already holds {what}; set resume=true to go on with it, "
                "overwrite=true to delete it, or choose another output_dir."
            )
        if changed:
            raise EvaeError(
                f"the run in {self.path} cannot be resumed with other settings ({'; '.join(changed)}); "
                "change them back, or set overwrite=true to start anew."
            )
        return RESUMED

    def _changed_settings(self) -> list[str]:
        before = yaml.safe_load((self.path / "settings.yaml").read_text())
        now = self.settings.to_dict()
        keys = [k for k in now if k in before and k not in self.settings.MAY_CHANGE]
        return [f"{k} was {before[k]!r} and is {now[k]!r}" for k in keys if before[k] != now[k]]

    def _is_finished(self) -> bool:
        lines = self.read_log()
        return bool(lines) and lines[-1].get("finished", False) and (self.path / "model.safetensors").is_file()

    def begin(self, main: bool = True) -> None:
        """Make the folder ready to train: clear what is to be overwritten, write the settings. One rank is `main`."""
        self.begun = True
        if not main:
            return
        if self.status == FRESH and (self.path / "settings.yaml").exists():
            self._clear()
        text = yaml.safe_dump(self.settings.to_dict(), sort_keys=False)
        with explain_disk_errors(f"the settings to {self.path}", THEN_RESUME):
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "settings.yaml", text)  # first: it marks the folder as a run
            self.checkpoints.mkdir(exist_ok=True)
        remove_unfinished(self.checkpoints)

    def _clear(self) -> None:
        for pattern in WRITTEN_BY_A_RUN:
            for entry in self.path.glob(pattern):
                remove(entry)
        (self.path / "settings.yaml").unlink(missing_ok=True)  # last: a kill before leaves a folder that is known

    def withdraw(self) -> None:
        """Remove what is half written, and a run that began here and has no checkpoint as a whole."""
        if not self.begun:
            return
        for folder in (self.path, self.checkpoints):
            remove_unfinished(folder)
        if self.status == FRESH and self.latest_checkpoint() is None:
            self._clear()
            if self._made_here:
                self.path.rmdir()

    def latest_checkpoint(self) -> int | None:
        """The newest checkpoint's step, or none."""
        steps = list_checkpoints(self.checkpoints)
        return steps[-1] if steps else None

    def read_log(self) -> list[dict[str, Any]]:
        """The log's lines; a line that a kill cut short is left out."""
        if not self.log_path.is_file():
            return []
        lines = []
        for text in self.log_path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def cut_log(self, step: int) -> None:
        """Drop the lines after `step`: the resumed run writes them again."""
        kept = [line for line in self.read_log() if line["step"] <= step]
        with explain_disk_errors(f"the log {self.log_path}", THEN_RESUME):
            write_text(self.log_path, "".join(json.dumps(line) + "\n" for line in kept))

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

    def publish(self, folder: Path, step: int) -> None:
        """Move the finished model's files into place and write the line that marks the run as finished."""
        for file in sorted(folder.iterdir()):
            put_in_place(file, self.path / file.name)
        folder.rmdir()
        self.log(step=step, finished=True)
