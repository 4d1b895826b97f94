"""Metrics of differential expression: plain definitions on small tables, and parity with cell-eval."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from evae.evaluation.metrics.differential import DETable
from evae.evaluation.metrics.recovery import de_metrics, spearman_of_counts
from evae.models.contract_evae import EvaeError

NAMES = [f"p{i}" for i in range(9)]
GENES = np.array([f"g{i}" for i in range(300)], dtype=object)


def make_table(seed, strength=1.0):
    """Perturbations from no significant gene (p0) to nearly all; ties, zero and infinite fold changes."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(7).normal(size=(len(NAMES), len(GENES)))
    fold = shared * strength + rng.normal(size=shared.shape)
    fold[:, :5], fold[:, 5] = np.inf, -np.inf
    fold[:, 6:9] = 0
    fold[:, 10:20] = 1.25
    p_value = 10.0 ** -(np.abs(np.nan_to_num(fold, posinf=3, neginf=-3)) * rng.random(fold.shape) * 2)
    fdr = np.clip(p_value * np.linspace(30, 0.05, len(NAMES))[:, None], 0, 1)
    fdr[0] = 1.0
    return DETable(np.array(NAMES, dtype=object), GENES, fold, p_value, fdr)


@pytest.fixture(scope="module")
def tables():
    return make_table(1), make_table(2)


@pytest.fixture(scope="module")
def ours(tables):
    return de_metrics(predicted=tables[1], real=tables[0])


def test_equal_cell_eval_given_the_same_tables(tables, ours):
    pytest.importorskip("cell_eval", reason="cell-eval is in the extra eval")
    from cell_eval._pipeline import MetricPipeline
    from cell_eval._types import initialize_de_comparison

    from evae.evaluation.protocols.cell_eval_adapter import _polars

    pipeline = MetricPipeline(profile="de", break_on_error=True)
    pipeline.compute_de_metrics(initialize_de_comparison(real=_polars(tables[0]), pred=_polars(tables[1])))
    theirs = pipeline.get_results().to_pandas().set_index("perturbation").loc[NAMES]
    assert set(theirs.columns) == set(ours)
    for name in theirs.columns:
        np.testing.assert_allclose(ours[name], theirs[name].to_numpy(float), atol=1e-12, err_msg=name)


def plain_metrics(predicted, real, i):
    """The definitions, gene by gene, for one perturbation; tables are compared in float32."""
    q_real, q_predicted = (table.fdr[i].astype(np.float32) for table in (real, predicted))
    fold_real, fold_predicted = (table.log2_fold_change[i].astype(np.float32) for table in (real, predicted))
    genes = range(len(GENES))
    true = sorted((g for g in genes if q_real[g] < np.float32(0.05)), key=lambda g: (-abs(fold_real[g]), g))
    called = sorted((g for g in genes if q_predicted[g] < np.float32(0.05)), key=lambda g: (-abs(fold_predicted[g]), g))
    found = {"de_nsig_counts_real": len(true), "de_nsig_counts_pred": len(called)}
    for k in ("N", 50, 100, 200, 500):
        for name, own in (("overlap", true), ("precision", called)):
            n = len(own) if k == "N" else min(k, len(own))
            found[f"{name}_at_{k}"] = len({*true[:n]} & {*called[:n]}) / n if n else 0
    labels, scores = np.isin(genes, true), -np.log10(q_predicted.clip(1e-10, 1))
    both = 0 < len(true) < len(GENES)
    found["pr_auc"] = average_precision_score(labels, scores) if both else np.nan
    found["roc_auc"] = roc_auc_score(labels, scores) if both else np.nan
    found["de_spearman_lfc_sig"] = spearmanr(fold_real[true], fold_predicted[true])[0] if true else np.nan
    same = [np.sign(fold_real[g]) == np.sign(fold_predicted[g]) for g in true]
    found["de_direction_match"] = np.mean(same) if true else np.nan
    found["de_sig_genes_recall"] = len({*true} & {*called}) / len(true) if true else np.nan
    return found


def test_every_metric_is_its_plain_definition(tables, ours):
    for i in range(len(NAMES)):
        for name, value in plain_metrics(tables[1], tables[0], i).items():
            assert ours[name][i] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, i)
    some = ours["de_nsig_counts_real"] > 0
    expected = spearmanr(ours["de_nsig_counts_real"][some], ours["de_nsig_counts_pred"][some])[0]
    np.testing.assert_allclose(ours["de_spearman_sig"], expected, atol=1e-12)
    assert 1 < some.sum() < len(NAMES)


def test_overlap_by_hand():
    fold = np.array([[4.0, -3.0, 2.0, 1.0]])
    fdr = np.array([[0.01, 0.01, 0.01, 0.5]])
    real = DETable(np.array(["p"], object), GENES[:4], fold, fdr, fdr)
    fold_predicted = np.array([[4.0, 0.1, -2.0, 9.0]])
    fdr_predicted = np.array([[0.01, 0.01, 0.5, 0.01]])
    predicted = DETable(np.array(["p"], object), GENES[:4], fold_predicted, fdr_predicted, fdr_predicted)
    found = {name: values[0] for name, values in de_metrics(predicted, real).items()}
    assert found["overlap_at_N"] == pytest.approx(2 / 3)  # {0,1,2} against {3,0,1}
    assert found["precision_at_50"] == pytest.approx(2 / 3)
    assert found["de_sig_genes_recall"] == pytest.approx(2 / 3)
    assert found["de_direction_match"] == pytest.approx(1 / 3)  # only gene 0 keeps its sign
    assert found["de_spearman_lfc_sig"] == pytest.approx(0.5)  # ranks 3,1,2 against 3,2,1
    assert (found["de_nsig_counts_real"], found["de_nsig_counts_pred"]) == (3, 3)


def test_no_significant_gene_has_defined_values(ours):
    assert ours["overlap_at_N"][0] == 0
    for name in ("pr_auc", "roc_auc", "de_spearman_lfc_sig", "de_direction_match", "de_sig_genes_recall"):
        assert np.isnan(ours[name][0])


def test_the_real_table_predicts_itself(tables):
    found = de_metrics(tables[0], tables[0])
    some = found["de_nsig_counts_real"] > 2
    for name in ("overlap_at_N", "precision_at_100", "de_spearman_lfc_sig", "de_direction_match"):
        np.testing.assert_allclose(found[name][some], 1.0)
    np.testing.assert_allclose(found["de_spearman_sig"], 1.0)


def test_counts_without_any_real_gene():
    assert spearman_of_counts(np.zeros(4), np.arange(4.0)) == 1.0


def test_tables_of_other_labels_raise(tables):
    real, _ = tables
    other = DETable(real.perturbations[::-1], GENES, real.log2_fold_change, real.p_value, real.fdr)
    with pytest.raises(EvaeError, match="different perturbations"):
        de_metrics(other, real)
    other = DETable(real.perturbations, GENES[::-1], real.log2_fold_change, real.p_value, real.fdr)
    with pytest.raises(EvaeError, match="different genes"):
        de_metrics(other, real)
