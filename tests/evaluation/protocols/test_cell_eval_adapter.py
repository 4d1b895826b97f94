"""Our numbers are cell-eval's, perturbation by perturbation; its traps are handled."""

import os

import anndata as ad
import numpy as np
import pytest

pytest.importorskip("cell_eval", reason="cell-eval is in the extra eval")

from evae.evaluation import evaluate
from evae.evaluation.cells.comparison import compare
from evae.evaluation.protocols.cell_eval_adapter import anndata_pair, run_ceiling, run_cell_eval
from evae.evaluation.report.write import markdown
from evae.models.contract_evae import EvaeError

TOLERANCE = {"pearson_delta": 1e-6, "mae": 1e-6, "mse": 1e-6, "mae_delta": 1e-6, "mse_delta": 1e-6}


@pytest.fixture(scope="module")
def result(screen, real, perfect):
    return evaluate(perfect, real, screen, suite="cell-eval", seeds=(0,), progress=False, cache=None)


def own_values(result, metric):
    records = result.records.query("system == 'model' and group != 'cell-eval' and metric == @metric")
    return records.set_index("perturbation")["value"]


def test_every_metric_equals_cell_evals(result):
    theirs = result.records.query("group == 'cell-eval' and system == 'model'")
    metrics = theirs["metric"].unique()
    assert len(metrics) == 26
    for metric in metrics:
        expected = theirs[theirs["metric"] == metric].set_index("perturbation")["value"]
        found = own_values(result, metric.replace("discrimination_score", "discrimination"))
        tolerance = TOLERANCE.get(metric, 0 if "discrimination" in metric else 1e-12)
        np.testing.assert_allclose(found[expected.index], expected, rtol=0, atol=tolerance, err_msg=metric)


def test_the_ceiling_is_cell_evals_and_one_perturbation_without_a_value_does_not_spoil_it(
    screen, real, perfect, tmp_path
):
    """cell-eval 0.8.2 raises the mean over perturbations by Spearman-Brown; it is NaN where one of them is."""
    from cell_eval import MetricsEvaluator

    cells = anndata_pair(compare(perfect, real, screen), "B")[1]
    alone = cells[cells.obs.perturbation == "control"]
    none = alone.copy()  # without a changed gene it has no area under a curve
    none.obs["perturbation"], none.obs_names = "none", "none" + none.obs_names
    cells = ad.concat([cells, none])
    evaluator = MetricsEvaluator(
        None, cells.copy(), control_pert="control", pert_col="perturbation", outdir=str(tmp_path)
    )
    each, theirs = evaluator.compute_ceiling(
        skip_metrics=["pearson_edistance", "clustering_agreement"], write_csv=False
    )
    each, theirs, ours = each.to_pandas(), theirs.to_pandas().iloc[0], run_ceiling(cells, "control")
    whole = [m for m in ours.index if each[m].notna().all() and theirs.notna()[m]]
    assert {"pearson_delta", "discrimination_score_l1", "overlap_at_N"} <= set(whole)
    np.testing.assert_allclose(ours[whole], theirs[whole].astype(float), rtol=1e-12)
    assert theirs.drop(ours.index).isna().all()  # errors and counts
    spoilt = [m for m in ours.index if each[m].isna().any() and each[m].mean() > 0]
    assert {"pr_auc", "roc_auc"} <= set(spoilt)
    assert theirs[spoilt].isna().any()
    assert ours[spoilt].notna().all()
    assert run_ceiling(alone[:1].copy(), "control").empty


def test_the_ceiling_stands_in_the_table_and_is_kept(screen, real, perfect, tmp_path, monkeypatch, capsys):
    how = {"suite": "cell-eval", "seeds": (0,), "progress": False, "with_baselines": False, "cache": tmp_path}
    first = evaluate(perfect, real, screen, **how)
    monkeypatch.setattr("evae.evaluation.protocols.cell_eval_adapter.run_ceiling", lambda *_: 1 / 0)
    again = evaluate(perfect, real, screen, **how)
    rows = [found.summary().query("system == 'ceiling of cell-eval'").set_index("metric") for found in (first, again)]
    assert rows[0].equals(rows[1])
    assert 0 < rows[0]["value"]["pearson_delta"] < 1
    assert "mse" not in rows[0].index
    assert "ceiling of cell-eval" in markdown(first, [], [])
    first.print()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "ceiling of cell-eval" in line)
    assert f" {rows[0]['value']['pearson_delta']:.1f} " in line  # the terminal of a test is narrow


def test_both_sides_hold_the_same_real_controls(screen, real, perfect):
    pair = anndata_pair(compare(perfect, real, screen), "B")
    controls = [cells[cells.obs.perturbation == "control"].X.toarray() for cells in pair]
    np.testing.assert_array_equal(*controls)
    expected = screen[(screen.obs.perturbation == "control") & (screen.obs.cell_type == "B")].X
    assert (np.count_nonzero(controls[0], axis=1) == np.diff(expected.indptr)).all()


def test_no_more_threads_than_numba_may_have(screen, real, perfect, monkeypatch):
    """cell-eval 0.8.2 asks numba for as many threads as there are CPUs; above NUMBA_NUM_THREADS numba 0.68 refuses."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10_000)))
    pair = anndata_pair(compare(perfect, real, screen), "B")
    assert run_cell_eval(*pair, control="control")["pearson_delta"].notna().all()


def test_the_pair_is_not_mutated(screen, real, perfect):
    pair = anndata_pair(compare(perfect, real, screen), "B")
    before = [cells.X.copy() for cells in pair]
    run_cell_eval(*pair, control="control")
    for cells, old in zip(pair, before, strict=True):
        assert (old != cells.X).nnz == 0


def test_an_exception_in_a_metric_is_not_swallowed(screen, real, perfect, monkeypatch):
    from cell_eval.metrics import metrics_registry

    def broken(data, **kwargs):
        raise RuntimeError("broken metric")

    monkeypatch.setattr(metrics_registry.get_metric("mae"), "func", broken)
    with pytest.raises(RuntimeError, match="broken metric"):
        run_cell_eval(*anndata_pair(compare(perfect, real, screen), "B"), control="control")


def test_a_perturbation_without_de_genes_does_not_spoil_the_mean(screen, real, perfect):
    controls = screen[(screen.obs.perturbation == "control") & (screen.obs.cell_type == "B")]
    none, predicted_none = controls[::2].copy(), controls[1::2].copy()
    for cells, prefix in ((none, "x"), (predicted_none, "y")):
        cells.obs["perturbation"] = "none"
        cells.obs_names = prefix + cells.obs_names
    train = screen[~((screen.obs.cell_type == "B") & (screen.obs.perturbation == "none"))].copy()
    found = evaluate(
        ad.concat([perfect, predicted_none]), ad.concat([real, none]), train, suite="cell-eval", seeds=(0,),
        progress=False, cache=None, with_baselines=False,
    )  # fmt: skip
    rows = found.summary().query("system == 'model' and metric == 'de_direction_match'")
    assert rows["n_pairs"].tolist() == [4, 4]
    assert rows["n_valid"].tolist() == [3, 3]
    assert np.isfinite(rows["value"]).all()


def test_missing_cell_eval_is_named(screen, real, perfect, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cell_eval", None)
    with pytest.raises(EvaeError, match=r"pip install 'evae\[eval\]'"):
        evaluate(perfect, real, screen, suite="cell-eval", progress=False)
