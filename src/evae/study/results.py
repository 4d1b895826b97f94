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
from evae.evaluation.metrics.facts import shown
from evae.evaluation.systems.names import MODEL, OF_THE_MODEL, TOKENIZER_ALONE

RENAMED = {"honesty": "diversity"}  # groups of results that are on disk already
AXES = ("tokenizer", "prior", "sampling", "head", "seed")
OF_A_TOKENIZER = ("reconstruction_loss", "codebook_use", "codebook_perplexity")
COLUMNS = ("split", *AXES, "system", "group", "level", "metric", "value", "sd")
PAIR_COLUMNS = ("split", *AXES, "system", "cell_type", "perturbation", "group", "metric", "value")


@dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes:
        numbers: means of every system, one row each, with the columns `COLUMNS`.
        pairs: values of every held-out (cell type, perturbation) pair, with the columns `PAIR_COLUMNS`.
    """

    numbers: pd.DataFrame
    pairs: pd.DataFrame


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
    """Write what an evaluation found: of the model (`own`), or of the baselines and the real split half."""

    def chosen(rows: pd.DataFrame) -> pd.DataFrame:
        is_model = rows["system"].isin([MODEL] if own else OF_THE_MODEL)
        return rows[is_model if own else ~is_model]

    shown_metrics = {(table.group, metric.name) for table, metrics in shown("study") for metric in metrics}
    records = chosen(result.records)
    records = records[
        (records["level"] == "pair")
        & [key in shown_metrics for key in zip(records["group"], records["metric"], strict=True)]
    ]
    keys = ["system", "cell_type", "perturbation", "group", "metric"]
    pairs = records.groupby(keys, sort=False, as_index=False)["value"].mean()  # over draws
    stamp = {k: result.stamp[k] for k in ("settings", "versions", "sha256", "n_cells", "created", "seconds")}
    write_json(result_path(out, name), plain({**stamp, "summary": chosen(result.summary()), "pairs": pairs}))


def read_results(out: Path, wanted: Iterable[Evaluated], baselines: str) -> Results:
    """All numbers of a split that are there; `split` itself is left empty.

    Rows of the baselines have empty labels. A prior's system is called "tokenizer + prior", with the way of sampling.
    """
    numbers, pairs = [], []
    for evaluated in wanted:
        found = _read(result_path(out, evaluated.name))
        if found is not None:
            labels = evaluated.labels | {"system": _system_name(evaluated.labels)}
            summary = found.numbers
            if not labels["prior"]:
                summary = pd.concat([summary, training_numbers(evaluated.folder)], ignore_index=True)
            numbers.append(summary.assign(**labels))
            pairs.append(found.pairs.assign(**labels))
    floor = _read(result_path(out, baselines))
    if floor is not None:
        numbers.append(floor.numbers.assign(**dict.fromkeys(AXES, None)))
        pairs.append(floor.pairs.assign(**dict.fromkeys(AXES, None)))
    return Results(_table(numbers, COLUMNS), _table(pairs, PAIR_COLUMNS))


def _table(parts: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    parts = [part.assign(split="").astype(dict.fromkeys(AXES, object)) for part in parts if len(part)]
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()).reindex(columns=list(columns))


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


def _read(path: Path) -> Results | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    frames = [pd.DataFrame(content.get(name, [])) for name in ("summary", "pairs")]  # older results have no pairs
    return Results(*(frame.replace({"group": RENAMED}) if len(frame) else frame for frame in frames))
