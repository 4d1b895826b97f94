"""The command line on bad input: exit code 2, one line that says how to fix it, nothing half written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest


@pytest.fixture
def refused(run: Callable, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail; returns its one line."""

    def command(*arguments: object) -> str:
        before = listing(tmp_path)
        outcome = run(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1, outcome.err
        assert "Traceback" not in outcome.out + outcome.err
        assert listing(tmp_path) == before
        return outcome.err

    return command


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())


def change_counts(cells: ad.AnnData, change: str) -> None:
    X = cells.X.toarray().astype(np.float64)
    if change == "log-normalised":
        X = np.log1p(X / X.sum(1, keepdims=True) * 1e4)
    elif change == "negative":
        X[3, 2] = -1
    elif change == "fractional":
        X = X * 30.5
    elif change == "NaN":
        X[5, 5] = np.nan
    elif change == "empty":
        X[:] = 0
    cells.X = X


BAD_COUNTS = [
    ("log-normalised", "log-normalised; give the raw integer counts"),
    ("negative", "negative values, so they look scaled"),
    ("fractional", "normalised or ambient-corrected; give the raw integer counts"),
    ("NaN", "NaN or infinite values; drop those cells"),
]


@pytest.mark.parametrize(
    ("change", "message"), [*BAD_COUNTS, ("empty", "no cell has a single count over the gene panel")]
)
def test_prepare_bad_counts(refused, screen, tmp_path, change, message):
    cells = screen.copy()
    change_counts(cells, change)
    cells.write_h5ad(tmp_path / "bad.h5ad")
    error = refused("prepare", tmp_path / "bad.h5ad", "--control", "control", "--out", tmp_path / "data")
    assert message in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.h5ad"]


@pytest.mark.parametrize(("change", "message"), BAD_COUNTS)
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_use_bad_counts(refused, trained_prior, controls, screen_split, tmp_path, command, change, message):
    change_counts(controls, change)
    controls.write_h5ad(tmp_path / "bad.h5ad")
    arguments = {
        "predict": ("--controls", tmp_path / "bad.h5ad", "--perturbation", screen_split["pert"][0]),
        "embed": (tmp_path / "bad.h5ad",),
    }
    error = refused(command, trained_prior, *arguments[command], "--out", tmp_path / "out.h5ad")
    assert message in error


def test_duplicate_genes(refused, trained_prior, screen, tmp_path):
    cells = screen.copy()
    cells.var_names = [cells.var_names[0], *cells.var_names[:-1]]
    cells.write_h5ad(tmp_path / "twice.h5ad")
    mend = "var_names_make_unique"
    assert mend in refused("prepare", tmp_path / "twice.h5ad", "--control", "control", "--out", tmp_path / "data")
    assert mend in refused("embed", trained_prior, tmp_path / "twice.h5ad", "--out", tmp_path / "out.h5ad")


def test_no_control_cells(refused, trained_prior, screen, screen_split, tmp_path):
    screen[screen.obs["perturbation"] != "control"].write_h5ad(tmp_path / "treated.h5ad")
    error = refused("prepare", tmp_path / "treated.h5ad", "--control", "control", "--out", tmp_path / "data")
    assert "no cell has the control label 'control'" in error
    error = refused(
        *("predict", trained_prior, "--controls", tmp_path / "treated.h5ad", "--out", tmp_path / "out.h5ad"),
        *("--perturbation", screen_split["pert"][0]),
    )
    assert "name the label with --control" in error


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"cell_type": ["type_Z"], "pert": ["KO"]}, "unknown cell type 'type_Z'. Did you mean 'type_"),
        ({"cell_type": ["type_A"], "pert": ["KO-GENE"]}, "unknown perturbation 'KO-GENE'. Did you mean 'KO-"),
        ({"cell_type": ["type_A"], "pert": ["control"]}, "holds out the control"),
        ({"cells": ["type_A"]}, "must hold"),
    ],
)
def test_bad_split(refused, screen_file, tmp_path, split, message):
    (tmp_path / "split.json").write_text(json.dumps(split))
    common = ("prepare", screen_file, "--control", "control", "--out", tmp_path / "data")
    assert message in refused(*common, "--split", tmp_path / "split.json")


