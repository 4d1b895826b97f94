"""Loading from a Hub: with the package and without it, and one line with the fix for all that can go wrong."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

import evae
from evae.hub import push_run

NEW_CLIENT = pytest.mark.skipif(huggingface_hub.__version__ < "1", reason="the client before 1.0 does not retry this")
WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"

pytestmark = pytest.mark.slow


def refusal(name: str, **options) -> str:
    """The one line that a failing load gives."""
    with pytest.raises(evae.EvaeError) as caught:
        evae.pipeline(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWithThePackage:
    def test_pipeline_is_the_folder_s(self, on_the_hub, pipe, hub):
        loaded = evae.pipeline(on_the_hub, device="cpu")
        expected = pipe.predict(None, pipe.processor.perturbations[1], "type_A", 3, progress=False)
        predicted = loaded.predict(None, pipe.processor.perturbations[1], "type_A", 3, progress=False)
        assert (predicted.X != expected.X).nnz == 0
        assert loaded.checkpoint.revision == hub.repo(on_the_hub).find("main")

    def test_auto_classes(self, on_the_hub, pipe):
        for auto in (AutoModel, AutoModelForCausalLM):
            model = auto.from_pretrained(on_the_hub)
            assert type(model) is evae.EvaeARForCausalLM
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pipe.model.parameters(), strict=True))
        assert AutoProcessor.from_pretrained(on_the_hub).genes == pipe.processor.genes
        assert AutoModel.from_pretrained(on_the_hub, dtype=torch.bfloat16).dtype == torch.bfloat16

    def test_revision(self, on_the_hub, hub):
        api, first = HfApi(token=WRITER), hub.repo(on_the_hub).find("main")
        api.create_tag(on_the_hub, tag="v1")
        api.delete_file("model.safetensors", on_the_hub)
        assert evae.pipeline(on_the_hub, revision="v1").checkpoint.revision == first
        assert evae.pipeline(on_the_hub, revision=first).checkpoint.revision == first
        assert "lacks the file model.safetensors" in refusal(on_the_hub)
        assert "has no revision 'v2'; give a branch, tag or commit" in refusal(on_the_hub, revision="v2")

    def test_private(self, on_the_hub, hub, login):
        hub.repo(on_the_hub).private = True
        login(WRITER)
        assert evae.pipeline(on_the_hub).checkpoint.is_prior
        shutil.rmtree(constants.HF_HUB_CACHE)
        login(None)
        line = refusal(on_the_hub)
        assert "no model of that name on the Hub, or it is private" in line
        assert "log in with `hf auth login`" in line
        login(STRANGER)
        assert "check the name, or ask its owner for access" in refusal(on_the_hub)

    def test_gated(self, on_the_hub, hub, login):
        hub.repo(on_the_hub).gated = True
        assert "is gated; log in with `hf auth login`" in refusal(on_the_hub)
        login(STRANGER)
        assert f"is gated; ask for access at {hub.endpoint}/{on_the_hub}" in refusal(on_the_hub)
        hub.repo(on_the_hub).admitted.add("stranger")
        assert evae.pipeline(on_the_hub).checkpoint.is_prior

    def test_bad_token(self, on_the_hub, login):
        login("hf_expired")
        assert "does not accept your token; log in with `hf auth login`" in refusal(on_the_hub)

    def test_missing(self, hub, on_the_hub):
        assert "there is no folder 'evae/nothing', and no model of that name on the Hub" in refusal("evae/nothing")
        assert "is no Hub id" in refusal("evae/not--valid..name")
        HfApi(token=WRITER).delete_file("preprocessor_config.json", on_the_hub)
        assert "evae/tiny-ar lacks the file preprocessor_config.json" in refusal(on_the_hub)


class TestFaults:
    @pytest.mark.parametrize("status", [pytest.param(429, marks=NEW_CLIENT), 503])
    def test_passing_fault_is_not_seen(self, on_the_hub, hub, hub_module, status):
        hub.faults.append(hub_module.Fault(status, path="/resolve/", times=2))
        assert evae.pipeline(on_the_hub).checkpoint.is_prior
        assert hub.faults[0].times == 0

    @pytest.mark.parametrize(("status", "line"), [(429, "the Hub limits how often"), (503, "trouble at the moment")])
    def test_lasting_fault(self, on_the_hub, hub, hub_module, status, line):
        hub.faults.append(hub_module.Fault(status))
        assert line in refusal(on_the_hub)
        hub.faults.clear()
        assert evae.pipeline(on_the_hub).checkpoint.is_prior

    def test_dead_server(self, on_the_hub, hub):
        hub.stop()
        line = refusal(on_the_hub)
        assert "the Hub cannot be reached, and 'evae/tiny-ar' is neither a local folder nor in the local cache" in line
        hub.start()
        revision = evae.pipeline(on_the_hub).checkpoint.revision
        hub.stop()
        assert evae.pipeline(on_the_hub).checkpoint.revision == revision

    def test_offline_mode(self, on_the_hub, hub, offline):
        evae.pipeline(on_the_hub)
        offline()
        asked = len(hub.requests)
        assert evae.pipeline(on_the_hub).checkpoint.is_prior
        assert "HF_HUB_OFFLINE" in refusal("evae/other")
        assert len(hub.requests) == asked

    @NEW_CLIENT
    def test_cut_download_goes_on_in_the_same_call(self, hub, hub_module, tmp_path):
        """A file of 12 MB whose connection breaks after 11 MB: the client asks for the rest only."""
        api, content = HfApi(token=WRITER), os.urandom(12_000_000)
        api.create_repo("evae/large")
        api.upload_file(path_or_fileobj=content, path_in_repo="large.bin", repo_id="evae/large")
        hub.faults.append(hub_module.Fault(path="/stored/", method="GET", times=1, cut=11_000_000))
        path = api.hf_hub_download("evae/large", "large.bin")
        assert Path(path).read_bytes() == content
        assert hub.faults[0].times == 0

    def test_command_line(self, on_the_hub, hub, hub_module, run, tmp_path):
        hub.faults.append(hub_module.Fault(429))
        done = run("predict", on_the_hub, "--perturbation", "x", "--out", tmp_path / "out.h5ad")
        assert done.code == 2
        assert done.err == "error: the Hub limits how often you may ask; wait some minutes, then retry.\n"


EVERY_WAY = Path(__file__).with_name("every_way.py")


def every_way():
    """tests/hub/every_way.py, here with the package."""
    spec = importlib.util.spec_from_file_location("every_way", EVERY_WAY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def every_kind(trained_prior, trained_tokenizer, tmp_path_factory) -> dict[str, Path]:
    """A folder of every kind of model."""
    processor, tokenizer = evae.EvaeProcessor.from_pretrained(trained_prior), evae.EvaeModel.from_pretrained
    folders = {"evae/tiny-tokenizer": trained_tokenizer, "evae/tiny-ar": trained_prior}
    sizes = {"n_perturbations": len(processor.perturbations), "n_cell_types": len(processor.cell_types)}
    sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    codes = tokenizer(trained_tokenizer).config
    latents = evae.EvaeConfig(**{**codes.to_dict(), "quantizer": "gaussian", "latent_dim": 3})
    torch.manual_seed(0)
    for model in (
        evae.EvaeMDLMModel(evae.EvaeMDLMConfig(tokenizer_config=codes, sampling_steps=4, **sizes)),
        evae.EvaeFlowModel(evae.EvaeFlowConfig(tokenizer_config=latents, sampling_steps=4, **sizes)),
    ):
        name = f"evae/tiny-{model.config.model_type.removeprefix('evae_')}"
        folders[name] = tmp_path_factory.mktemp("kinds") / name.split("/")[1]
        torch.nn.init.normal_(model.modulation.weight)
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


def test_every_kind_in_every_way(hub, login, every_kind, offline, tmp_path):
    """Pushed, then loaded with the package and without it: by name, from a tag, from a subfolder, in bfloat16, with a
    device map, offline; always the same cells."""
    api = HfApi(token=WRITER)
    login(WRITER)
    for name, folder in every_kind.items():
        push_run(folder, name)
        api.create_tag(name, tag="v1")
        api.upload_folder(
            repo_id=name, folder_path=folder, path_in_repo="nested", ignore_patterns=["checkpoints/*", "*.jsonl"]
        )
    login(None)
    ways = every_way()
    expected = {name: ways.found(name, ways.WAYS) for name in every_kind}
    folder = every_kind["evae/tiny-flow"]
    expected["folder"] = ways.found(str(folder), ["plain", "device_map", "dtype"])
    for name, said in expected.items():
        assert said["plain"] == said["device_map"], name
        if name != "folder":
            assert said["plain"] == said["revision"] == said["subfolder"], name
    script = [sys.executable, str(EVERY_WAY), str(folder), *every_kind]
    for setting in ("0", "1"):
        environment = {**os.environ, "HF_HUB_OFFLINE": setting, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout) == expected
        hub.stop()
    offline()
    assert {name: ways.found(name, ways.WAYS) for name in every_kind}.items() <= expected.items()
