"""What a report says in words: what was asked of the model, and who is ahead where."""

import anndata as ad
import pandas as pd
import pytest

from evae.evaluation.cells.comparison import compare
from evae.evaluation.report.question import REGIMES, question, standing
from evae.evaluation.systems.names import ADDITIVE_SHIFT, COLLAPSED, MODEL, SCVI_SHIFT, SPLIT_HALF


def without(screen, pairs):
    """The training cells that are left when those of some pairs are taken away; None stands for any name."""
    obs = screen.obs
    gone = pd.Series(False, index=obs.index)
    for cell_type, perturbation in pairs:
        gone |= obs["cell_type"].eq(cell_type) & (obs["perturbation"].eq(perturbation) if perturbation else True)
    return screen[~gone.to_numpy()].copy()


@pytest.mark.parametrize(
    ("gone", "regime"),
    [
        ([], (False, True, True)),
        ([("B", "none")], (False, False, True)),
        ([("A", "G0"), ("A", "G1"), ("A", "G2")], (False, True, False)),
        ([("A", None), ("B", "none")], (False, False, False)),
    ],
)
def test_the_question_says_what_training_knows(screen, real, perfect, gone, regime):
    comparison = compare(perfect, real, without(screen, gone), controls=screen)
    assert question(comparison) == f"The question: {REGIMES[regime]} (3 pairs)."


def test_pairs_that_training_holds_other_cells_of_are_told_apart(screen, real, perfect):
    seen = real[::2].copy()
    seen.obs_names = [f"other {name}" for name in seen.obs_names]
    known = seen[seen.obs["perturbation"] == "G0"]
    comparison = compare(perfect, real, ad.concat([screen, known]))
    text = question(comparison)
    assert text.startswith("Several questions in one: ")
    assert f"1 of 3 pairs, {REGIMES[True, True, True]}" in text
    assert f"2 of 3 pairs, {REGIMES[False, True, True]}" in text


def test_without_training_cells_the_question_is_not_known(screen, real, perfect):
    assert "No training cells" in question(compare(perfect, real, controls=screen))


def rows(metric, group, level, **values):
    return [
        {"group": group, "level": level, "system": system, "metric": metric, "value": value, "sd": float("nan"),
         "n_valid": 1, "n_pairs": 1}
        for system, value in values.items()
    ]  # fmt: skip


def test_the_standing_names_who_is_ahead_where():
    """The split half and what is made of the model's own cells are no rivals; the direction of a metric counts."""
    found = rows("fd", "robust", "pooled", **{MODEL: 3, ADDITIVE_SHIFT: 4, SPLIT_HALF: 1, COLLAPSED: 2})
    found += rows("pearson_delta", "perturbation", "pair", **{MODEL: 0.4, ADDITIVE_SHIFT: 0.5, SCVI_SHIFT: 0.2})
    found += rows("variance_ratio", "diversity", "pooled", **{MODEL: 1.5, ADDITIVE_SHIFT: 0.1, SCVI_SHIFT: 0.9})
    found += rows("copied_fraction", "diversity", "pooled", **{MODEL: 0, ADDITIVE_SHIFT: 0})
    ahead, arithmetic, trained = standing(pd.DataFrame(found))
    assert (
        ahead == "The model is ahead of every baseline in 1 of 4 main numbers (FD), level with the best in 1 (copied)."
    )
    assert arithmetic.endswith("is ahead in Pearson Δ (additive shift: 0.500, model 0.400).")
    assert trained == "A trained baseline is ahead in variance ratio (scVI latent shift: 0.900, model 1.50)."


def test_without_rivals_there_is_no_standing():
    assert standing(pd.DataFrame(rows("fd", "robust", "pooled", **{MODEL: 3, SPLIT_HALF: 1}))) == []
