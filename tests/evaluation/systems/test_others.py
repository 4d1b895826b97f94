"""Another model's predictions beside the model's, from the files to the sentences of the report."""

import numpy as np
import pytest

from evae.evaluation import evaluate
from evae.evaluation.report.question import standing
from evae.models.contract_evae import EvaeError

QUICK = {"suite": "perturbation", "progress": False, "seeds": (0,)}


@pytest.fixture
def shuffled(real):
    """A model whose cells stand for the wrong perturbation, with genes in another order."""
    cells = real[:, ::-1].copy()
    labels = cells.obs["perturbation"].to_numpy().astype(str)
    cells.obs["perturbation"] = np.roll(labels, len(labels) // 3)
    return cells


def test_another_model_has_the_values_that_it_has_as_the_model(screen, real, perfect, shuffled):
    found = evaluate(shuffled, real, screen, others={"theirs": perfect, "half": perfect[:40]}, **QUICK)
    alone = evaluate(perfect, real, screen, **QUICK)
    by = ["metric", "level", "cell_type", "perturbation"]
    theirs = found.records.query("system == 'theirs'").set_index(by)["value"]
    own = alone.records.query("system == 'model'").set_index(by)["value"]
    np.testing.assert_allclose(theirs[own.index], own, rtol=1e-12)
    assert found.stamp["settings"]["others"] == ["theirs", "half"]
    assert "half has cells of 1 of the 3 pairs" in found.stamp["notes"]
    said = " ".join(standing(found.summary()))
    assert "every baseline and other model in 0 of" in said
    assert "Another model is ahead in" in said
    assert "theirs" in said


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [("additive shift", None, "is a row of every table"), ("theirs", "elsewhere", "none of the pairs to evaluate")],
)
def test_what_cannot_stand_beside_it_is_said(screen, real, perfect, name, labels, message):
    cells = perfect.copy()
    if labels:
        cells.obs["perturbation"] = labels
    with pytest.raises(EvaeError, match=message):
        evaluate(perfect, real, screen, others={name: cells}, **QUICK)


def test_the_command_names_models_and_files(screen, real, perfect, shuffled, tmp_path, run):
    files = {"real": real, "train": screen, "own": shuffled, "theirs": perfect}
    for name, cells in files.items():
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    own, truth, train, theirs = (str(tmp_path / f"{name}.h5ad") for name in ("own", "real", "train", "theirs"))
    command = [
        "evaluate",
        own,
        truth,
        "--train",
        train,
        "--control",
        "control",
        "--suite",
        "perturbation",
        "--no-plots",
    ]
    assert "theirs" in run(*command, "--other", f"theirs={theirs}", "--out", tmp_path / "out").out
    twice = run(*command, "--other", f"a={theirs}", "--other", f"a={theirs}", "--out", tmp_path / "twice")
    assert "--other names a twice" in twice.err
    unnamed = run(*command, "--other", theirs, "--out", tmp_path / "no")
    assert unnamed.code
    assert "write for example scGen=scgen.h5ad" in unnamed.err