def test_split_that_leaves_nothing_to_train_on(refused, screen, tmp_path):
    names = [p for p in screen.obs["perturbation"].cat.categories if p != "control"]
    cells = screen[(screen.obs["perturbation"] != "control") | (screen.obs["cell_type"] == "type_A")].copy()
    cells = cells[(cells.obs["cell_type"] == "type_B")].copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str)
    cells.obs.iloc[0, cells.obs.columns.get_loc("perturbation")] = "control"
    cells.X = cells.X.toarray()
    cells.X[0] = 0  # the only control is dropped for having no counts
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "split.json").write_text(json.dumps({"cell_type": ["type_B"], "pert": names}))
    error = refused(
        *("prepare", tmp_path / "cells.h5ad", "--control", "control", "--split", tmp_path / "split.json"),
        *("--out", tmp_path / "data"),
    )
    assert "train" in error


def test_coverage_too_low(refused, trained_prior, screen, screen_file, tmp_path):
    (tmp_path / "panel.txt").write_text("\n".join([*screen.var_names[:10], *(f"OTHER{i}" for i in range(30))]))
    error = refused(
        *("prepare", screen_file, "--control", "control", "--genes", tmp_path / "panel.txt"),
        *("--out", tmp_path / "data"),
    )
    assert "measures only 25% of the panel" in error
    screen[:, :12].write_h5ad(tmp_path / "narrow.h5ad")
    error = refused("embed", trained_prior, tmp_path / "narrow.h5ad", "--out", tmp_path / "out.h5ad")
    assert "only 12 of 60 panel genes" in error


def test_names_that_differ_in_case_only_are_said(refused, screen, screen_file, tmp_path):
    cells = screen.copy()
    cells.var_names = [name.capitalize() for name in cells.var_names]
    cells.write_h5ad(tmp_path / "mouse.h5ad")
    (tmp_path / "panel.txt").write_text("\n".join(screen.var_names))
    hint = "60 of the missing genes differ in upper and lower case only ('Gene0001' for 'GENE0001')"
    asked = ("--control", "control", "--genes", tmp_path / "panel.txt", "--out", tmp_path / "data")
    assert hint in refused("prepare", tmp_path / "mouse.h5ad", *asked)
    assert hint in refused("evaluate", tmp_path / "mouse.h5ad", screen_file, "--control", "control")


@pytest.mark.parametrize("content", [None, b"", b"not an h5ad file", "half"])
@pytest.mark.parametrize("command", ["prepare", "embed", "predict", "evaluate"])
def test_unreadable_h5ad(refused, trained_prior, screen_dataset, screen_file, tmp_path, command, content):
    file = tmp_path / "bad.h5ad"
    if content == "half":
        whole = screen_file.read_bytes()
        content = whole[: len(whole) // 2]
    if content is not None:
        file.write_bytes(content)
    out = tmp_path / "out.h5ad"
    arguments = {
        "prepare": (file, "--control", "control", "--out", out),
        "embed": (trained_prior, file, "--out", out),
        "predict": (trained_prior, "--controls", file, "--perturbation", "KO", "--out", out),
        "evaluate": (file, "--dataset", screen_dataset, "--out", out),
    }
    error = refused(command, *arguments[command])
    assert "bad.h5ad" in error
    assert not out.exists()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_checkpoint(refused, trained_prior, screen_file, screen_split, tmp_path, file, damage):
    model = tmp_path / "model"
    shutil.copytree(trained_prior, model, ignore=shutil.ignore_patterns("checkpoints"))
    if damage == "missing":
        (model / file).unlink()
    else:
        (model / file).write_bytes((model / file).read_bytes()[:-50])
    error = refused(
        *("predict", model, "--controls", screen_file, "--perturbation", screen_split["pert"][0]),
        *("--out", tmp_path / "out.h5ad"),
    )
    assert file in error
    assert "copy or download the folder again" in error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lerning_rate=1", "unknown setting 'lerning_rate' for the tokenizer. Did you mean 'learning_rate'"),
        ("model.hiden_size=8", "unknown setting 'model.hiden_size'. Did you mean 'hidden_size'"),
        ("max_steps=many", "max_steps is 'many'; give an integer"),
        ("model.head=softmax", "head 'softmax' does not exist"),
    ],
)
def test_bad_settings(refused, screen_dataset, tmp_path, setting, message):
    error = refused("train", "tokenizer", f"dataset={screen_dataset}", f"output_dir={tmp_path / 'run'}", setting)
    assert message in error
    assert not (tmp_path / "run").exists()


