"""`evaluate` end to end on a small screen with known effects."""

import json
import subprocess
import sys
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from evae.evaluation import evaluate, run
from evae.evaluation.metrics.distances import distances_between, distribution_metrics
from evae.evaluation.protocols.distribution import split_halves
from evae.evaluation.systems.latent_additive import latent_additive
from evae.evaluation.systems.names import MODEL, SPLIT_HALF
from evae.models.contract_evae import EvaeError

from .conftest import make_screen

QUIET = {"progress": False, "seeds": (0, 1), "n_components": 8}


@pytest.fixture(scope="module")
def robust(screen, real, perfect):
    return evaluate(perfect, real, screen, suite="robust", **QUIET)


@pytest.fixture(scope="module")
def control_copies(screen, real):
    """A model that ignores the perturbation."""
    controls = screen[(screen.obs.perturbation == "control") & (screen.obs.cell_type == "B")]
    rows = np.random.default_rng(0).choice(controls.n_obs, real.n_obs)
    copies = controls[rows].copy()
    copies.obs = real.obs.copy()
    return copies


def test_a_perfect_generator_is_at_the_floor(robust):
    assert abs(robust.value("mmd2_mix_unbiased")) < 0.05
    assert robust.value("fd") < 1.4 * robust.value("fd", SPLIT_HALF)
    assert robust.value("w2") < 1.1 * robust.value("w2", SPLIT_HALF)
    pearson = robust.value("pearson_delta", group="perturbation", level="pair")
    assert pearson > 0.8
    assert robust.value("discrimination_l1", group="perturbation", level="pair") == 1


def test_a_control_copy_is_seen(screen, real, control_copies, robust):
    copy = evaluate(control_copies, real, screen, suite="robust", with_baselines=False, **QUIET)
    assert copy.value("fd") > 2 * robust.value("fd")
    assert copy.value("mmd2_mix_unbiased") > 5 * abs(robust.value("mmd2_mix_unbiased"))
    assert copy.value("pearson_delta", group="perturbation", level="pair") < 0.4
    # as a model and as a baseline it is the same thing
    assert copy.value("fd") == pytest.approx(robust.value("fd", "control copy"), rel=0.3)


def test_floor_and_model_have_the_same_number_of_cells(robust):
    pooled = robust.records.query("group == 'robust' and level == 'pooled'")
    assert set(pooled.n_real) == set(pooled.n_generated) == {60}  # halves of 3 x 40
    assert set(robust.records.query("group == 'robust' and level == 'pair'").n_real) == {20}


def test_pooled_value_is_recomputed_by_hand(robust):
    comparison = robust.comparison
    projection = comparison.reference_projection(8)
    halves = split_halves(comparison, seed=0)
    first, second = (
        projection(np.concatenate([comparison.real.matrix[r].toarray() for r in half.values()])) for half in halves
    )
    expected = distances_between(first, second)
    found = robust.records.query("group == 'robust' and level == 'pooled' and system == @SPLIT_HALF and seed == 0")
    for metric, value in found.set_index("metric")["value"].items():
        assert value == pytest.approx(expected[metric], rel=1e-9)


def test_the_ceiling_of_pseudobulks_is_one_half_against_the_other(robust):
    comparison = robust.comparison
    first, second = split_halves(comparison, seed=0)
    query = "group == 'perturbation' and system == @SPLIT_HALF and seed == 0 and metric == 'mse'"
    found = robust.records.query(query).set_index("perturbation")["value"]
    for pair in comparison.pairs:
        means = [comparison.real.matrix[half[pair]].toarray().mean(axis=0) for half in (first, second)]
        assert found[pair[1]] == pytest.approx(((means[0] - means[1]) ** 2).mean(), rel=1e-5)


def test_diversity_compares_halves_and_looks_among_training_cells(robust):
    assert robust.value("correlation_error", SPLIT_HALF, "diversity") > 0.01
    assert robust.value("copied_fraction", SPLIT_HALF, "diversity") == 0
    assert robust.value("copied_fraction", "other contexts", "diversity") == 1


