"""What a report says in words: its main numbers with what they mean, what was compared, and how it was made."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from evae.common.messages import number_of
from evae.common.numbers import UNDEFINED, format_number
from evae.evaluation.metrics.facts import BY_NAME, Metric, shown
from evae.evaluation.report.tables import cell_text, in_order
from evae.evaluation.systems.names import (
    CONTROL_COPY,
    MEANINGS,
    MODEL,
    SPLIT_HALF,
    TOKENIZER_ALONE,
    rivals,
)

HEADINGS = ("metric", MODEL, "best baseline", CONTROL_COPY, SPLIT_HALF, "what it says")
JUDGED_BY = (("robust", "pooled", "fd"), ("paper", "pooled", "fd"), ("perturbation", "pair", "mse"))
READING = (
    "Lower is better where ↓ stands, higher where ↑, nearest to the number where → stands. Pooled values are "
    "means over seeds ± standard deviation; others are means over perturbations, with the number of defined "
    "ones in brackets where some are not. “Real split half” is what one half of the real cells scores "
    "against the other: the best to be hoped for with as many cells. Where it has fewer cells than the model, as in "
    "pseudobulks and differential expression, a good model may pass it."
)


def brief(summary: pd.DataFrame) -> list[list[str]]:
    """The main numbers, one row each with the columns `HEADINGS`."""
    return [_row(metric, rows) for metric, rows in main_numbers(summary)]


def main_numbers(summary: pd.DataFrame) -> Iterator[tuple[Metric, dict[str, pd.Series]]]:
    """Every main metric that the model has, with its rows of the summary by system; those of no number are left out."""
    for table, metrics in shown("brief"):
        part = summary[(summary["group"] == table.group) & (summary["level"] == table.level)]
        for metric in metrics:
            rows = {row["system"]: row for _, row in part[part["metric"] == metric.name].iterrows()}
            if MODEL in rows and not all(math.isnan(row["value"]) for row in rows.values()):
                yield metric, rows


def best_rival(metric: Metric, rows: Mapping[str, pd.Series]) -> str | None:
    """The baseline with the best value of a metric; None where no baseline has one."""
    values = {system: float(rows[system]["value"]) for system in rivals(rows)}
    defined = {system: metric.badness(value) for system, value in values.items() if not math.isnan(value)}
    return min(defined, key=lambda system: defined[system], default=None)


def pairs_in_words(n: int) -> str:
    """How many pairs of cell type and perturbation."""
    return number_of(n, "pair")


def verdict(summary: pd.DataFrame) -> str | None:
    """Which baselines beat the model, by how much, and what to try then.

    It is judged by FD, pooled, of the protocol `robust`, else of `paper`; without one by the MSE of mean expression.
    None where there is no such number of the model or of any baseline.
    """
    values = summary.set_index(["group", "level", "metric", "system"])["value"].dropna()
    for key in JUDGED_BY:
        found = {system: float(value) for (*own, system), value in values.items() if tuple(own) == key}
        others = {system: found[system] for system in rivals(found)}
        if MODEL in found and others:
            return _verdict(BY_NAME[key[2]].title, found, others)
    return None


def _verdict(title: str, found: dict[str, float], others: dict[str, float]) -> str:
    own = found[MODEL]
    better = sorted((v, s) for s, v in others.items() if v < own)
    if not better:
        return f"No baseline beats the model on {title} ({format_number(own)})."
    named = ", ".join(f"{s} by {format_number(own - v)}" for v, s in better)
    alone = found.get(TOKENIZER_ALONE)
    if alone is None:
        mend = (
            "For a model of evae, --tokenizer MODEL of `evae evaluate` says whether its codes or its prior lose that; "
            "with few steps of training, both want more (max_steps)."
        )
    elif alone >= better[0][0]:
        mend = (
            f"The codes lose that: the tokenizer alone has {format_number(alone)}. Train the tokenizer longer "
            "(max_steps), or give it more codes (model.n_latents), then the prior anew."
        )
    else:
        mend = (
            f"The prior loses that: the tokenizer alone has {format_number(alone)}. Train the prior longer "
            "(max_steps), with thinned_copies=5 on few cells, or predict with --guidance-scale 2."
        )
    return f"On {title} (model {format_number(own)}) better than the model: {named}. {mend}"


def explained(summary: pd.DataFrame) -> list[tuple[str, str]]:
    """The systems of a result in the order of its tables, each with what it is."""
    systems = sorted(dict.fromkeys(summary["system"]), key=in_order)
    return [(system, MEANINGS.get(system, "another model's cells of the same pairs")) for system in systems]


def _row(metric: Metric, rows: dict[str, pd.Series]) -> list[str]:
    best = best_rival(metric, rows)
    named = UNDEFINED if best is None else f"{cell_text(rows[best])} ({best})"
    model, copy, floor = (cell_text(rows.get(s)) for s in (MODEL, CONTROL_COPY, SPLIT_HALF))
    return [metric.heading, model, named, copy, floor, metric.meaning]


def lead(stamp: dict[str, Any]) -> str:
    """One sentence on what was compared."""
    n = stamp["n_cells"]
    return (
        f"{n['predicted']:,} predicted against {number_of(n['real'], 'real cell')}, {pairs_in_words(stamp['n_pairs'])} "
        f"of cell type and perturbation, {number_of(stamp['n_genes'], 'gene')}; suite {stamp['settings']['suite']}."
    )


def provenance(stamp: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader needs to run it again, as (name, value)."""
    settings, n = stamp["settings"], stamp["n_cells"]
    return [
        ("created", f"{stamp['created']}, in {stamp['seconds']} s"),
        ("seeds", ", ".join(str(seed) for seed in settings["seeds"])),
        ("settings", "; ".join(f"{k} = {v}" for k, v in settings.items() if k != "seeds")),
        ("cells", "; ".join(f"{name} {count:,}" for name, count in n.items())),
        ("versions", "; ".join(f"{name} {version}" for name, version in stamp["versions"].items())),
        *[(f"sha256 of {name} cells", value) for name, value in stamp["sha256"].items()],
        *[("note", note) for note in stamp["notes"]],
    ]
