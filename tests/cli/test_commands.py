"""The command line on good input: every command writes what it says, and says what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import evae


@pytest.fixture(autouse=True)
def without_umap(monkeypatch):
    """UMAP compiles itself for a minute; whether it is drawn is tested with the figures."""
    monkeypatch.setitem(sys.modules, "umap", None)


COMMANDS = ["prepare", "train", "predict", "embed", "evaluate", "demo"]


def test_help_lists_the_commands_in_the_order_of_use(run):
    outcome = run("--help")
    assert outcome.code == 0
    shown = [line.split()[1] for line in outcome.out.splitlines() if line.startswith("│ ")]
    assert [word for word in shown if word in COMMANDS] == COMMANDS


@pytest.mark.parametrize("command", [*[[c] for c in COMMANDS], ["train", "tokenizer"], ["train", "prior"]])
def test_every_command_explains_itself(run, command):
    outcome = run(*command, "--help")
    assert outcome.code == 0
    assert "Usage: evae " + " ".join(command) in outcome.out


def test_version(run):
    assert run("--version").out.strip() == f"evae {evae.__version__}"


def test_prepare_writes_a_dataset_folder_and_describes_it(run, screen_file, screen_split, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(screen_split))
    outcome = run(
        *("prepare", screen_file, "--control", "control", "--split", tmp_path / "split.json"),
        *("--genes", "hvg:40", "--out", tmp_path / "data"),
    )
    assert outcome.code == 0, outcome.err
    assert "40 genes" in outcome.out
    assert "2 (cell type, perturbation) pairs held out" in outcome.out
    assert json.loads((tmp_path / "data" / "split.json").read_text()) == screen_split


def test_train_both_stages(run, screen_dataset, small_settings, tmp_path):
    tokenizer, prior = tmp_path / "tokenizer", tmp_path / "prior"
    outcome = run(
        *("train", "tokenizer", "--config", "tiny", f"dataset={screen_dataset}", f"output_dir={tokenizer}"),
        *small_settings["tokenizer"],
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip().splitlines()[-1] == str(tokenizer)
    outcome = run(
        *("train", "prior", "--config", "tiny", f"dataset={screen_dataset}", f"output_dir={prior}"),
        *(f"tokenizer={tokenizer}", *small_settings["prior"]),
    )
    assert outcome.code == 0, outcome.err
    assert evae.pipeline(prior, device="cpu").checkpoint.is_prior


def test_predict_takes_the_controls_out_of_a_whole_screen(run, trained_prior, screen_file, screen_split, tmp_path):
    out = tmp_path / "new" / "predicted.h5ad"
    names = screen_split["pert"]
    outcome = run(
        *("predict", trained_prior, "--controls", screen_file, "--perturbation", ",".join(names)),
        *("--cell-type", "type_B", "--n-cells", 12, "--out", out),
    )
    assert outcome.code == 0, outcome.err
    assert "24 cells of 2 (cell type, perturbation) pairs (2 seen apart in training), 60 genes" in outcome.out
    predicted = ad.read_h5ad(out)
    assert set(predicted.obs["perturbation"]) == set(names)
    screen = ad.read_h5ad(screen_file)
    own = screen[(screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == "type_B")]
    assert set(predicted.obs["library_size"]) <= set(np.asarray(own.X.sum(1)).ravel())
    assert os.listdir(out.parent) == ["predicted.h5ad"]


def test_predict_from_a_file_of_controls_without_labels(run, trained_prior, controls, screen_split, tmp_path):
    del controls.obs["perturbation"], controls.obs["cell_type"]
    controls[:8].write_h5ad(tmp_path / "controls.h5ad")
    outcome = run(
        *("predict", trained_prior, "--controls", tmp_path / "controls.h5ad", "--out", tmp_path / "out.h5ad"),
        *("--perturbation", screen_split["pert"][0], "--cell-type", "type_A"),
    )
    assert outcome.code == 0, outcome.err
    assert ad.read_h5ad(tmp_path / "out.h5ad").n_obs == 8


def test_predict_held_out_then_evaluate(run, trained_prior, screen_dataset, tmp_path):
    predicted = tmp_path / "predicted.h5ad"
    outcome = run("predict", trained_prior, "--held-out", screen_dataset, "--out", predicted)
    assert outcome.code == 0, outcome.err
    outcome = run("evaluate", predicted, "--dataset", screen_dataset, "--seeds", 1)
    assert outcome.code == 0, outcome.err
    for text in (
        "model",
        "control copy",
        "perturbation mean",
        "real split half",
        "FD",
        "MMD",
        "W2",
        "Pearson",
    ):
        assert text in outcome.out
    folder = tmp_path / "predicted_evaluation"
    assert json.loads((folder / "result.json").read_text())["summary"]
    assert "<table" in (folder / "report.html").read_text()
    assert len(list((folder / "plots").glob("*.png"))) >= 3
    assert run("evaluate", predicted, "--dataset", screen_dataset).code == 2
    again = run("evaluate", predicted, "--dataset", screen_dataset, "--seeds", 1, "--no-plots", "--overwrite")
    assert again.code == 0, again.err
    assert [p.name for p in folder.iterdir()] == ["result.json"]


def test_evaluate_files_with_other_column_names(run, screen, screen_dataset, screen_split, tmp_path):
    cells = screen.copy()
    cells.obs = cells.obs.rename(columns={"perturbation": "gene", "cell_type": "line"})
    held_out = cells.obs["gene"].isin(screen_split["pert"]) & (cells.obs["line"] == "type_B")
    cells[held_out].write_h5ad(tmp_path / "real.h5ad")
    cells[~held_out].write_h5ad(tmp_path / "train.h5ad")
    keys = ("--perturbation-key", "gene", "--cell-type-key", "line", "--seeds", 1, "--no-plots")
    outcome = run(
        *("evaluate", tmp_path / "real.h5ad", tmp_path / "real.h5ad"),
        *("--train", tmp_path / "train.h5ad", "--control", "control", *keys, "--out", tmp_path / "one"),
    )
    assert outcome.code == 0, outcome.err
    outcome = run("evaluate", tmp_path / "real.h5ad", "--dataset", screen_dataset, *keys, "--out", tmp_path / "two")
    assert outcome.code == 0, outcome.err


def test_embed_writes_a_copy(run, trained_tokenizer, screen_file, tmp_path):
    before = screen_file.read_bytes()
    outcome = run("embed", trained_tokenizer, screen_file, "--out", tmp_path / "embedded.h5ad")
    assert outcome.code == 0, outcome.err
    assert ad.read_h5ad(tmp_path / "embedded.h5ad").obsm["X_evae"].shape == (900, 8)
    assert screen_file.read_bytes() == before


def test_existing_output_is_kept_unless_told(run, trained_prior, screen_file, screen_split, tmp_path):
    out = tmp_path / "predicted.h5ad"
    out.write_text("precious")
    command = (
        *("predict", trained_prior, "--controls", screen_file, "--perturbation", screen_split["pert"][0]),
        *("--n-cells", 2, "--out", out),
    )
    outcome = run(*command)
    assert outcome.code == 2
    assert outcome.err == f"error: {out} exists; choose another --out, or pass --overwrite.\n"
    assert out.read_text() == "precious"
    assert run(*command, "--overwrite").code == 0
    assert ad.read_h5ad(out).n_obs == 4


def test_demo_goes_the_whole_way_and_goes_on_where_it_was(run, screen_file, small_settings, tmp_path):
    out = tmp_path / "demo"
    settings = [
        *[x for s in small_settings["tokenizer"] for x in ("--tokenizer", s)],
        *[x for s in small_settings["prior"] for x in ("--prior", s)],
    ]
    command = ("demo", "--data", screen_file, "--hold-out-cell-type", "type_A", "--out", out, *settings)
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    for text in (
        "1/6",
        "6/6",
        "held out: type_A x",
        "of the codes are in use",
        "tokenizer alone",
        "real split half",
        "evae predict",
    ):
        assert text in outcome.out
    predicted = ad.read_h5ad(out / "predicted.h5ad")
    assert set(predicted.obs["cell_type"]) == {"type_A"}
    assert (out / "evaluation" / "plots" / "cells_pca.png").stat().st_size > 1_000
    weights = (out / "prior" / "model.safetensors").stat().st_mtime_ns
    (out / "predicted.h5ad").unlink()
    again = run(*command)
    assert again.code == 0, again.err
    assert "trained before" in again.out
    assert (out / "prior" / "model.safetensors").stat().st_mtime_ns == weights
    assert (out / "predicted.h5ad").is_file()
    other = run(*command, "--seed", 1)
    assert other.code == 2
    assert "another seed" in other.err


def test_works_from_another_folder_as_a_module(trained_tokenizer, screen_file, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "evae.cli", "embed", trained_tokenizer, screen_file, "--out", "e.h5ad"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "e.h5ad").is_file()


def test_sampling_options_reach_the_prior(run, trained_prior, screen_split, tmp_path):
    common = ["predict", trained_prior, "--perturbation", screen_split["pert"][0], "--cell-type", "type_A"]
    common += ["--n-cells", 20, "--out"]
    assert run(*common, tmp_path / "plain.h5ad").code == 0
    assert run(*common, tmp_path / "one.h5ad", "--guidance-scale", 1).code == 0
    assert run(*common, tmp_path / "four.h5ad", "--guidance-scale", 400).code == 0
    plain, one, four = (ad.read_h5ad(tmp_path / f"{name}.h5ad").X for name in ("plain", "one", "four"))
    assert (plain != one).nnz == 0
    assert (plain != four).nnz > 0
    refused = run(*common, tmp_path / "no.h5ad", "--steps", 4)
    assert refused.code == 2
    assert "EvaeARForCausalLM has no sampling option 'num_steps'" in refused.err
    assert not (tmp_path / "no.h5ad").exists()
