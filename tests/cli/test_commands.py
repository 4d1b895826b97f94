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
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.split_anndata import read_split
from evae.effects.features import read_vectors, told_by_features


@pytest.fixture(autouse=True)
def without_umap(monkeypatch):
    """UMAP compiles itself for a minute; whether it is drawn is tested with the figures."""
    monkeypatch.setitem(sys.modules, "umap", None)


NUMBERS = ["records.csv", "result.json", "scores.csv", "summary.csv"]  # of an evaluation, without plots
COMMANDS = [
    *(
        "prepare",
        "train",
        "finetune",
        "effects",
        "predict",
        "predicted-effects",
        "embed",
        "evaluate",
        "reversion",
        "study",
        "push",
        "push-dataset",
        "simulate",
    ),
]


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


def test_prepare_chooses_what_to_hold_out(run, screen, screen_file, tmp_path):
    common = ("prepare", screen_file, "--control", "control", "--genes", "auto")
    outcome = run(*common, "--split", "auto", "--out", tmp_path / "auto")
    assert outcome.code == 0, outcome.err
    assert "genes: all 60" in outcome.out
    split = json.loads((tmp_path / "auto" / "split.json").read_text())
    assert f"held out: {split['cell_type'][0]} x {', '.join(split['pert'])}" in outcome.out
    assert "the cell type with the most perturbed cells" in outcome.out
    treated = screen.obs[screen.obs["perturbation"] != "control"]
    assert split["cell_type"] == [treated["cell_type"].value_counts().idxmax()]
    outcome = run(*common, "--hold-out-cell-type", "type_A", "--out", tmp_path / "named")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "named" / "split.json").read_text())["cell_type"] == ["type_A"]
    name = split["pert"][0]
    outcome = run(*common, "--hold-out-perturbations", f"{name},", "--out", tmp_path / "one")
    assert json.loads((tmp_path / "one" / "split.json").read_text())["pert"] == [name]


def test_simulate_writes_cells_with_their_truth(run, tmp_path):
    sizes = ("--cells", 300, "--genes", 50, "--perturbations", 6, "--seed", 4)
    outcome = run("simulate", tmp_path / "a" / "cells.h5ad", *sizes, "--cell-types", 2)
    assert outcome.code == 0, outcome.err
    assert "300 simulated cells, 50 genes; labels: 7 of perturbation, 2 of cell_type" in outcome.out
    cells = ad.read_h5ad(tmp_path / "a" / "cells.h5ad")
    expected = simulate_perturb_seq(n_cells=300, n_genes=50, n_perturbations=6, n_cell_types=2, seed=4)
    assert (cells.X != expected.X).nnz == 0
    assert cells.uns["simulation"]["log_fold_change"].shape == (7, 50)
    outcome = run("simulate", tmp_path / "own.h5ad", *sizes, "--cell-types", 2, "--context-dependence", 1)
    assert outcome.code == 0, outcome.err
    truth = ad.read_h5ad(tmp_path / "own.h5ad").uns["simulation"]
    assert truth["state_response"].min() < 0 < truth["state_response"].max()
    outcome = run("simulate", tmp_path / "stress.h5ad", "--screen", "reversion", *sizes)
    assert outcome.code == 0, outcome.err
    stressed = ad.read_h5ad(tmp_path / "stress.h5ad")
    assert set(stressed.obs["condition"]) == {"Treated", "Untreated"}
    assert len(stressed.uns["simulation"]["reverters"]) == 6


