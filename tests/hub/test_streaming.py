"""Training batches out of a dataset on the Hub: shards come one by one, exactly the rows of the folder."""

import json
import re

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

import evae
import evae.data.streaming.loader as module
from evae.data.streaming.loader import CellLoader, DatasetInfo

WRITER = "hf_writer"
REPO = "evae/stream"


@pytest.fixture
def streamed(hub, screen_dataset) -> str:
    api = HfApi(token=WRITER)
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=screen_dataset)
    hub.requests.clear()
    return REPO


def _downloads(hub) -> list[str]:
    """The shards whose content was asked for, in order."""
    files = hub.repo(REPO, "datasets").commits[hub.repo(REPO, "datasets").branches["main"]]
    wanted = {f"/stored/{blob.sha256}": path for path, blob in files.items()}
    return [wanted[path] for method, path in hub.requests if method == "GET" and path in wanted]


def test_shards_come_when_they_are_read_and_once(streamed, hub, screen_dataset, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_ROWS", 64)
    loader = CellLoader(streamed, "train", 33, prefetch=0, epochs=2)  # an odd batch comes from one lane, not from 8
    assert not [d for d in _downloads(hub) if d.startswith("data/")]
    batches = iter(loader)
    next(batches)
    assert 1 <= len([d for d in _downloads(hub) if d.startswith("data/train")]) <= 3  # the first ones, and the next
    list(batches)
    shards = [d for d in _downloads(hub) if d.startswith("data/")]
    assert sorted(shards) == sorted(f"data/train-{i:05d}-of-00008.parquet" for i in range(8))


@pytest.mark.parametrize("done", [0, 5, 11])
def test_resume_by_id_is_exact(streamed, screen_dataset, done, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_ROWS", 64)
    here = list(CellLoader(screen_dataset, "train", 64, seed=3, epochs=2))
    loader = CellLoader(streamed, "train", 64, seed=3, epochs=2)
    for _ in zip(range(done), loader, strict=False):
        pass
    resumed = CellLoader(streamed, "train", 64, seed=3, epochs=2)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    there = list(resumed)
    assert len(there) == len(here) - done
    for a, b in zip(here[done:], there, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_commit_stays_when_the_dataset_is_pushed_anew(streamed, screen_dataset):
    loader = CellLoader(streamed, "validation", 8, epochs=1, prefetch=0)
    api = HfApi(token=WRITER)
    api.delete_files(REPO, ["data/*"], repo_type="dataset")
    assert len(list(loader)) == DatasetInfo.load(screen_dataset).n_cells["validation"] // 8


def test_a_shard_that_is_missing_is_named(streamed):
    HfApi(token=WRITER).delete_file("data/train-00003-of-00008.parquet", REPO, repo_type="dataset")
    with pytest.raises(evae.EvaeError, match=re.escape(f"{REPO}/data/train-00003-of-00008.parquet is missing")):
        list(CellLoader(streamed, "train", 8, epochs=1))


@pytest.mark.skipif(huggingface_hub.__version__ < "1", reason="the client before 1.0 does not go on after a cut")
def test_a_cut_while_a_shard_is_fetched(streamed, screen_dataset, hub, hub_module):
    hub.faults.append(hub_module.Fault(path="/stored/", method="GET", times=1, cut=500))
    there, here = (list(CellLoader(place, "train", 64, epochs=1)) for place in (streamed, screen_dataset))
    assert hub.faults[0].times == 0
    assert all(torch.equal(a["gene_ids"], b["gene_ids"]) for a, b in zip(here, there, strict=True))


def test_a_hub_that_goes_away(streamed, hub):
    loader = CellLoader(streamed, "train", 8, epochs=1, prefetch=0)
    hub.stop()
    with pytest.raises(evae.EvaeError, match="the Hub cannot be reached"):
        list(loader)
