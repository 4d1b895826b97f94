"""The numbers of a study on disk and as one table: a JSON file for every evaluated system, written once."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from evae.common.files import write_json
from evae.common.numbers import plain
from evae.evaluation import EvaluationResult
from evae.evaluation.systems.names import MODEL, OF_THE_MODEL, TOKENIZER_ALONE

RENAMED = {"honesty": "diversity"}  # groups of results that are on disk already
AXES = ("tokenizer", "prior", "sampling", "head", "seed")
OF_A_TOKENIZER = ("reconstruction_loss", "codebook_use", "codebook_perplexity")
COLUMNS = (*AXES, "system", "group", "level", "metric", "value", "sd")


@dataclass(frozen=True)
class Evaluated:
    """One system of a study that is to be evaluated.

    Attributes:
        labels: its place in the cross product, the keys of `AXES`.
        name: of its file; the same evaluation of the same model has the same name.
        options: of the prior's `sample`; None for a tokenizer alone.
        folder: of the model.
    """

    labels: dict[str, Any]
    name: str
    folder: Path
    options: dict[str, Any] | None = field(default=None)


def result_name(folder: Path, how: dict[str, Any]) -> str:
    """The name of a result: the model's folder and a hash of how it was drawn and evaluated."""
    return f"{folder.name}-{hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]}"


def result_path(out: Path, name: str) -> Path:
    """The file of a result."""
    return out / "results" / f"{name}.json"


def keep_result(out: Path, name: str, result: EvaluationResult, own: bool) -> None:
    """Write the means of an evaluation: of the model (`own`), or of the baselines and the real split half."""
    summary = result.summary()
    is_model = summary["system"].isin([MODEL] if own else OF_THE_MODEL)
    rows = summary[is_model if own else ~is_model]
    stamp = {k: result.stamp[k] for k in ("settings", "versions", "sha256", "n_cells", "created", "seconds")}
    write_json(result_path(out, name), plain({**stamp, "summary": rows}))


def read_results(out: Path, wanted: Iterable[Evaluated], baselines: str) -> pd.DataFrame:
    """All numbers that are there, one row each, with the columns `COLUMNS`.

    Rows of the baselines have empty labels. A prior's system is called "tokenizer + prior", with the way of sampling.
    """
    parts = []
    for evaluated in wanted:
        part = _read(result_path(out, evaluated.name))
        if part is not None:
            labels = evaluated.labels
            if not labels["prior"]:
                part = pd.concat([part, training_numbers(evaluated.folder)], ignore_index=True)
            parts.append(part.assign(**labels | {"system": _system_name(labels)}))
    floor = _read(result_path(out, baselines))
    if floor is not None:
        parts.append(floor.assign(**dict.fromkeys(AXES, None)))
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat([p.astype(dict.fromkeys(AXES, object)) for p in parts], ignore_index=True)[list(COLUMNS)]


def _system_name(labels: dict[str, Any]) -> str:
    sampled = f" ({labels['sampling']})" if labels["sampling"] else ""
    if labels["prior"]:
        return f"{labels['tokenizer']} + {labels['prior']}{sampled}"
    return f"{labels['tokenizer']}{sampled}, {TOKENIZER_ALONE}"


def training_numbers(folder: Path) -> pd.DataFrame:
    """What the log of a finished tokenizer says: loss and codes on validation cells, minutes of training.

    Loss and codes are those of the weights that were kept. The minutes are all steps at the median of their times, so
    that a pause does not count.
    """
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    validated = [line for line in log if "validation_loss" in line]
    found: list[tuple[str, float]] = []
    if validated:
        best = yaml.safe_load((folder / "settings.yaml").read_text())["final_weights"] == "best"
        kept = min(validated, key=lambda line: line["validation_loss"]) if best else validated[-1]
        names = [name for name in OF_A_TOKENIZER if f"validation_{name}" in kept]
        found = [(name, kept[f"validation_{name}"]) for name in names]
    timed = [line for line in log if "seconds" in line]
    if timed:
        n_steps = np.diff([0, *(line["step"] for line in timed)])
        step = np.median([line["seconds"] for line in timed] / n_steps)
        found.append(("training_minutes", float(step * n_steps.sum() / 60)))
    rows = [("tokenizer", "training", *row) for row in found]
    return pd.DataFrame(rows, columns=["group", "level", "metric", "value"])


def _read(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    return pd.DataFrame(json.loads(path.read_text())["summary"]).replace({"group": RENAMED})
