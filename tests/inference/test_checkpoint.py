"""Loading a checkpoint: a missing, truncated or foreign file raises one error that names it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import evae

FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


@pytest.fixture
def folder(trained_prior: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(trained_prior, copy, ignore=shutil.ignore_patterns("checkpoints"))
    return copy


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(evae.EvaeError, match=rf"lacks the file {file}; copy or download"):
        evae.pipeline(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_truncated_file_is_named(folder, file, keep):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(evae.EvaeError, match=f"{file} is truncated or damaged") as caught:
        evae.pipeline(folder)
    assert "\n" not in str(caught.value)


def test_weights_without_a_tensor_do_not_load_half_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(evae.EvaeError, match=r"lack 1 tensor of the model \(first: lm_head.weight\)"):
        evae.pipeline(folder)


def test_weights_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(evae.EvaeError, match="cannot be loaded"):
        evae.pipeline(folder)


def test_processor_of_another_run(folder):
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text())
    content["cell_types"].append("type_C")
    path.write_text(json.dumps(content))
    with pytest.raises(evae.EvaeError, match=r"n_cell_types 2, but preprocessor_config.json lists 3"):
        evae.pipeline(folder)


def test_model_of_another_kind(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(evae.EvaeError, match="'bert'"):
        evae.pipeline(folder)


@pytest.mark.parametrize("name", ["no/such/folder", "nowhere", "~/model"])
def test_no_such_folder(name):
    with pytest.raises(evae.EvaeError, match="no such model folder"):
        evae.pipeline(name)


def test_unreachable_hub_id():
    with pytest.raises(evae.EvaeError, match="neither a local folder nor in the local cache"):
        evae.pipeline("evae/no-such-model")


def test_sharded_weights_load_and_a_lost_shard_is_named(trained_prior, tmp_path):
    whole = evae.EvaeARForCausalLM.from_pretrained(trained_prior)
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shutil.copy(trained_prior / "preprocessor_config.json", tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    loaded = evae.pipeline(tmp_path / "sharded", device="cpu").model
    for name, tensor in whole.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    shards[1].unlink()
    with pytest.raises(evae.EvaeError, match=rf"lacks the file {shards[1].name}"):
        evae.pipeline(tmp_path / "sharded")
