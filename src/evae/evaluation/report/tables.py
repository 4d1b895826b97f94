"""The numbers of an evaluation: every record, their means, and the tables that people read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evae.evaluation.cells.comparison import Comparison
from evae.evaluation.metrics.labels import TABLES
from evae.evaluation.systems.baselines import MODEL, SPLIT_HALF

FORMAT_VERSION = 1


@dataclass(frozen=True)
class EvaluationNumbers:
    """What an evaluation found, without its report.

    Attributes:
        records: every number, one row each; the columns are those of `protocols.Record`.
        comparison: the cells that were compared, for plots.
        stamp: settings, versions, hashes, sizes, notes.
    """

    records: pd.DataFrame
    comparison: Comparison
    stamp: dict[str, Any]

    def summary(self) -> pd.DataFrame:
        """Means per table, system and metric, see `summarise`."""
        return summarise(self.records)

    def value(self, metric: str, system: str = MODEL, group: str = "robust", level: str = "pooled") -> float:
        """One mean value; raises KeyError if the suite did not compute it."""
        found = self.summary().query("group == @group and level == @level and system == @system and metric == @metric")
        if found.empty:
            raise KeyError(f"no {metric} of {system} in {group}, {level}")
        return float(found["value"].iloc[0])

    def per_perturbation(self, metric: str, group: str = "perturbation") -> pd.DataFrame:
        """Mean over seeds of a metric for every pair, one column a system."""
        part = self.records[
            (self.records["group"] == group) & (self.records["level"] == "pair") & (self.records["metric"] == metric)
        ]
        return part.pivot_table(values="value", index=["cell_type", "perturbation"], columns="system", dropna=False)

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, dict[str, pd.Series]]]]]:
        """(title, metrics, [(system, {metric: row of the summary})]) of every table that has numbers."""
        summary = self.summary()
        found = []
        for (group, level), (title, metrics) in TABLES.items():
            part = summary[(summary["group"] == group) & (summary["level"] == level)]
            if part.empty:
                continue
            systems = list(dict.fromkeys(part["system"]))
            systems.sort(key=lambda s: (s != MODEL, s == SPLIT_HALF))
            rows = [
                (system, {row["metric"]: row for _, row in part[part["system"] == system].iterrows()})
                for system in systems
            ]
            found.append((title, metrics, rows))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; a value that is not defined is None."""
        return {
            "format_version": FORMAT_VERSION,
            **self.stamp,
            "summary": plain(self.summary()),
            "records": plain(self.records),
        }

    def to_json(self, path: str | Path) -> Path:
        """Write everything to a JSON file."""
        return write_json(self.to_dict(), path)


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, then over pairs, of every metric.

    A value that is not defined is left out of a mean, and counted: `n_valid` of `n_pairs` pairs went into it.
    `sd` is over seeds for pooled values, over pairs else.
    """
    if records.empty:
        return pd.DataFrame(
            columns=[
                "group",
                "level",
                "system",
                "metric",
                "value",
                "sd",
                "n_valid",
                "n_pairs",
                "n_real",
                "n_generated",
            ]
        )
    keys = ["group", "level", "system", "metric"]
    pooled = records[records["level"] == "pooled"].groupby(keys, sort=False)
    pairs = records[records["level"] == "pair"].groupby([*keys, "cell_type", "perturbation"], sort=False)
    per_pair = pairs.agg(value=("value", "mean"), n_real=("n_real", "mean"), n_generated=("n_generated", "mean"))
    parts = [
        _collapse(pooled, counted=False),
        _collapse(per_pair.reset_index().groupby(keys, sort=False), counted=True),
    ]
    return pd.concat([part for part in parts if not part.empty], ignore_index=True)


def _collapse(groups: Any, counted: bool) -> pd.DataFrame:
    table = groups.agg(
        value=("value", "mean"),
        sd=("value", "std"),
        n_valid=("value", "count"),
        n_pairs=("value", "size"),
        n_real=("n_real", "mean"),
        n_generated=("n_generated", "mean"),
    ).reset_index()
    if not counted:
        table[["n_valid", "n_pairs"]] = 1
    return table


def plain(value: Any) -> Any:
    """Plain Python values, a table as a list of its rows; what JSON has no word for becomes None."""
    if isinstance(value, pd.DataFrame):
        value = value.astype(object).to_dict(orient="records")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(content: Any, path: str | Path) -> Path:
    """Write plain values to a JSON file; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path
