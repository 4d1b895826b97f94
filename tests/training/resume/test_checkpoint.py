"""Checkpoints: exact, atomic, checked byte by byte."""

import json
import shutil

import pytest
import torch

from evae.models.contract_evae import EvaeError
from evae.training.resume import checkpoint
from evae.training.resume.checkpoint import (
    TrainingState,
    checkpoint_path,
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)


def content():
    generator = torch.Generator().manual_seed(0)
    shared = {
        "model": {"w": torch.randn(3, 4, generator=generator), "half": torch.randn(5).bfloat16()},
        "optimizer": {"step/w": torch.tensor(7.0), "turned": torch.randn(4, 3).T},
    }
    return TrainingState({"step": 4, "best": None}, shared, {"torch": torch.get_rng_state()}, {"data": {"epoch": 2}})


def test_round_trip_is_exact(tmp_path):
    written = content()
    write_checkpoint(tmp_path, 4, written)
    read = read_checkpoint(tmp_path, 4)
    assert (read.record, read.rank_record) == (written.record, written.rank_record)
    assert read.shared.keys() == written.shared.keys()
    for name, tensors in written.shared.items():
        assert read.shared[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert read.shared[name][key].dtype == tensor.dtype
            assert torch.equal(read.shared[name][key], tensor)
    assert torch.equal(read.rank_tensors["torch"], written.rank_tensors["torch"])


def test_only_safetensors_and_json(tmp_path):
    folder = write_checkpoint(tmp_path, 4, content())
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}


def test_a_rank_that_was_not_there_reads_what_is_shared(tmp_path):
    write_checkpoint(tmp_path, 4, content())
    read = read_checkpoint(tmp_path, 4, rank=3)
    assert (read.rank_tensors, read.rank_record) == ({}, {})
    assert read.record["step"] == 4


def test_half_written_is_ignored_and_replaced(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 4, content())

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, 8, content())
    assert list_checkpoints(tmp_path) == [4]
    write_checkpoint(tmp_path, 8, content())
    assert list_checkpoints(tmp_path) == [4, 8]
    assert not list(tmp_path.glob(".partial*"))


def test_full_disk_is_one_error_and_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 4, content())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(EvaeError, match="free space there, or make it writable, then start again with resume=true"):
        write_checkpoint(tmp_path, 8, content())
    assert list_checkpoints(tmp_path) == [4]
    assert not list(tmp_path.glob(".partial*"))
    read_checkpoint(tmp_path, 4)


def damage_truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


def damage_flip(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


FILES = ("model.safetensors", "rank-00000.safetensors", "record.json")
WAYS = {"cut": damage_truncate, "flipped": damage_flip, "gone": lambda file: file.unlink()}


@pytest.mark.parametrize(
    ("name", "way"),
    [*((f, w) for f in FILES for w in WAYS), ("manifest.json", "cut"), ("manifest.json", "gone")],
)
def test_damage_is_named_with_the_mend(tmp_path, name, way):
    write_checkpoint(tmp_path, 4, content())
    folder = write_checkpoint(tmp_path, 8, content())
    WAYS[way](folder / name)
    with pytest.raises(EvaeError, match=rf"{name} .*delete that folder to resume from step 4") as caught:
        read_checkpoint(tmp_path, 8)
    assert "\n" not in str(caught.value)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path, step, content())
    prune_checkpoints(tmp_path, keep=2, best=10)
    assert list_checkpoints(tmp_path) == [10, 30, 40]
    prune_checkpoints(tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == [40]
    assert [entry.name for entry in tmp_path.iterdir()] == [checkpoint_path(tmp_path, 40).name]


def test_an_interrupted_deletion_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    for step in (10, 20):
        write_checkpoint(tmp_path, step, content())
    whole = shutil.rmtree

    def half(path, **_):
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(tmp_path, keep=1)
    monkeypatch.setattr(shutil, "rmtree", whole)
    assert list_checkpoints(tmp_path) == [20]
    prune_checkpoints(tmp_path, keep=1)
    assert not list(tmp_path.glob(".partial*"))


def test_manifest_lists_every_file(tmp_path):
    folder = write_checkpoint(tmp_path, 4, content())
    listed = set(json.loads((folder / "manifest.json").read_text()))
    assert listed == {file.name for file in folder.iterdir()} - {"manifest.json"}