def test_halves_are_disjoint_and_of_one_pair(robust):
    comparison = robust.comparison
    first, second = split_halves(comparison, seed=3)
    for pair in comparison.pairs:
        assert len(first[pair]) == len(second[pair]) == 20
        assert not set(first[pair]) & set(second[pair])
        assert set(comparison.real.perturbation[first[pair]]) == {pair[1]}


def test_collapse_keeps_pearson_and_loses_the_rest(robust):
    collapsed = {"system": "mean-collapsed model"}
    same = [robust.value("pearson_delta", s, "perturbation", "pair") for s in (MODEL, collapsed["system"])]
    assert same[0] == pytest.approx(same[1])
    assert robust.value("mmd2_mix_unbiased", collapsed["system"]) > 0.1
    assert robust.value("variance_ratio", collapsed["system"], "diversity") < 0.3


def test_same_seeds_same_numbers(screen, real, perfect, robust):
    again = evaluate(perfect, real, screen, suite="robust", **QUIET)
    np.testing.assert_array_equal(again.records["value"], robust.records["value"])
    other = evaluate(perfect, real, screen, suite="robust", with_baselines=False, **{**QUIET, "seeds": (5,)})
    assert other.value("fd") != robust.value("fd")


def test_the_order_of_cells_does_not_matter_to_pseudobulks(screen, real, perfect, robust):
    order = np.random.default_rng(0).permutation(perfect.n_obs)
    again = evaluate(perfect[order].copy(), real, screen, suite="perturbation", with_baselines=False, **QUIET)
    keywords = {"group": "perturbation", "level": "pair"}
    assert again.value("mse", **keywords) == pytest.approx(robust.value("mse", **keywords), rel=1e-9)


def test_paper_protocol_fits_on_the_evaluated_cells(screen, real, perfect):
    result = evaluate(perfect, real, screen, suite="paper", **QUIET)
    pooled = result.records.query("group == 'paper'")
    assert set(pooled.level) == {"pooled"}
    own = pooled.query("system == 'model'")
    assert set(own.n_real) == set(own.n_generated) == {120}
    cells = result.comparison
    expected = distribution_metrics(cells.real.matrix, cells.predicted.matrix, n_components=8)
    for metric, value in own.set_index("metric")["value"].items():
        assert value == pytest.approx(expected[metric], rel=1e-6)
    # the two protocols stand in tables of their own
    assert next(title for title, _, _ in result.tables()).startswith("Protocol paper")


def test_several_suites_at_once(screen, real, perfect, robust):
    both = evaluate(perfect, real, screen, suite="paper, robust", **QUIET)
    assert set(both.records["group"]) == {"paper", *robust.records["group"]}
    assert both.value("fd") == robust.value("fd")
    with pytest.raises(EvaeError, match=r"unknown suite 'papr'.*paper"):
        evaluate(perfect, real, screen, suite="papr,robust", **QUIET)
    with pytest.raises(EvaeError, match="vcc2026 has systems of its own"):
        evaluate(perfect, real, screen, suite="robust,vcc2026", **QUIET)


def test_files_and_log1p_give_the_same_answer(screen, real, perfect, robust, tmp_path):
    logged = perfect.copy()
    logged.X = logged.X.multiply(1 / logged.X.sum(axis=1)).multiply(5000).tocsr()
    logged.X.data = np.log1p(logged.X.data)
    for name, cells in (("p", logged), ("r", real), ("t", screen)):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    paths = [tmp_path / f"{name}.h5ad" for name in "prt"]
    result = evaluate(*paths, suite="robust", **QUIET)
    assert result.value("fd") == pytest.approx(robust.value("fd"), rel=1e-4)
    assert any("predicted cells as log1p" in note for note in result.stamp["notes"])


def test_inputs_are_not_changed(screen, real, perfect):
    before = [cells.copy() for cells in (perfect, real, screen)]
    evaluate(perfect, real, screen, suite="perturbation", **QUIET)
    for old, new in zip(before, (perfect, real, screen), strict=True):
        assert (old.X != new.X).nnz == 0
        assert old.obs.equals(new.obs)


