"""The suite `extended` end to end: values by hand, scores of a perfect model and of a control copy, what is said."""

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from evae.evaluation import evaluate, main_tables
from evae.evaluation.metrics.calibration import MATCHED
from evae.evaluation.systems.names import INTERPOLATED, MODEL, SPLIT_HALF

from ..conftest import make_screen

PAIR = {"group": "extended", "level": "pair"}
HOW = {"progress": False, "suite": "extended", "cache": None, "n_components": 8}


@pytest.fixture(scope="module")
def result(screen, real, perfect):
    return evaluate(perfect, real, screen, seeds=(0, 1), **HOW)


@pytest.fixture(scope="module")
def ignorant(screen, real):
    """A model that ignores the perturbation."""
    controls = screen[(screen.obs.perturbation == "control") & (screen.obs.cell_type == "B")]
    copies = controls[np.random.default_rng(0).choice(controls.n_obs, real.n_obs)].copy()
    copies.obs = real.obs.copy()
    return evaluate(copies, real, screen, seeds=(0, 1), **HOW)


def score(result, metric):
    table = result.scores()
    return table[(table["metric"] == metric) & (table["system"] == MODEL)].iloc[0]


TELLING = ("weighted_r2_delta", "mse_unbiased", "look_alike", "top_de_agreement_20", "pr_auc", "mse")


@pytest.mark.parametrize("metric", TELLING)
def test_a_perfect_model_goes_the_whole_way_and_a_control_copy_nothing(result, ignorant, metric):
    assert score(result, metric)["score"] > 0.85
    assert score(ignorant, metric)["score"] < 0.1


def test_values_are_recomputed_by_hand(result):
    cells, training = result.comparison, result.comparison.training
    reference = np.mean([m for (c, p), m in training.means.items() if c == "B" and p != "control"], axis=0)
    own = result.records.query("group == 'extended' and level == 'pair' and system == 'model'")
    values = own.pivot_table(index="perturbation", columns="metric", values="value")
    means = {
        p: [side.matrix[side.perturbation == p].toarray().mean(axis=0) for side in (cells.predicted, cells.real)]
        for p in ("G0", "G1", "G2")
    }
    for p, (predicted, real) in means.items():
        expected = np.corrcoef(predicted - reference, real - reference)[0, 1]
        assert values.loc[p, "pearson_delta_centred"] == pytest.approx(expected, abs=1e-5)
        distances = {q: np.linalg.norm(predicted - other) for q, (_, other) in means.items()}
        farther = sum(d > distances[p] for d in distances.values())
        assert values.loc[p, "centroid_accuracy"] == pytest.approx(farther / 2)


def test_every_value_has_its_floor_and_its_ceiling_beside_it(result):
    systems = set(result.records.query("group == 'extended'")["system"])
    assert {MODEL, "control copy", "mean of all shifts", SPLIT_HALF, INTERPOLATED} <= systems
    values = {s: result.value("mse_unbiased", s, **PAIR) for s in (MODEL, "control copy", SPLIT_HALF, INTERPOLATED)}
    assert abs(values[SPLIT_HALF]) < 0.2 * values["control copy"]
    assert values[INTERPOLATED] < 0.5 * values["control copy"]
    matched = result.records[result.records["level"] == MATCHED]
    assert set(matched["n_real"]) == {20}
    assert not (result.summary()["level"] == MATCHED).any()  # they calibrate, and stand in no table


def test_cells_that_are_all_alike_recover_no_structure(result):
    collapsed = {"system": "mean-collapsed model", **PAIR}
    assert result.value("variance_recovered", **collapsed) == pytest.approx(0, abs=1e-9)
    assert result.value("correlation_recovered", **collapsed) == 0
    assert result.value("e_test_rejected", **collapsed) == 1
    assert result.value("e_test_rejected", SPLIT_HALF, **PAIR) < 0.5


def test_empty_ranges_and_references_are_said(screen, real, perfect, ignorant):
    none = make_screen(cell_types=("B",), seed=2, perturbations=("none",))
    train = make_screen(cell_types=("A",), seed=3)
    held = none[none.obs.perturbation == "none"].copy()
    controls = none[none.obs.perturbation == "control"].copy()
    found = evaluate(held, held, train, controls, seeds=(0, 1), **HOW)  # a perturbation without any effect
    assert score(found, "weighted_mse")["why_not"].startswith("empty range")
    assert any("no perturbed cells of B" in note and "mean shift" in note for note in found.stamp["notes"])
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(main_tables(found))
    assert "No score for" in console.export_text()
    alone = evaluate(perfect, real, controls=controls, seeds=(0,), **HOW)  # no training cells
    assert np.isfinite(alone.value("pearson_delta_centred", **PAIR))
    assert any("that of the real cells" in note for note in alone.stamp["notes"])


def test_the_terminal_table_is_short_and_files_hold_all(result, tmp_path):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(main_tables(result))
    text = console.export_text()
    assert "…" not in text
    assert "look-alikes" in text
    assert "top 50" not in text
    result.write_numbers(tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(stored["scores"]) == len(scores) == len(result.scores())
    assert {"top_de_overlap_50", "e_distance", "fd"} <= set(scores["metric"])
    assert len(pd.read_csv(tmp_path / "records.csv")) == len(result.records)