def test_simulated_vectors_tell_effects(run, tmp_path):
    sizes = ("--cells", 4000, "--genes", 100, "--perturbations", 40, "--cell-types", 1)
    vectors = tmp_path / "vectors.csv"
    outcome = run("simulate", tmp_path / "cells.h5ad", *sizes, "--features", vectors)
    assert outcome.code == 0, outcome.err
    cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    truth = cells.uns["simulation"]
    names = [str(name) for name in truth["perturbations"][1:]]
    effects = dict(zip(names, np.asarray(truth["log_fold_change"], dtype=float)[1:], strict=True))
    told = told_by_features({name: effects[name] for name in names[:30]}, read_vectors(vectors), names[30:], "ridge")
    strong = [name for name in names[30:] if np.abs(effects[name]).max() > 0]
    correlation = [np.corrcoef(told[name], effects[name])[0, 1] for name in strong]
    assert np.mean(correlation) > 0.5
    assert max(correlation) < 0.999  # with noise
    for more in (("--features", vectors), ("--screen", "doses", "--features", tmp_path / "a.csv")):
        refused = run("simulate", tmp_path / "other.h5ad", *more)
        assert refused.code == 2
        assert "exists" in refused.err or "have no feature vectors" in refused.err
    assert not (tmp_path / "other.h5ad").exists()


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
        *("--cell-type", "type_B", "--n-cells", 12, "--library-size", "controls", "--out", out),
    )
    assert outcome.code == 0, outcome.err
    assert "24 cells of 2 (cell type, perturbation) pairs (2 seen apart in training), 60 genes" in outcome.out
    n_controls = (ad.read_h5ad(screen_file).obs["perturbation"] == "control").sum()
    assert f"{n_controls} of 900 cells are controls ('control' in obs column 'perturbation')" in outcome.out
    assert f"the other {900 - n_controls} were left out" in outcome.out
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


def test_predict_takes_a_table_of_requests(run, trained_prior, controls, screen_split, tmp_path):
    controls.write_h5ad(tmp_path / "controls.h5ad")
    name = screen_split["pert"][0]
    (tmp_path / "requests.csv").write_text(f"cell_type,perturbation,n_cells\ntype_B,{name},3\ntype_A,{name},2\n")
    command = ("predict", trained_prior, "--controls", tmp_path / "controls.h5ad", "--out", tmp_path / "p.h5ad")
    outcome = run(*command, "--requests", tmp_path / "requests.csv")
    assert outcome.code == 0, outcome.err
    predicted = ad.read_h5ad(tmp_path / "p.h5ad")
    assert list(predicted.obs["cell_type"]) == ["type_B"] * 3 + ["type_A"] * 2
    refused = run(*command, "--overwrite", "--requests", tmp_path / "requests.csv", "--n-cells", 4)
    assert refused.code == 2
    assert "leave --cell-type, --n-cells, --counterfactual out" in refused.err


def test_held_out_pairs_follow_effects_of_the_training_cells(run, trained_prior, screen_dataset, tmp_path):
    outcome = run("effects", screen_dataset, "--out", tmp_path / "effects.csv")
    assert outcome.code == 0, outcome.err
    command = ("predict", trained_prior, "--held-out", screen_dataset, "--out", tmp_path / "p.h5ad")
    outcome = run(*command, "--effects", tmp_path / "effects.csv", "--match-effects")
    assert outcome.code == 0, outcome.err
    assert "the mean follows the given effects" in outcome.out


def test_predict_follows_given_effects(run, trained_prior, controls, screen_split, tmp_path):
    controls.write_h5ad(tmp_path / "controls.h5ad")
    name, genes = screen_split["pert"][0], [str(gene) for gene in controls.var_names]
    lines = [f"gene,{name}", *(f"{gene},{2 * (i % 2) - 1}" for i, gene in enumerate(genes))]
    (tmp_path / "effects.csv").write_text("\n".join(lines))
    given = ("--controls", tmp_path / "controls.h5ad", "--perturbation", name, "--effects", tmp_path / "effects.csv")
    outcome = run("predict", trained_prior, *given, "--match-effects", "--out", tmp_path / "p.h5ad")
    assert outcome.code == 0, outcome.err
    assert "the mean follows the given effects" in outcome.out
    refused = run("predict", trained_prior, *given[:4], "--match-effects", "--out", tmp_path / "q.h5ad")
    assert refused.code == 2
    assert "--match-effects follows log2 fold changes" in refused.err
    assert not (tmp_path / "q.h5ad").exists()


def test_predict_draws_arrows_only_where_cells_have_sources(run, trained_prior, controls, screen_split, tmp_path):
    controls.write_h5ad(tmp_path / "controls.h5ad")
    given = ("predict", trained_prior, "--perturbation", screen_split["pert"][0], "--out", tmp_path / "p.h5ad")
    mine = ("--controls", tmp_path / "controls.h5ad")
    for options, message in (
        (("--plot", tmp_path / "a.png"), "give --controls"),
        ((*mine, "--plot", tmp_path / "a.pdf"), "name a .png file"),
        ((*mine, "--plot", tmp_path / "a.png"), "reads no source cells"),
    ):
        outcome = run(*given, *options)
        assert outcome.code == 2
        assert message in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["controls.h5ad"]


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
    assert sorted(p.name for p in folder.iterdir()) == NUMBERS


