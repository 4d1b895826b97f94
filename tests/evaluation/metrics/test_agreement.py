"""Agreement of tables of differential expression against plain loops."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from evae.evaluation.metrics.agreement import agreement_metrics
from evae.evaluation.metrics.differential import DETable

NAMES, GENES = np.array(list("abcd"), dtype=object), np.array([f"g{i}" for i in range(150)], dtype=object)


def table(seed, n_changed):
    rng = np.random.default_rng(seed)
    p = rng.random((4, 150))
    for i, n in enumerate(n_changed):
        p[i, :n] = rng.random(n) * 1e-6
    return DETable(NAMES, GENES, rng.normal(size=(4, 150)), p, false_discovery_control(p, axis=1))


def test_overlaps_are_those_of_sorted_lists():
    predicted, real = table(0, (30, 5, 0, 60)), table(1, (40, 0, 0, 50))
    found = agreement_metrics(predicted, real)
    for k in (20, 50, 100):
        for i in range(4):
            sure = [set(np.argsort(t.p_value[i])[:k]) for t in (predicted, real)]
            large = [set(np.argsort(-np.abs(t.log2_fold_change[i]))[:k]) for t in (predicted, real)]
            right = [g for g in sure[0] & sure[1] if predicted.log2_fold_change[i, g] * real.log2_fold_change[i, g] > 0]
            assert found[f"top_de_overlap_{k}"][i] == pytest.approx(len(sure[0] & sure[1]) / k)
            assert found[f"top_de_agreement_{k}"][i] == pytest.approx(len(right) / k)
            assert found[f"top_fold_overlap_{k}"][i] == pytest.approx(len(large[0] & large[1]) / k)


def test_hits_are_perturbations_that_change_ten_genes():
    real = table(1, (40, 0, 0, 50))
    right, wrong = table(2, (30, 5, 0, 60)), table(3, (0, 40, 60, 0))
    assert set(agreement_metrics(right, real)["hit_roc_auc"]) == {1.0}
    assert set(agreement_metrics(wrong, real)["hit_roc_auc"]) == {0.0}
    assert set(agreement_metrics(right, real)["hit_average_precision"]) == {1.0}
    assert np.isnan(agreement_metrics(right, table(1, (0, 0, 0, 0)))["hit_roc_auc"]).all()


def test_small_panels_have_smaller_sizes():
    small = DETable(NAMES, GENES[:30], *(v[:, :30] for v in (table(0, (9,) * 4).log2_fold_change,
                    table(0, (9,) * 4).p_value, table(0, (9,) * 4).fdr)))  # fmt: skip
    assert (agreement_metrics(small, small)["top_de_agreement_100"] == 1).all()


def test_genes_without_counts_and_the_order_of_the_panel_do_not_matter():
    predicted, real = table(0, (30, 5, 0, 60)), table(1, (40, 0, 0, 50))
    for side in (predicted, real):  # nothing is known of most genes: p of 1 and no fold change, in both tables
        for values, nothing in ((side.p_value, 1.0), (side.fdr, 1.0), (side.log2_fold_change, 0.0)):
            values[:, 10:] = nothing
    order = np.random.default_rng(5).permutation(150)
    turned = [
        DETable(NAMES, GENES[order], t.log2_fold_change[:, order], t.p_value[:, order], t.fdr[:, order])
        for t in (predicted, real)
    ]
    found, again = agreement_metrics(predicted, real), agreement_metrics(*turned)
    for metric, values in found.items():
        np.testing.assert_array_equal(values, again[metric])
    assert (found["top_de_overlap_100"] <= 0.1).all()
