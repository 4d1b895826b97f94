"""`evae push-dataset`, and reading from the Hub what it put there."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi

import evae
from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.hub import push_dataset
from evae.hub.dataset_card import published_card

WRITER = "hf_writer"
REPO = "evae/screen"


@pytest.fixture
def pushed(hub, login, screen_dataset: Path, run) -> str:
    login(WRITER)
    done = run("push-dataset", screen_dataset, REPO, "--licence", "cc-by-4.0")
    assert done.code == 0, done.err
    return REPO


@pytest.fixture
def folder(screen_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(screen_dataset, tmp_path / "dataset"))


def test_streams_the_rows_of_the_folder(pushed, screen_dataset, hub):
    for split in ("train", "validation", "test"):
        here = load_dataset(str(screen_dataset), split=split, streaming=True)
        there = load_dataset(pushed, split=split, streaming=True)
        assert there.features == here.features
        assert list(there) == list(here)
    genes = load_dataset(pushed, "genes", split="train", streaming=True)
    assert [row["symbol"] for row in genes] == DatasetInfo.load(screen_dataset).genes


def test_loader_gives_the_same_batches(pushed, screen_dataset):
    assert DatasetInfo.load(pushed) == DatasetInfo.load(screen_dataset)
    here, there = (CellLoader(place, "train", 64, seed=3, epochs=1) for place in (screen_dataset, pushed))
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_streaming_survives_a_cut(pushed, screen_dataset, hub, hub_module):
    hub.faults.append(hub_module.Fault(path="/stored/", method="GET", times=1, cut=500))
    there = load_dataset(pushed, split="train", streaming=True)
    assert list(there) == list(load_dataset(str(screen_dataset), split="train", streaming=True))
    assert hub.faults[0].times == 0


def test_card(pushed, hub, screen_dataset):
    text = hub.repo(REPO, "datasets").files()["README.md"].decode()
    data = DatasetCard(text).data
    assert data.license == "cc-by-4.0"
    assert data.size_categories == ["n<1K"]
    assert {config["config_name"] for config in data.configs} == {"cells", "genes", "perturbations", "cell_types"}
    assert 'load_dataset("evae/screen", split="train"' in text
    source = DatasetInfo.load(screen_dataset).statistics["sources"][0]
    assert source["sha256"] in text
    assert "`type_A`, `type_B`" in text


@pytest.mark.parametrize("local", ["# a page\n", "---\na: [\n---\n", "---\n- a\n---\n", "---\ntags: [a]\n---\n"])
def test_a_card_that_names_no_files_is_refused(local, screen_dataset):
    with pytest.raises(evae.EvaeError, match="has no YAML header that names its files; prepare the dataset anew"):
        published_card(local, REPO, DatasetInfo.load(screen_dataset), "mit")


@pytest.mark.skipif(huggingface_hub.__version__ < "1", reason="the client before 1.0 lists the files in one answer")
def test_listing_is_read_page_by_page(pushed, hub, screen_dataset):
    hub.page_size = 3
    info = CellLoader(pushed, "train", 8).info
    assert info.n_cells == DatasetInfo.load(screen_dataset).n_cells
    pages = [path for _, path in hub.requests if "/tree/" in path]
    assert len(pages) > 3


def test_second_push_leaves_no_old_shard(pushed, hub, screen_dataset):
    old = "data/train-99999-of-99999.parquet"
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo=old, repo_id=REPO, repo_type="dataset")
    assert old in hub.repo(REPO, "datasets").files()
    push_dataset(screen_dataset, REPO)
    assert old not in hub.repo(REPO, "datasets").files()


class TestRefusals:
    def test_damaged_shard(self, folder, hub):
        shard = sorted((folder / "data").glob("train-*.parquet"))[0]
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(evae.EvaeError, match=rf"the shard data/{shard.name} is missing or damaged"):
            push_dataset(folder, REPO)
        shard.unlink()
        with pytest.raises(evae.EvaeError, match=rf"the shard data/{shard.name} is missing or damaged"):
            push_dataset(folder, REPO)
        assert not hub.requests

    def test_no_dataset(self, tmp_path, run):
        assert "no such folder" in run("push-dataset", tmp_path / "nothing", REPO).err
        assert "is not a dataset folder" in run("push-dataset", tmp_path, REPO).err

    def test_dry_run_and_login(self, screen_dataset, hub, run):
        done = run("push-dataset", screen_dataset, REPO, "--dry-run")
        assert done.code == 0
        assert "data/train-00000" in done.out
        assert not hub.requests
        assert "pushing needs a login" in run("push-dataset", screen_dataset, REPO).err

    def test_missing_on_the_hub(self, hub):
        with pytest.raises(evae.EvaeError, match="no dataset of that name on the Hub"):
            DatasetInfo.load("evae/nothing")


def test_a_benchmark_has_its_tasks(hub, login, screen_dataset):
    login(WRITER)
    push_dataset(screen_dataset, "evae/benchmark", as_benchmark=True)
    stored = yaml.safe_load(hub.repo("evae/benchmark", "datasets").files()["eval.yaml"])
    assert stored["name"] == "benchmark"
    assert {"id": "robust_fd", "config": "cells", "split": "test"} in stored["tasks"]
    push_dataset(screen_dataset, "evae/benchmark")
    assert "eval.yaml" not in hub.repo("evae/benchmark", "datasets").files()