def test_evaluate_shows_what_the_tokenizer_alone_keeps(run, trained_prior, screen_dataset, screen, tmp_path):
    test, train = (read_split(screen_dataset, split) for split in ("test", "train"))
    test.obs = test.obs.rename(columns={"perturbation": "gene"})
    test.write_h5ad(tmp_path / "cells.h5ad")
    train.obs = train.obs.rename(columns={"perturbation": "gene"})
    train.write_h5ad(tmp_path / "train.h5ad")
    from_files = (tmp_path / "cells.h5ad", "--train", tmp_path / "train.h5ad", "--control", "control")
    rows = []
    for truth in (("--dataset", screen_dataset), from_files):
        outcome = run(
            *("evaluate", tmp_path / "cells.h5ad", *truth, "--perturbation-key", "gene", "--seeds", 1),
            *("--tokenizer", trained_prior, "--no-plots", "--out", tmp_path / "numbers", "--overwrite"),
        )
        assert outcome.code == 0, outcome.err
        rows.append(next(line for line in outcome.out.splitlines() if "tokenizer alone" in line))
        assert sorted(os.listdir(tmp_path / "numbers")) == [*NUMBERS, "tokenizer_alone.json"]
        stored = json.loads((tmp_path / "numbers" / "result.json").read_text())["summary"]
        assert any(row["system"] == "tokenizer alone" and row["metric"] == "fd" for row in stored)
        perfect = next(line for line in outcome.out.splitlines() if "│ model" in line)
        assert perfect.split("│")[2:] != rows[-1].split("│")[2:]
    assert rows[0] == rows[1]  # the same cells, by either way


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


def test_a_real_file_that_says_donor(run, trained_prior, screen, screen_split, tmp_path):
    """Its column is named once for every command; predictions keep it, and older ones without it serve too."""
    cells = screen.copy()
    cells.obs = cells.obs.rename(columns={"perturbation": "gene", "cell_type": "donor"})
    cells[cells.obs["gene"] == "control"].write_h5ad(tmp_path / "controls.h5ad")
    wanted = screen_split["pert"][0]
    cells[cells.obs["gene"].isin(["control", wanted])].write_h5ad(tmp_path / "real.h5ad")
    keys = ("--perturbation-key", "gene", "--cell-type-key", "donor")
    outcome = run(
        *("predict", trained_prior, "--controls", tmp_path / "controls.h5ad", *keys, "--perturbation", wanted),
        *("--n-cells", 20, "--out", tmp_path / "new.h5ad"),
    )
    assert outcome.code == 0, outcome.err
    new = ad.read_h5ad(tmp_path / "new.h5ad")
    assert (new.obs["donor"] == new.obs["cell_type"]).all()
    assert (new.obs["gene"] == new.obs["perturbation"]).all()
    old, other = new.copy(), new.copy()
    old.obs = new.obs.drop(columns=["donor", "gene"])
    other.obs = old.obs.rename(columns={"cell_type": "line", "perturbation": "hit"})
    old.write_h5ad(tmp_path / "old.h5ad")
    other.write_h5ad(tmp_path / "other.h5ad")
    summaries = []
    named = ("--predicted-cell-type-key", "line", "--predicted-perturbation-key", "hit")
    for name, more in (("new", ()), ("old", ()), ("other", named)):
        outcome = run(
            *("evaluate", tmp_path / f"{name}.h5ad", tmp_path / "real.h5ad", "--control", "control", *keys, *more),
            *("--seeds", 1, "--no-plots", "--out", tmp_path / name),
        )
        assert outcome.code == 0, outcome.err
        summaries.append(json.loads((tmp_path / name / "result.json").read_text())["summary"])
        assert ("stands for 'donor'" in outcome.out) == (name != "new")
    assert summaries[0] == summaries[1] == summaries[2]
    outcome = run("evaluate", tmp_path / "other.h5ad", tmp_path / "real.h5ad", "--control", "control", *keys)
    assert outcome.code == 2
    assert "name it with --predicted-perturbation-key" in " ".join(outcome.err.split())
