"""What a study asked of its systems: of every held-out pair what training has seen, and the means by that."""

import pandas as pd

from evae.common.messages import number_of
from evae.common.numbers import UNDEFINED, format_number
from evae.data.format import DatasetInfo
from evae.evaluation.metrics.facts import BY_NAME, METRICS
from evae.models.contract_evae import parts_of
from evae.study.compare import grid_lines, system_names

PAIR, CELL_TYPE, COMBINATION, PERTURBATION, BOTH = (
    "unseen pair", "unseen cell type", "unseen combination", "unseen perturbation", "both unseen",
)  # fmt: skip
READING = (
    "Means over held-out pairs (cell type, perturbation) by what training has seen: perturbed cells of the cell type, "
    "and cells of the perturbation; of an “unseen pair” both, but not together."
)


def question_of(info: DatasetInfo, cell_type: str, perturbation: str) -> str:
    """What training lacks of a held-out pair."""
    trained = info.statistics["cell_counts"]["train"]
    perturbed = {c for c, row in trained.items() if any(n for p, n in row.items() if p != info.control)}
    seen = {p for row in trained.values() for p, n in row.items() if n}
    if perturbation in seen:
        return PAIR if cell_type in perturbed else CELL_TYPE
    if cell_type not in perturbed:
        return BOTH
    return COMBINATION if seen >= set(parts_of(perturbation, seen, info.control)) else PERTURBATION


def with_questions(pairs: pd.DataFrame, info: DatasetInfo) -> pd.DataFrame:
    """The pairs of `Results` with a column `question`."""
    asked = {
        pair: question_of(info, *pair) for pair in set(zip(pairs["cell_type"], pairs["perturbation"], strict=True))
    }
    return pairs.assign(question=[asked[pair] for pair in zip(pairs["cell_type"], pairs["perturbation"], strict=True)])


def question_lines(pairs: pd.DataFrame) -> list[str]:
    """Lines: for every metric of pairs a table of systems by questions; none where there is but one question."""
    asked = [q for q in (PAIR, CELL_TYPE, COMBINATION, PERTURBATION, BOTH) if (pairs["question"] == q).any()]
    if len(asked) < 2:
        return []
    named = pairs.assign(system=system_names(pairs))
    n_pairs = named[["split", "cell_type", "perturbation", "question"]].drop_duplicates()["question"].value_counts()
    order = {metric.name: at for at, metric in enumerate(METRICS)}
    lines = ["", "## By what training has seen", "", READING]
    for group, metric in sorted({*zip(named["group"], named["metric"], strict=True)}, key=lambda key: order[key[1]]):
        part = named[(named["group"] == group) & (named["metric"] == metric)]
        grid = part.pivot_table(index="system", columns="question", values="value", aggfunc="mean")
        texts = grid.reindex(index=list(dict.fromkeys(part["system"])), columns=asked).map(_text)
        texts.columns = pd.Index([f"{q} ({number_of(n_pairs[q], 'pair')})" for q in asked])
        by = " by perturbation" if group == "robust" else ""
        lines += ["", f"### {BY_NAME[metric].heading}{by}", "", *grid_lines(texts, "system")]
    return lines


def _text(value: float) -> str:
    return UNDEFINED if pd.isna(value) else format_number(float(value))
