"""The table of scores between controls."""

from evae.evaluation import evaluate
from evae.evaluation.report.scores import score_table


def test_no_two_rows_have_one_name(screen, real, perfect):
    """Distances stand there of all cells and as means over perturbations."""
    found = evaluate(perfect, real, screen, suite="extended", seeds=(0,), n_components=8, progress=False)
    names = [row[0] for row in score_table(found.scores(), short=False).rows]
    assert {"FD ↓", "FD ↓, mean of pairs"} <= set(names)
    assert len(names) == len(set(names))
    assert not any("pairs" in row[0] for row in score_table(found.scores()).rows)
