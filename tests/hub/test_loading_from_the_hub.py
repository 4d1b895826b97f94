"""Loading from a Hub: with the package and without it, and one line with the mend for all that can go wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

import evae

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"


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

    def test_subfolder(self, on_the_hub, trained_tokenizer):
        HfApi(token=WRITER).upload_folder(
            repo_id=on_the_hub,
            folder_path=trained_tokenizer,
            path_in_repo="tokenizer",
            ignore_patterns=["checkpoints/*"],
        )
        assert type(AutoModel.from_pretrained(on_the_hub, subfolder="tokenizer")) is evae.EvaeModel

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
    @pytest.mark.parametrize("status", [429, 503])
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

    def test_offline_mode(self, on_the_hub, hub, monkeypatch):
        evae.pipeline(on_the_hub)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        asked = len(hub.requests)
        assert evae.pipeline(on_the_hub).checkpoint.is_prior
        assert "HF_HUB_OFFLINE" in refusal("evae/other")
        assert len(hub.requests) == asked

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


WITHOUT = """
import sys
sys.modules["evae"] = None
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoProcessor
name = sys.argv[1]
assert AutoConfig.from_pretrained(name, trust_remote_code=True).model_type == "evae_ar"
model = AutoModel.from_pretrained(name, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
assert type(AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)) is type(model)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
assert type(AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)) is type(processor)
ids = torch.tensor([1, 1])
cells = model.sample_cells(ids, ids * 0, torch.tensor([100.0, 100.0]), generator=torch.Generator().manual_seed(0))
assert cells.shape == (2, len(processor.genes))
assert cells.sum() > 0
print("sum", float(cells.sum()))
"""


def test_without_the_package(on_the_hub, pipe, tmp_path):
    """The newest transformers, or those of the interpreters named in EVAE_TEST_PYTHONS (separated by commas)."""
    ids = torch.tensor([1, 1])
    expected = pipe.model.sample_cells(
        ids, ids * 0, torch.tensor([100.0, 100.0]), generator=torch.Generator().manual_seed(0)
    )
    for index, python in enumerate(os.environ.get("EVAE_TEST_PYTHONS", sys.executable).split(",")):
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / str(index))}
        done = subprocess.run(
            [python, "-c", WITHOUT, on_the_hub], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"sum {float(expected.sum())}" in done.stdout
