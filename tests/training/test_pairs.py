"""Pairs of a training: kept in the run's folder, made anew when what they depend on changed, one for all ranks."""

import json
import shutil
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from evae.data.streaming.mixture import Sources
from evae.data.streaming.split_anndata import DatasetSplit, read_split
from evae.training import components, pairs
from evae.training.controls import cell_batches
from evae.training.encoder import Encoder
from evae.training.pairs import PairSettings, keep_pairs, load_pairs, pairing_key


@pytest.fixture(scope="module")
def run(toy_screen, data, tokenizer, folder):
    return toy_screen.fit(data, tokenizer, folder / "prior")


def same_weights(first, second):
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    return all(torch.equal(one[name], two[name]) for name in one)


def key_of(run):
    with safe_open(run / pairs.FILE, framework="numpy") as file:
        return file.metadata()["key"]


def unfinished(run, to):
    """A copy of the run that lacks its end and its last checkpoint."""
    shutil.copytree(run, to)
    shutil.rmtree(sorted((to / "checkpoints").glob("step*"))[-1])
    lines = (to / "log.jsonl").read_text().splitlines()
    (to / "log.jsonl").write_text("".join(f"{line}\n" for line in lines if not json.loads(line).get("finished")))
    (to / "model.safetensors").unlink()
    return to


def resume(toy_screen, data, tokenizer, run, monkeypatch):
    """Go on with a run; returns how often pairs were made."""
    made, make = [], pairs.couple
    monkeypatch.setattr(pairs, "couple", lambda *a, **k: (made.append(1), make(*a, **k))[1])
    toy_screen.fit(data, tokenizer, run, resume=True)
    return len(made)


def test_a_resumed_run_takes_the_pairs_that_it_kept(toy_screen, data, tokenizer, run, tmp_path, monkeypatch):
    resumed = unfinished(run, tmp_path / "prior")
    assert resume(toy_screen, data, tokenizer, resumed, monkeypatch) == 0
    assert same_weights(run, resumed)


@pytest.mark.parametrize("damage", ["stale", "torn", "gone", "other cells"])
def test_pairs_that_do_not_fit_are_made_anew(toy_screen, data, tokenizer, run, tmp_path, monkeypatch, damage):
    resumed = unfinished(run, tmp_path / "prior")
    file, key = resumed / pairs.FILE, key_of(run)
    kept = load_pairs(run, key)
    wrong = {split: np.zeros_like(rows) for split, rows in kept.items()}
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    if damage == "stale":
        keep_pairs(resumed, "another key", wrong)
    if damage == "other cells":
        keep_pairs(resumed, key, {split: rows[1:] for split, rows in wrong.items()})
    assert resume(toy_screen, data, tokenizer, resumed, monkeypatch) > 0
    assert same_weights(run, resumed)
    if damage != "other cells":
        assert all((load_pairs(resumed, key)[split] == rows).all() for split, rows in kept.items())


def test_the_pairs_of_another_run_are_overwritten(toy_screen, data, tokenizer, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "prior")
    toy_screen.fit(data, tokenizer, other, overwrite=True, seed=1, max_steps=1)
    assert key_of(other) != key_of(run)
    assert not list(other.rglob(".partial*"))
    toy_screen.fit(data, tokenizer, other, toy_screen.PRIOR | {"source_cells": 0}, overwrite=True, max_steps=1)
    assert not (other / pairs.FILE).exists()


def test_whatever_changes_pairs_changes_their_key(toy_screen, data, tokenizer, run, tmp_path):
    def more_cells(cells):
        counts = cells.X.toarray()
        counts[0, :5] += 1
        return ad.AnnData(counts, cells.obs, cells.var)

    (tmp_path / "other").mkdir()
    other_data = toy_screen.screen(tmp_path / "other", more_cells)
    other_tokenizer = toy_screen.tokenize(data, tmp_path / "tokenizer", seed=1)
    short = {"max_steps": 1}
    runs = [
        toy_screen.fit(data, tokenizer, tmp_path / "seed", seed=1, **short),
        toy_screen.fit(data, tokenizer, tmp_path / "random", coupling="random", **short),
        toy_screen.fit(data, tokenizer, tmp_path / "space", coupling_space="pca", **short),
        toy_screen.fit(data, tokenizer, tmp_path / "set", toy_screen.PRIOR | {"source_cells": 3}, **short),
        toy_screen.fit(data, other_tokenizer, tmp_path / "tokens", **short),
        toy_screen.fit(other_data, tokenizer, tmp_path / "cells", **short),
    ]
    keys = [key_of(folder) for folder in (run, *runs)]
    assert len(set(keys)) == len(keys)
    same = toy_screen.fit(data, tokenizer, tmp_path / "same", learning_rate=1e-3, **short)
    assert key_of(same) == key_of(run)


