"""`evae vcc score`: contexts left out in turn, the model beside the baselines."""

import json

import numpy as np
import pytest

ROWS = ("model", "mean of other contexts", "control copy", "other contexts", "shrunken transfer", "real split half")


@pytest.fixture(scope="module")
def cells(screen, tmp_path_factory):
    path = tmp_path_factory.mktemp("score") / "cells.h5ad"
    screen.write_h5ad(path)
    return path


def test_every_context_is_left_out_and_scored_beside_the_baselines(run, cells, tiny_checkpoint, tmp_path):
    out = tmp_path / "scores.json"
    done = run("vcc", "score", tiny_checkpoint, cells, "--control", "control", "--seeds", "1", "--out", out)
    assert done.code == 0, done.err
    records = [r for r in json.loads(out.read_text())["records"] if r["group"] == "vcc2026 score"]
    assert {r["cell_type"] for r in records} == {"type_A", "type_B"}
    assert {r["system"] for r in records} == set(ROWS)
    assert len({r["metric"] for r in records}) == 7  # six and their mean
    for word in ("metric", "model", "Jaccard", "score"):
        assert word in done.out
    zero = [r["value"] for r in records if r["system"] == "mean of other contexts" and r["value"] is not None]
    np.testing.assert_allclose(zero, 0, atol=1e-12)
    assert "training saw perturbed cells of type_A" in done.out.replace("\n", " ")


def test_a_target_that_the_model_does_not_know_is_named(run, cells, tiny_checkpoint, screen, tmp_path):
    known = screen.obs["perturbation"].astype(str).to_numpy()
    first = sorted(set(known) - {"control"})[0]
    renamed = screen.copy()
    renamed.obs["perturbation"] = np.where(known == first, "NEVER", known)
    renamed.write_h5ad(tmp_path / "renamed.h5ad")
    words = ("--control", "control", "--seeds", "1", "--context", "type_B")
    done = run("vcc", "score", tiny_checkpoint, tmp_path / "renamed.h5ad", *words)
    assert done.code == 0, done.err
    assert "the model has no value for NEVER; left out in type_B" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--control", "contrl"), "has 0. Did you mean 'control'"),
        (("--control", "control", "--context", "type_C"), "no context 'type_C' has perturbed cells"),
        (("--control", "control", "--cell-type-key", "cell"), "no obs column 'cell'"),
    ],
)
def test_what_cannot_be_scored_is_refused(run, cells, tiny_checkpoint, words, said):
    refused = run("vcc", "score", tiny_checkpoint, cells, *words)
    assert refused.code == 2
    assert said in refused.err