def test_one_cell_pairs_are_nan_and_counted(screen, real, perfect):
    keep = np.ones(real.n_obs, dtype=bool)
    keep[np.flatnonzero(real.obs.perturbation == "G2")[1:]] = False
    result = evaluate(perfect, real[keep].copy(), screen, suite="robust", **QUIET)
    row = result.summary().query("group == 'robust' and level == 'pair' and system == 'model' and metric == 'fd'")
    assert row[["n_valid", "n_pairs"]].to_numpy().tolist() == [[2, 3]]
    assert np.isfinite(row["value"].iloc[0])
    assert "(2/3)" in rendered(result)


def test_one_real_cell_is_enough_for_what_needs_no_half(screen, real, perfect):
    one = real[real.obs.perturbation == "G1"][:1].copy()
    groups = {}
    for suite in ("paper", "robust", "perturbation"):
        result = evaluate(perfect, one, screen, suite=suite, cache=None, **QUIET)
        groups |= dict(list(result.summary().groupby("group")))
        assert any("1 of 1 pair with a single real cell" in note for note in result.stamp["notes"])
        rendered(result)
    own = {name: part.query("system == 'model'").set_index("metric")["value"] for name, part in groups.items()}
    assert np.isfinite(own["paper"]["w2"])
    assert own["robust"].isna().all()
    assert np.isfinite(own["perturbation"]["pearson_delta"])
    assert np.isfinite(own["differential expression"]["overlap_at_N"])


def test_several_cell_types_are_judged_each_by_their_own_controls():
    cells = make_screen(cell_types=("A", "B", "C"))
    held = cells.obs.cell_type.isin(["B", "C"]) & cells.obs.perturbation.isin(["G0", "G1"])
    predicted = make_screen(cell_types=("B", "C"), seed=4, perturbations=("G0", "G1"))
    result = evaluate(predicted, cells[held].copy(), cells[~held].copy(), suite="perturbation", **QUIET)
    table = result.per_perturbation("pearson_delta")
    assert table.index.tolist() == [("B", "G0"), ("B", "G1"), ("C", "G0"), ("C", "G1")]
    assert (table["model"] > 0.75).all()
    cells = result.comparison
    for (c, p), value in table["model"].items():
        control = cells.controls.matrix[cells.controls.cell_type == c].toarray().mean(axis=0)
        means = [
            side.matrix[(side.cell_type == c) & (side.perturbation == p)].toarray().mean(axis=0)
            for side in (cells.predicted, cells.real)
        ]
        assert value == pytest.approx(np.corrcoef(means[0] - control, means[1] - control)[0, 1], abs=1e-5)


def test_bad_arguments_raise(screen, real, perfect):
    with pytest.raises(EvaeError, match="Did you mean 'robust'"):
        evaluate(perfect, real, screen, suite="robus", progress=False)
    with pytest.raises(EvaeError, match="seeds is empty"):
        evaluate(perfect, real, screen, seeds=(), progress=False)


def rendered(result):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    return console.export_text()


def test_features_and_a_network_are_baselines_too(tmp_path, monkeypatch):
    monkeypatch.setitem(run.EXTRA_BASELINES, "latent-additive", partial(latent_additive, steps=2))
    names = ("G1", "G2", "none", "also", "more", "new")
    cells = make_screen(perturbations=names, n_cells=20)
    pd.DataFrame(np.random.default_rng(0).normal(size=(6, 3)), names).to_csv(tmp_path / "vectors.csv")
    label, cell_type = cells.obs["perturbation"], cells.obs["cell_type"]
    there = (label == "new") | ((label == "G1") & (cell_type == "B"))
    real, train = cells[there].copy(), cells[~there].copy()
    more = {"features": tmp_path / "vectors.csv", "extra_baselines": ["latent-additive"]}
    found = evaluate(real, real, train, suite="perturbation", **more, **QUIET)
    values = found.records.query("metric == 'mse' and level == 'pair'").set_index(["system", "perturbation"])["value"]
    for system in ("nearest in features", "kernel ridge on features", "bilinear"):
        assert set(values[system].index) == {"new"}
    for system in ("latent additive", "additive shift"):
        assert set(values[system].index) == {"G1"}
    assert set(values["shrunken transfer"].index) == {"new", "G1"}
    assert found.stamp["settings"]["features"] == str(tmp_path / "vectors.csv")
    new = real[real.obs["perturbation"] == "new"].copy()
    unknown = evaluate(new, new, train, suite="perturbation", extra_baselines=["latent-additive"], **QUIET)
    assert "the baseline latent-additive has no answer" in " ".join(unknown.stamp["notes"])
    for wrong, message in (({"suite": "vcc2026"}, "baselines of its own"), ({"train": None}, "on training cells")):
        with pytest.raises(EvaeError, match=message):
            evaluate(**{"predicted": real, "real": real, "train": train, **more, **wrong})


