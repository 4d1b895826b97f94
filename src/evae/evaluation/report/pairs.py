"""The pairs of an evaluation one by one: a table of all of them, and a page for the best and the worst predicted."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from evae.common.figures import look, save
from evae.common.numbers import format_number
from evae.evaluation.cells import Pair
from evae.evaluation.metrics.facts import BY_NAME, Metric
from evae.evaluation.report.figures_pair import plot_pair
from evae.evaluation.report.tables import EvaluationNumbers, in_order
from evae.evaluation.systems.names import MODEL, SPLIT_HALF, rivals

# What pairs are told apart by, the first that there is also ranks them.
COLUMNS = (
    ("perturbation", "pearson_delta"),
    ("perturbation", "mse"),
    ("robust", "fd"),
    ("differential expression", "overlap_at_N"),
)
MAX_ROWS = 2_000  # of the table on the page; the CSV has all
N_PAGES = 3  # of the best, and as many of the worst


class PairTable(NamedTuple):
    """All pairs, from the best predicted to the worst.

    Attributes:
        title: above it.
        note: below it: what ranks, which baselines stand there, and what was left out.
        headings: of the columns.
        rows: as texts, each with the anchor of its page, "" where it has none.
    """

    title: str
    note: str
    headings: list[str]
    rows: list[tuple[str, list[str]]]


class PairPage(NamedTuple):
    """What a report shows of one pair.

    Attributes:
        anchor: by which the table of pairs links to it.
        title: its names and its rank.
        plot: path of its PNG.
        caption: below the plot.
        headings: of the numbers.
        rows: every system with its numbers as texts.
    """

    anchor: str
    title: str
    plot: Path
    caption: str
    headings: list[str]
    rows: list[tuple[str, list[str]]]


PAGES_TITLE = "The best and the worst predicted"
PAGES_NOTE = (
    "Left: the real against the predicted shift from control of every gene; on the diagonal both agree. The named "
    "genes are missed by most. Middle: the genes that truly move most, real (blue) and predicted (vermillion). Right: "
    "real and generated cells of the pair over their controls (grey) on principal components fitted elsewhere."
)


def ranked_pairs(numbers: EvaluationNumbers) -> tuple[Metric, pd.Series] | None:
    """What ranks the pairs, and its value of the model by pair, the best first; None without numbers of pairs."""
    for group, name in COLUMNS:
        if group in set(numbers.records["group"]):
            table = numbers.per_perturbation(name, group)
            if MODEL in table and table[MODEL].notna().any():
                metric = BY_NAME[name]
                values = table[MODEL].dropna()
                return metric, values.iloc[metric.badness(values).argsort(kind="stable")]
    return None


def pair_table(numbers: EvaluationNumbers) -> PairTable | None:
    """All pairs beside the best baseline and the real split half; None below two pairs."""
    ranked = ranked_pairs(numbers)
    if ranked is None or len(ranked[1]) < 2:
        return None
    metric, order = ranked
    columns: list[pd.Series] = []
    headings = ["perturbation", "cell type", "real cells"]
    for group, name in COLUMNS:
        table = numbers.per_perturbation(name, group) if group in set(numbers.records["group"]) else pd.DataFrame()
        if MODEL not in table:
            continue
        shown = [MODEL, *_best_rival(table, BY_NAME[name]), *[s for s in (SPLIT_HALF,) if s in table]]
        columns += [table[system] for system in shown]
        headings += [f"{BY_NAME[name].heading} {system}" for system in shown]
    anchors = _anchors(list(order.index))
    n_real = numbers.comparison.n_real
    rows = []
    for pair in order.index[:MAX_ROWS]:
        values = [format_number(float(column.get(pair, float("nan")))) for column in columns]
        rows.append((anchors.get(pair, ""), [pair[1], pair[0], f"{n_real[pair]:,}", *values]))
    cut = f" Shown are {MAX_ROWS:,} of {len(order):,}; records.csv has all." if len(order) > MAX_ROWS else ""
    note = f"From the best predicted to the worst, by {metric.title}.{cut}"
    return PairTable("Pair by pair", note, headings, rows)


def _best_rival(table: pd.DataFrame, metric: Metric) -> list[str]:
    """The baseline with the best mean over pairs, none where there is no number."""
    means = metric.badness(table[rivals(table.columns)].mean()).dropna()
    return [] if means.empty else [str(means.idxmin())]


def _anchors(order: list[Pair]) -> dict[Pair, str]:
    """The pairs that have a page, the best first, then the worst from the very last on."""
    n = min(N_PAGES, len(order) // 2) or len(order)
    found = {pair: f"best-{i}" for i, pair in enumerate(order[:n], start=1)}
    return found | {pair: f"worst-{i}" for i, pair in enumerate(order[: -n - 1 : -1], start=1) if pair not in found}


def write_pair_pages(numbers: EvaluationNumbers, folder: Path) -> list[PairPage]:
    """Draw the best and the worst predicted pairs into `folder`; returns what a report shows of each."""
    ranked = ranked_pairs(numbers)
    if ranked is None:
        return []
    metric, order = ranked
    ranks = {pair: i for i, pair in enumerate(order.index, start=1)}
    pages = []
    for pair, anchor in _anchors(list(order.index)).items():
        with look():
            plot = save(plot_pair(numbers.comparison, pair), folder / f"{anchor.replace('-', '_')}.png")
        value = format_number(float(order[pair]))
        title = f"{pair[1]} in {pair[0]}: {metric.title} {value}, rank {ranks[pair]:,} of {len(order):,}"
        headings, rows = _numbers_of(numbers, pair)
        pages.append(PairPage(anchor, title, plot, f"{pair[1]} in {pair[0]}: its genes and its cells.", headings, rows))
    return pages


def _numbers_of(numbers: EvaluationNumbers, pair: Pair) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Headings, and every system with its numbers of one pair."""
    records = numbers.records
    own = records[(records["cell_type"] == pair[0]) & (records["perturbation"] == pair[1])]
    own = own[own["level"] == "pair"]
    parts = {
        BY_NAME[name].heading: own[(own["group"] == group) & (own["metric"] == name)].groupby("system")["value"].mean()
        for group, name in COLUMNS
    }
    parts = {heading: values for heading, values in parts.items() if values.notna().any()}
    named = dict.fromkeys(own["system"])  # in the order of the records
    systems = sorted((s for s in named if any(s in values.index for values in parts.values())), key=in_order)
    rows = [(s, [format_number(float(v.get(s, float("nan")))) for v in parts.values()]) for s in systems]
    return ["system", *parts], rows
