"""How far predictions may be trusted: facts and errors as computed directly, regressions as scikit-learn's."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import evae
from evae.data import read_split
from evae.inference import calibrate, calibration
from evae.inference.confidence import left_out, with_confidence
from evae.inference.held_out import predict_held_out
from evae.models.contract_evae import EvaeError


@pytest.fixture
def few_will_do(monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_PAIRS", 2)


def log1p_cp10k(cells):
    dense = cells.X.toarray().astype(float)
    return np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)


def mean_and_noise(cells):
    values = log1p_cp10k(cells)
    return values.mean(0), values.var(0, ddof=1) / len(values)


def test_a_pair_is_told_by_ridge_regression_on_the_others():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)) * [1, 5, 0] + [0, 7, 2], rng.normal(size=12)
    for i, found in enumerate(left_out(x, y)):
        rest = np.arange(12) != i
        scale = StandardScaler().fit(x[rest])
        expected = Ridge(alpha=1.0).fit(scale.transform(x[rest]), y[rest]).predict(scale.transform(x[i : i + 1]))
        assert found == pytest.approx(expected[0])


def test_errors_and_facts_are_those_of_the_cells(tiny_checkpoint, screen_dataset, few_will_do):
    pipe = evae.pipeline(tiny_checkpoint, device="cpu")
    table = calibrate(pipe, screen_dataset, seed=3, progress=False)
    predicted = predict_held_out(pipe, screen_dataset, seed=3, progress=False)
    train, test = read_split(screen_dataset, "train"), read_split(screen_dataset, "test")
    own = (train.obs["cell_type"] == "type_B") & (train.obs["perturbation"] == "control")
    base, base_noise = mean_and_noise(train[own])
    for row in table.itertuples():
        drawn, noise = mean_and_noise(predicted[predicted.obs["perturbation"] == row.perturbation])
        real, real_noise = mean_and_noise(test[test.obs["perturbation"] == row.perturbation])
        square = ((drawn - real) ** 2).mean() - (noise + real_noise).mean()
        assert row.error == pytest.approx(np.sqrt(square), rel=0.05)  # noise of few cells borrows from all
        assert row.correlation == pytest.approx(np.corrcoef(drawn - base, real - base)[0, 1], abs=1e-4)
        assert row.effect**2 == pytest.approx(((drawn - base) ** 2).mean() - (noise + base_noise).mean(), rel=0.05)
        assert row.training_cells == (train.obs["perturbation"] == row.perturbation).sum()
        assert np.isnan(row.agreement)  # seen in one cell type alone
    assert pipe.processor.calibration["facts"] == ["effect", "training_cells"]
    assert pipe.processor.calibration["error"]["orders"] == pytest.approx(-1)  # each expects the other


def test_cell_types_that_answer_alike_agree():
    rng = np.random.default_rng(1)
    base, effect = rng.normal(size=(3, 50)), rng.normal(size=50)
    means = {("ABC"[i], "control"): (100, base[i], base[i]) for i in range(3)}
    means |= {("ABC"[i], "same"): (30, base[i] + effect, base[i]) for i in range(3)}
    means |= {("AB"[i], "other"): (40, base[i] + (-1) ** i * effect, base[i]) for i in range(2)}
    means |= {("A", "once"): (50, base[0], base[0]), ("B", "once"): (3, base[1], base[1])}
    known, profiles = calibration.training_facts(means, "control")
    assert known["same"] == (90, pytest.approx(1.0))
    assert known["other"] == (80, pytest.approx(-1.0))
    assert known["once"] == (53, None)
    np.testing.assert_allclose(profiles["C"], base[2], atol=1e-4)


def test_a_pair_unlike_the_calibrated_ones_gets_no_number():
    rng = np.random.default_rng(2)
    facts = pd.DataFrame(
        {
            "cell_type": "A", "perturbation": [f"p{i}" for i in range(20)], "effect": rng.uniform(0.05, 0.4, 20),
            "agreement": rng.uniform(0, 0.9, 20), "training_cells": rng.integers(200, 900, 20), "control_distance": 0.0,
        }
    )  # fmt: skip
    table = facts.assign(error=facts["effect"] / 3, correlation=np.sqrt(facts["effect"]))
    learned = calibration._learned(table, {}, {"A": [0.0, 1.0], "B": [0.2, 1.0]})
    assert learned["error"]["orders"] > 0.95
    found = with_confidence(facts, learned)
    assert np.corrcoef(found["expected_error"], table["error"])[0, 1] > 0.95
    assert (table["error"] <= found["error_90"]).sum() >= 18
    assert not found["remark"].any()
    for fact, value, name in (
        ("training_cells", 0, "training cells"), ("effect", 2.0, "effect"), ("agreement", np.nan, "agreement"),
        ("control_distance", 0.3, "distance of the controls"),
    ):  # fmt: skip
        row = with_confidence(facts.iloc[:1].assign(**{fact: value}), learned).iloc[0]
        assert name in row["remark"]
        assert np.isnan(row["expected_error"])
        assert np.isnan(row["expected_correlation"])


def test_too_few_pairs_give_no_calibration(pipe, screen_dataset):
    with pytest.raises(EvaeError, match="too few pairs to calibrate on: 2 of 20 cells"):
        calibrate(pipe, screen_dataset, progress=False)
    assert pipe.processor.calibration is None


def test_the_command_keeps_it_and_effects_say_it(run, tiny_checkpoint, screen_dataset, controls, few_will_do, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "prior")
    before = json.loads((folder / "preprocessor_config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    done = run("calibrate", folder, "--dataset", screen_dataset, "--out", tmp_path / "pairs.csv")
    assert done.code == 0, done.err
    assert "2 held-out pairs, each told by the others" in done.out
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    after = json.loads((folder / "preprocessor_config.json").read_text())
    assert after["calibration"]["pairs"] == 2
    assert {name: after[name] for name in before} == before
    assert (folder / "model.safetensors").read_bytes() == weights

    own = controls[controls.obs["cell_type"] == "type_B"].copy()
    name = pairs["perturbation"][0]
    pipe = evae.pipeline(folder, device="cpu")
    cells = pipe.predict(own, name, n_cells=200, seed=1, progress=False)
    table = pipe.effects(cells, own, redraws=0)
    assert table[["expected_error", "error_90", "expected_correlation"]].nunique().tolist() == [1, 1, 1]
    assert table["expected_error"].notna().all()
    mixed_up = own.copy()
    mixed_up.X = mixed_up.X[:, ::-1]
    far = pipe.effects(cells, mixed_up, redraws=0)
    assert far["expected_error"].isna().all()
    assert "distance of the controls" in far["remark"][0]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    own.write_h5ad(tmp_path / "own.h5ad")
    words = [tmp_path / "cells.h5ad", "--controls", tmp_path / "own.h5ad", "--redraws", 0, "--out"]
    assert "expect a correlation of" in run("predicted-effects", folder, *words, tmp_path / "genes.csv").out
    assert "correlation" not in run("predicted-effects", tiny_checkpoint, *words, tmp_path / "not.csv").out
    assert set(pd.read_csv(tmp_path / "not.csv")["remark"]) == {"not calibrated"}


def test_the_example_is_calibrated():
    pipe, controls = evae.pipeline("example", device="cpu"), evae.example_controls()
    assert pipe.processor.calibration["pairs"] == 12
    cells = pipe.predict(controls, ["STAT1", "CAV1"], n_cells=200, progress=False)
    table = pipe.effects(cells, controls, redraws=0).drop_duplicates("perturbation").set_index("perturbation")
    assert table.loc["STAT1", "expected_correlation"] > table.loc["CAV1", "expected_correlation"] + 0.3