def test_the_table_names_every_system(robust):
    text = rendered(robust)
    for system in [MODEL, "control copy", "perturbation mean", "additive shift", SPLIT_HALF]:
        assert system in text


def test_json_holds_everything_and_no_nan(robust, tmp_path):
    stored = json.loads(robust.to_json(tmp_path / "deep" / "r.json").read_text(), parse_constant=pytest.fail)
    assert len(stored["records"]) == len(robust.records)
    assert stored["settings"]["seeds"] == [0, 1]
    assert set(stored["sha256"]) == {"real", "predicted", "controls"}
    assert stored["versions"]["numpy"] == np.__version__
    assert stored["n_cells"]["real"] == 120


def test_second_prediction_uses_the_stored_table(screen, real, perfect, tmp_path, monkeypatch):
    first = evaluate(perfect, real, screen, suite="perturbation", cache=tmp_path, with_baselines=False, **QUIET)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    # all real cells, either half, the means of real and control cells, and the controls made ready
    monkeypatch.setattr("evae.evaluation.protocols.differential.write_table", lambda *_: pytest.fail("computed again"))
    second = evaluate(perfect, real, screen, suite="perturbation", cache=tmp_path, with_baselines=False, **QUIET)
    np.testing.assert_array_equal(first.records["value"], second.records["value"])
    changed = real.copy()
    changed.X = changed.X.copy()
    changed.X.data[0] += 1
    with pytest.raises(BaseException, match="computed again"):
        evaluate(perfect, changed, screen, suite="perturbation", cache=tmp_path, with_baselines=False, **QUIET)
    last = np.flatnonzero((screen.obs.cell_type == "B") & (screen.obs.perturbation == "control"))[-1]
    fewer = screen[np.arange(screen.n_obs) != last].copy()
    with pytest.raises(BaseException, match="computed again"):
        evaluate(perfect, real, fewer, suite="perturbation", cache=tmp_path, with_baselines=False, **QUIET)


def test_differential_expression_sees_the_known_effects(screen, real, perfect):
    result = evaluate(perfect, real, screen, suite="perturbation", **QUIET)
    keywords = {"group": "differential expression", "level": "pair"}
    assert result.value("overlap_at_N", **keywords) > 0.6
    assert result.value("overlap_at_N", "control copy", **keywords) < 0.3
    assert result.value("roc_auc", **keywords) > result.value("roc_auc", "control copy", **keywords)
    assert result.value("de_spearman_lfc_sig", SPLIT_HALF, **keywords) < 1  # two halves, not one with itself


def test_duplicate_names_of_cells_do_no_harm(screen, real, perfect):
    twice = ad.concat([perfect, perfect])
    result = evaluate(twice, real, screen, suite="perturbation", with_baselines=False, **QUIET)
    assert result.comparison.predicted.matrix.shape[0] == 240


def test_one_seed_may_be_a_number(screen, real, perfect):
    options = {"suite": "robust", "progress": False, "n_components": 8, "with_baselines": False}
    one, listed = (evaluate(perfect, real, screen, seeds=seeds, **options) for seeds in (1, (1,)))
    assert one.records.equals(listed.records)
    assert one.stamp["settings"]["seeds"] == [1]


def test_files_are_evaluated_without_large_libraries(real, perfect, screen, tmp_path):
    """Of anndata, dask and zarr 26 MB, of torch 200."""
    for name, cells in {"perfect": perfect, "real": real, "screen": screen}.items():
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    work = (
        "import sys, evae.cli; from evae.evaluation import evaluate; "
        "found = evaluate('perfect.h5ad', 'real.h5ad', controls='screen.h5ad', suite='perturbation', cache='cache', "
        "with_baselines=False, progress=False); assert len(found.records); "
        "print(sorted({'torch', 'anndata', 'dask', 'zarr', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", work], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
