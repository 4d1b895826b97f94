"""A dataset is found once and handed on; what it says of itself."""

import shutil

import pytest

import evae.data.format as module
from evae.data.format import SPLITS, Dataset, DatasetInfo
from evae.data.streaming.loader import CellLoader
from evae.data.streaming.mixture import Sources
from evae.data.streaming.split_anndata import DatasetSplit, read_split
from evae.inference.held_out import dataset_cells, read_controls
from evae.models.contract_evae import EvaeError
from evae.study.plan import Study, plan


def test_an_open_dataset_is_not_looked_for_again(folder, monkeypatch):
    dataset = Dataset.open(folder)
    monkeypatch.setattr(module, "resolve_dataset", None)  # would raise
    assert Dataset.open(dataset) is dataset
    assert DatasetInfo.load(dataset) is dataset.info
    assert CellLoader(dataset, batch_size=8).info is dataset.info
    assert DatasetSplit(dataset, "train").info is dataset.info
    assert read_split(dataset, "train").n_obs == dataset.info.n_cells["train"]
    assert len(dataset_cells(dataset)) == 3
    assert read_controls(dataset, dataset.info.cell_types[:1]).n_obs
    sources = Sources([dataset])
    assert len(sources.sample(8, seed=0)["counts"]) == 8
    assert next(sources.cells(0, "train", 8))
    assert next(iter(sources.training_batches(8)))
    study = Study(dataset=str(folder), output_dir="out", tokenizers={"plain": {}}, priors={"ar": {}})
    assert plan(study, dataset)[0]


def test_a_stage_looks_once(folder, monkeypatch):
    found = []
    resolve = module.resolve_dataset
    monkeypatch.setattr(module, "resolve_dataset", lambda place: found.append(place) or resolve(place))
    sources = Sources([folder, folder])
    sources.sample(16, seed=0)
    for number in range(2):
        next(sources.cells(number, "validation", 8))
    next(iter(sources.training_batches(16)))
    assert found == [folder, folder]


def test_shards_are_those_of_the_split_in_order(folder):
    info = Dataset.open(folder).info
    for split in SPLITS:
        assert sum(rows for _, rows in info.shards(split)) == info.n_cells[split]
        assert all(name.startswith(f"data/{split}-") for name, _ in info.shards(split))
    (first, rows), (second, _) = info.shards("train")[:2]
    assert info.shard_of("train", rows - 1) == (first, rows - 1)
    assert info.shard_of("train", rows) == (second, 0)
    with pytest.raises(IndexError):
        info.shard_of("train", info.n_cells["train"])


def test_messages_call_a_dataset_what_the_user_called_it(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert str(Dataset.open(copy)) == str(copy)
    (copy / "split.json").unlink()
    with pytest.raises(EvaeError, match=f"the dataset {copy} is incomplete"):
        Dataset.open(copy)