def test_each_setting_is_in_the_key():
    wanted = PairSettings("optimal-transport", "latents", 4, False, 0)
    changes = {"how": "random", "space": "pca", "n_draws": 5, "as_set": True, "seed": 1}
    keys = {pairing_key(replace(wanted, **{name: value}), "cells") for name, value in changes.items()}
    assert len(keys | {pairing_key(wanted, "cells"), pairing_key(wanted, "others")}) == 7


def test_pairs_stay_within_batches(toy_screen, data, tokenizer, tmp_path, capsys):
    def with_batches(cells):
        cells.obs["plate"] = np.array(["p1", "p2", "p3"])[np.arange(cells.n_obs) % 3]
        lonely = (cells.obs["cell_type"] == "type_B") & (cells.obs["plate"] == "p2")
        return cells[~(lonely & (cells.obs["perturbation"] == "control")).to_numpy()].copy()

    batches = toy_screen.screen(tmp_path, with_batches, batch_key="plate")
    run = toy_screen.fit(batches, tokenizer, tmp_path / "prior", max_steps=1)
    assert "no control of their cell type in their batch ('type_B' in 'p2')" in capsys.readouterr().err
    train = read_split(batches, "train").obs
    plate = DatasetSplit(batches, "train").batch_ids()
    assert (
        np.array(["p1", "p2", "p3"])[plate] == ad.read_h5ad(tmp_path / "cells.h5ad").obs.loc[train.index, "plate"]
    ).all()
    controls = np.flatnonzero(train["perturbation"] == "control")
    found = controls[load_pairs(run, key_of(run))["train"]]
    assert (train["cell_type"].to_numpy()[found] == train["cell_type"].to_numpy()[:, None]).all()
    lonely = ((train["cell_type"] == "type_B") & (plate == 1)).to_numpy()
    assert 0 < lonely.sum() < len(lonely) / 3
    assert (plate[found[~lonely]] == plate[~lonely][:, None]).all()
    assert (plate[found[lonely]] != 1).all()

    two = Sources([str(data), str(batches)])
    encoder = Encoder(two, torch.nn.Identity(), True, Accelerator(cpu=True), lambda: None)
    of_cells, names = cell_batches(encoder)
    assert names == ["no batch", "p1", "p2", "p3"]
    assert (of_cells["train"] == np.r_[np.zeros(two.infos[0].n_cells["train"]), 1 + plate]).all()


RANKS = """
import sys
import numpy as np
from accelerate import Accelerator
from pathlib import Path
from toy_run import fork_ranks
from evae.training import pairs

def work(folder):
    accelerator, folder = Accelerator(cpu=True), Path(folder)
    rank = accelerator.process_index
    sizes = {split: (3, 2) for split in pairs.SPLITS}
    make = lambda: {split: np.full((3, 2), 10 + rank, dtype=np.int32) for split in pairs.SPLITS}
    for name in ("kept", "not kept"):
        place = folder / name if rank == 0 else folder / "not seen yet"
        found = pairs.kept_or_made(place, "key", sizes, make, accelerator)
        pairs.keep_pairs(folder / f"{name} {rank}", "key", found)

codes = fork_ranks(2, {}, work, folder=sys.argv[1])
assert codes == [0, 0], codes
"""


def test_all_ranks_have_the_pairs_of_the_main_one(run_with_ranks, tmp_path):
    """Where ranks compute otherwise, or see the file later."""
    (tmp_path / "kept").mkdir()
    keep_pairs(tmp_path / "kept", "key", {split: np.full((3, 2), 7, dtype=np.int32) for split in pairs.SPLITS})
    run_with_ranks(RANKS)
    for rank in "01":
        for name, expected in (("kept", 7), ("not kept", 10)):
            found = load_pairs(tmp_path / f"{name} {rank}", "key")
            assert all((rows == expected).all() for rows in found.values())


@pytest.mark.parametrize("fitted_on", [20_000, 100])
def test_principal_components_are_those_of_training_cells(data, monkeypatch, fitted_on):
    monkeypatch.setattr(components, "FIT_CELLS", fitted_on)
    monkeypatch.setattr("evae.training.encoder.ENCODING_BATCH", 50)
    encoder = Encoder(Sources([str(data)]), torch.nn.Identity(), True, Accelerator(cpu=True), lambda: None)
    found = components.principal_components(encoder, pairs.SPLITS)
    expression = {}
    for split in pairs.SPLITS:
        counts = read_split(data, split).X.toarray().astype(float)
        expression[split] = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    reference = PCA(30, svd_solver="full").fit(expression["train"][:fitted_on])
    for split in pairs.SPLITS:
        np.testing.assert_allclose(pdist(found[split]), pdist(reference.transform(expression[split])), rtol=1e-4)
