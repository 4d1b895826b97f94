"""Effects of perturbations estimated from the training cells of a simulated screen, whose truth is known."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae.common.shrinkage import combine, shrink
from evae.data.format import DatasetInfo
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.effects import estimate_effects
from evae.inference.effects import read_table
from evae.models.contract_evae import EvaeError
from evae.training.shifts import read_shifts

KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}


@pytest.fixture(scope="module")
def screen():
    return simulate_perturb_seq(
        n_cells=9000, n_genes=120, n_cell_types=3, n_perturbations=12, n_without_effect=2, median_library_size=600
    )


@pytest.fixture(scope="module")
def truth(screen):
    facts = screen.uns["simulation"]
    folds = pd.DataFrame(facts["log_fold_change"] / np.log(2), facts["perturbations"], screen.var_names)
    return folds.drop(index="control"), dict(zip(facts["perturbations"], facts["has_effect"], strict=True))


@pytest.fixture(scope="module")
def held_out(truth):
    """A perturbation with an effect that no training cell has, and one that a cell type lacks."""
    strong = [name for name, has in truth[1].items() if has and name != "control"]
    return strong[0], strong[1]


@pytest.fixture(scope="module")
def dataset(screen, held_out, tmp_path_factory):
    never, elsewhere = held_out
    folder = tmp_path_factory.mktemp("screen")
    kept = screen[screen.obs["perturbation"] != never].copy()
    kept.write_h5ad(folder / "cells.h5ad")
    split = {"cell_type": ["type_A"], "pert": [elsewhere]}
    return prepare_dataset(folder / "cells.h5ad", folder / "dataset", split=split, **KEYS)


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_measured_effects_are_near_the_truth_and_those_without_one_shrink_to_nothing(dataset, truth):
    found = estimate_effects(dataset)
    folds, has_effect = truth
    assert set(found.source) == {"measured"}
    assert found.unknown == []
    for name, row in found.log2_fold_changes.iterrows():
        size = row.abs().mean()
        if has_effect[name]:
            assert correlation(row, folds.loc[name]) > 0.8, name
            assert size > 0.1, name
        else:
            assert size < 0.02, name


def test_held_out_cells_are_never_read(dataset, held_out):
    before = estimate_effects(dataset).log2_fold_changes
    shards = list((dataset / "data").glob("test-*"))
    assert shards
    content = {path: path.read_bytes() for path in shards}
    try:
        for path in shards:
            path.unlink()
        pd.testing.assert_frame_equal(estimate_effects(dataset).log2_fold_changes, before)
    finally:
        for path, bytes_ in content.items():
            path.write_bytes(bytes_)
    assert held_out[1] in before.index  # from the two cell types that show it


def test_a_cell_type_left_out_does_not_matter(dataset):
    some = estimate_effects(dataset, leave_out=["type_A", "type_B"]).log2_fold_changes
    shifts, info = read_shifts(dataset), DatasetInfo.load(dataset)
    assert list(some.columns) == list(info.genes)
    row = int(
        np.flatnonzero((shifts.cell_type == 2) & (shifts.perturbation == info.perturbations.index(some.index[0])))[0]
    )
    np.testing.assert_allclose(some.iloc[0], shrink(shifts.change[row], shifts.variance[row]))


def test_a_combination_is_the_sum_of_its_parts(dataset, held_out):
    a, b = [name for name in estimate_effects(dataset).log2_fold_changes.index if name not in held_out][:2]
    found = estimate_effects(dataset, [f"{a}+{b}", a, b, f"{a}+control", f"{b}+{a}", "control"])
    table = found.log2_fold_changes
    np.testing.assert_allclose(table.loc[f"{a}+{b}"], table.loc[a] + table.loc[b])
    assert list(table.index) == [f"{a}+{b}", a, b, f"{a}+control", f"{b}+{a}"]
    np.testing.assert_allclose(table.loc[f"{a}+control"], table.loc[a])
    assert found.source[f"{a}+{b}"] == "sum of its parts"


@pytest.mark.parametrize("method", ["ridge", "nearest", "kernel", "bilinear"])
def test_features_tell_the_effect_of_a_perturbation_never_seen(dataset, truth, held_out, tmp_path, method):
    vectors = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 3)), truth[0].index)
    vectors.to_csv(tmp_path / "vectors.csv")
    never = held_out[0]
    found = estimate_effects(dataset, features=tmp_path / "vectors.csv", method=method)
    assert found.source[never] == method
    assert (found.source.drop(never) == "measured").all()
    if method == "nearest":
        measured = found.log2_fold_changes.drop(index=never)
        unit = vectors.div(np.linalg.norm(vectors, axis=1), axis=0)
        near = (unit.loc[measured.index] @ unit.loc[never]).nlargest(5).index
        np.testing.assert_allclose(found.log2_fold_changes.loc[never], measured.loc[near].mean())


def test_bad_questions_name_the_answer(dataset, held_out, tmp_path):
    pd.DataFrame({"x": [1.0, 2.0]}, ["A", held_out[0]]).to_csv(tmp_path / "few.csv")
    for message, arguments in {
        "nothing is known of": {"perturbations": [held_out[0]]},
        "Known are 'ridge', 'nearest'": {"method": "mlp"},
        "no cell type 'type_Z'": {"leave_out": ["type_Z"]},
        "has vectors of 0 of": {"features": tmp_path / "few.csv"},
        "has both perturbed training cells and controls": {"leave_out": ["type_A", "type_B", "type_C"]},
    }.items():
        with pytest.raises(EvaeError, match=message):
            estimate_effects(dataset, **arguments)


def test_noise_shrinks_to_nothing_and_large_changes_stay():
    rng = np.random.default_rng(0)
    variance = rng.uniform(0.05, 0.2, 2000)
    noise = rng.normal(0, np.sqrt(variance))
    assert np.abs(shrink(noise, variance)).mean() < 0.1 * np.abs(noise).mean()
    large = np.r_[noise[:1990], np.full(10, 4.0)]
    found = shrink(large, variance)
    np.testing.assert_allclose(found[1990:], 4.0, atol=0.3)
    assert np.abs(found[:1990]).mean() < 0.2 * np.abs(noise[:1990]).mean()


def test_cell_types_that_agree_count_by_their_errors_and_those_that_differ_alike():
    rng = np.random.default_rng(1)
    variance = np.stack([np.full(5000, 0.01), np.full(5000, 1.0)])
    same = rng.normal(0, np.sqrt(variance))
    mean, error = combine(same, variance)
    weights = 1 / variance
    np.testing.assert_allclose(mean, (weights * same).sum(0) / weights.sum(0), atol=0.1)
    np.testing.assert_allclose(error, 1 / weights.sum(0), rtol=0.2)
    apart = same + np.array([[3.0], [-3.0]]) * rng.choice([-1, 1], (1, 5000))
    mean, error = combine(apart, variance)
    np.testing.assert_allclose(mean, apart.mean(0), atol=0.5)
    assert error.mean() > 3


def test_the_command_writes_what_predict_reads(run, dataset, held_out, tmp_path):
    for name in ("effects.csv", "effects.parquet"):
        outcome = run("effects", dataset, "--out", tmp_path / name, "--leave-out", "type_A")
        assert outcome.code == 0, outcome.err
        assert "measured: 11 (" in outcome.out
        expected = estimate_effects(dataset, leave_out=["type_A"]).log2_fold_changes
        pd.testing.assert_frame_equal(read_table(tmp_path / name), expected, check_names=False)
    refused = run("effects", dataset, "--out", tmp_path / "effects.csv")
    assert refused.code == 2
    assert "exists" in refused.err
    refused = run("effects", dataset, "--out", tmp_path / "more.csv", "--perturbation", held_out[0])
    assert refused.code == 2
    assert "--features" in refused.err
    assert not (tmp_path / "more.csv").exists()
    assert run("effects", dataset, "--out", tmp_path / "effects.h5ad").code == 2


def test_a_dataset_without_controls_in_any_cell_type(tmp_path):
    X = np.random.default_rng(0).poisson(2.0, (60, 12)).astype(np.float32)
    obs = pd.DataFrame(
        {"perturbation": ["P", "control"] * 30, "cell_type": ["A", "B"] * 30}, [f"c{i}" for i in range(60)]
    )
    ad.AnnData(X, obs, pd.DataFrame(index=[f"G{i}" for i in range(12)])).write_h5ad(tmp_path / "cells.h5ad")
    folder = prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "dataset", split="random:0.1", **KEYS)
    with pytest.raises(EvaeError, match="both perturbed training cells and controls"):
        estimate_effects(folder)


@pytest.mark.filterwarnings("error")
def test_a_gene_without_a_molecule_has_no_effect_and_changes_no_other(screen, tmp_path):
    def effects(cells, name):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
        dataset = prepare_dataset(tmp_path / f"{name}.h5ad", tmp_path / name, genes="all", **KEYS)
        return estimate_effects(dataset).log2_fold_changes

    silent = ad.AnnData(sp.csr_matrix((screen.n_obs, 1), dtype=np.int32), screen.obs, pd.DataFrame(index=["SILENT"]))
    alone, beside = effects(screen, "alone"), effects(ad.concat([screen, silent], axis=1, merge="same"), "beside")
    assert (beside["SILENT"] == 0).all()
    pd.testing.assert_frame_equal(beside.drop(columns="SILENT"), alone)