def test_output_folder_that_holds_a_run(refused, trained_tokenizer, screen_dataset, tmp_path):
    shutil.copytree(trained_tokenizer, tmp_path / "run")
    error = refused("train", "tokenizer", f"dataset={screen_dataset}", f"output_dir={tmp_path / 'run'}")
    assert "batch_size was" in error
    assert "overwrite=true" in error


def test_dataset_folder_that_exists(refused, screen_file, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    error = refused("prepare", screen_file, "--control", "control", "--out", tmp_path / "data")
    assert "choose another folder" in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--hold-out-cell-type", "type_Q", "unknown cell type 'type_Q'. Did you mean"),
        ("--hold-out-perturbations", "KO-GENE", "unknown perturbation 'KO-GENE'"),
        ("--perturbation-key", "gene", "no obs column 'gene'"),
        ("--control", "ctrl", "'ctrl'"),
        ("--genes", "some", "neither 'all', 'hvg:N', nor a panel file"),
    ],
)
def test_what_to_hold_out_is_not_in_the_file(refused, screen_file, tmp_path, option, value, message):
    command = ("prepare", screen_file, "--split", "auto", "--out", tmp_path / "data")
    assert message in refused(*command, *(() if option == "--control" else ("--control", "control")), option, value)


def test_options_that_exclude_each_other(refused, trained_prior, screen_dataset, screen_file, tmp_path):
    out = ("--out", tmp_path / "out.h5ad")
    assert "--perturbation, --requests and --held-out" in refused("predict", trained_prior, *out)
    both = ("--held-out", screen_dataset, "--perturbation", "KO")
    assert "--perturbation, --requests and --held-out" in refused("predict", trained_prior, *both, *out)
    assert "REAL.h5ad or --dataset" in refused("evaluate", screen_file)
    mixed = ("--dataset", screen_dataset, "--control", "control")
    assert "go with REAL.h5ad" in refused("evaluate", screen_file, *mixed)
    split = ("--split", "random:0.1", "--hold-out-cell-type", "type_A", "--out", tmp_path / "data")
    assert "give either --split, or" in refused("prepare", screen_file, "--control", "control", *split)
    reversion = ("--screen", "reversion", "--cell-types", 2)
    assert "leave --cell-types out" in refused("simulate", tmp_path / "out.h5ad", *reversion)
    reversion = ("--screen", "reversion", "--context-dependence", 1)
    assert "leave --context-dependence out" in refused("simulate", tmp_path / "out.h5ad", *reversion)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("evaluate", "SCREEN", "--dataset", "DATA", "--suite", "rubust"), "no suite 'rubust'. Did you mean 'robust'"),
        (("evaluate", "SCREEN", "--dataset", "DATA", "--baseline", "svci"), "no baseline 'svci'. Did you mean 'scvi'"),
        (("evaluate", "SCREEN", "--dataset", "DATA", "--features", "no.csv"), "no such file: no.csv"),
        (("evaluate", "SCREEN", "--dataset", "DATA", "--tokenizer", "nowhere"), "no such model folder: nowhere"),
        (("embed", "MODEL", "SCREEN", "--out", "OUT.txt"), "no ending of --out '.txt'"),
        (("embed", "MODEL", "SCREEN", "--out", "OUT.zarr", "--kind", "latent"), "Did you mean 'latents'"),
        (("reversion", "SCREEN", "--baselines", "pca,umpa"), "no baseline 'umpa'. Did you mean 'umap'"),
        (("simulate", "OUT.h5ad", "--screen", "reverson"), "no screen 'reverson'. Did you mean 'reversion'"),
        (("study", "no.yaml"), "no such file: no.yaml"),
        (("push", "nowhere", "me/model"), "no such folder: nowhere"),
        (("push-dataset", "nowhere", "me/data"), "no such folder: nowhere"),
    ],
)
def test_unknown_choices(refused, screen_file, screen_dataset, tiny_checkpoint, tmp_path, command, message):
    places = {"SCREEN": screen_file, "DATA": screen_dataset, "MODEL": tiny_checkpoint}
    words = [str(places.get(word, word)).replace("OUT", f"{tmp_path}/out") for word in command]
    assert message in refused(*words)


def test_the_process_ends_with_code_2_and_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "evae.cli", "embed", "nowhere", "nothing.h5ad", "--out", "x.h5ad"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: no such model folder: nowhere\n"
    assert done.stdout == ""
