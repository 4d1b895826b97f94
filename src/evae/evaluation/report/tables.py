"""The numbers of an evaluation: every record, their means, and the tables that people read."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd

from evae.common.files import write_json, write_text
from evae.common.numbers import UNDEFINED, format_number, plain
from evae.evaluation.cells.comparison import Comparison
from evae.evaluation.metrics.calibration import Controls, calibrated
from evae.evaluation.metrics.facts import Metric, shown
from evae.evaluation.systems.names import MODEL, REAL_AGAIN, SPLIT_HALF, TOKENIZER_ALONE, UNINFORMED

FORMAT_VERSION = 2  # 1 called the group "diversity" "honesty"


class Shown(NamedTuple):
    """One table as people read it.

    Attributes:
        title: above it.
        metrics: its columns.
        rows: every system with the rows of the summary by the metric's name.
    """

    title: str
    metrics: list[Metric]
    rows: list[tuple[str, dict[str, pd.Series]]]

    @property
    def headings(self) -> list[str]:
        """Of all columns."""
        return ["system", *[metric.heading for metric in self.metrics], "cells real / gen."]

    def texts(self) -> list[tuple[str, list[str]]]:
        """Every system with the texts of its columns."""
        return [
            (system, [*[cell_text(values.get(metric.name)) for metric in self.metrics], cells_text(values)])
            for system, values in self.rows
        ]


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
        return self._summary

    @cached_property
    def _summary(self) -> pd.DataFrame:
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

    def tables(self) -> list[Shown]:
        """Every table that has numbers; the model stands first, the real split half last."""
        summary = self.summary()
        found = []
        for table, metrics in shown("table"):
            part = summary[(summary["group"] == table.group) & (summary["level"] == table.level)]
            if part.empty:
                continue
            systems = list(dict.fromkeys(part["system"]))
            systems.sort(key=in_order)
            rows = [
                (system, {row["metric"]: row for _, row in part[part["system"] == system].iterrows()})
                for system in systems
            ]
            found.append(Shown(table.title, metrics, rows))
        return found

    def scores(self) -> pd.DataFrame:
        """Every metric of every system as a score between a negative and a positive control, see `calibrated`."""
        return self._scores

    @cached_property
    def _scores(self) -> pd.DataFrame:
        return calibrated(self.records, Controls(UNINFORMED, REAL_AGAIN))

    def with_tokenizer_alone(self, other: "EvaluationNumbers") -> Self:
        """These numbers, and as "tokenizer alone" those of an evaluation of the encoded and drawn back real cells."""
        own = other.records[other.records["system"] == MODEL].assign(system=TOKENIZER_ALONE)
        return replace(self, records=pd.concat([self.records, own], ignore_index=True))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; a value that is not defined is None."""
        return {
            "format_version": FORMAT_VERSION,
            **self.stamp,
            "summary": plain(self.summary()),
            "scores": plain(self.scores()),
            "records": plain(self.records),
        }

    def write_numbers(self, folder: Path) -> None:
        """Write all numbers: result.json, and as CSV the records, their means and the scores."""
        self.to_json(folder / "result.json")
        tables = {"records": self.records, "summary": self.summary(), "scores": self.scores()}
        for name, table in tables.items():
            if not table.empty:
                write_text(folder / f"{name}.csv", table.to_csv(index=False))

    def to_json(self, path: str | Path) -> Path:
        """Write everything to a JSON file."""
        return write_json(path, self.to_dict())


def in_order(system: str) -> tuple[bool, ...]:
    """The order of systems in tables: the model first; the tokenizer alone and the real cells again last."""
    return system != MODEL, system in REAL_AGAIN, system == TOKENIZER_ALONE, system == SPLIT_HALF


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


def cell_text(row: pd.Series | None) -> str:
    """A value with its spread over seeds, and the number of defined pairs where some are not."""
    if row is None or math.isnan(row["value"]):
        return UNDEFINED
    text = format_number(row["value"])
    if row["level"] == "pooled" and not math.isnan(row["sd"]):
        text += f" ±{format_number(row['sd'], significant=2)}"
    if row["n_valid"] < row["n_pairs"]:
        text += f" ({int(row['n_valid'])}/{int(row['n_pairs'])})"
    return text


def cells_text(rows: dict[str, pd.Series]) -> str:
    """Mean number of cells on either side, "real / generated"."""
    row = next(iter(rows.values()))
    return f"{row['n_real']:.0f} / {row['n_generated']:.0f}"
