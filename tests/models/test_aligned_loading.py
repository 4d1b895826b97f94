"""Loaded weights lie at multiples of 64 bytes, wherever they lie in the file, so they compute the same bits."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import evae
from evae.models import EvaeModel
from evae.models.alignment_evae import align_weights, mapped_files
from evae.models.configuration_evae import HEADS

from .conftest import KINDS


def tensors(model):
    return itertools.chain(model.parameters(), model.buffers())


def assert_aligned(model):
    places = [tensor.data_ptr() % 64 for tensor in tensors(model)]
    assert len(places) > 10
    assert set(places) == {0}


def test_the_file_that_is_made_here_is_misaligned(tiny_tokenizer, tmp_path, misalign):
    """safetensors 0.8.0 maps the file, so this is what a loader without care hands on."""
    from safetensors.torch import load_file

    tiny_tokenizer().save_pretrained(tmp_path)
    misalign(tmp_path)
    assert any(tensor.data_ptr() % 64 for tensor in load_file(tmp_path / "model.safetensors").values())


@pytest.mark.parametrize("coder", ["attention", "mlp"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("quantizer", ["fsq", "gaussian"])
def test_tokenizers(tiny_tokenizer, cells, tmp_path, misalign, head, coder, quantizer):
    model = tiny_tokenizer(head=head, encoder=coder, decoder=coder, quantizer=quantizer)
    model.save_pretrained(tmp_path)
    misalign(tmp_path)
    for loaded in (EvaeModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert_aligned(loaded)
        assert all(torch.equal(a, b) for a, b in zip(tensors(model), tensors(loaded), strict=True))
        found, expected = (m(cells, generator=torch.Generator().manual_seed(0)) for m in (loaded, model))
        assert torch.equal(found.outputs, expected.outputs)
        assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_priors_and_the_tokenizer_in_them(tiny_prior, tmp_path, misalign, kind, shards):
    model = tiny_prior(kind=kind)
    model.save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if shards else {}))
    misalign(tmp_path)
    conditions = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), torch.tensor([30.0, 60.0, 90.0])
    expected = model.sample_cells(*conditions, generator=torch.Generator().manual_seed(0))
    for loaded in (type(model).from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert_aligned(loaded)
        drawn = loaded.sample_cells(*conditions, generator=torch.Generator().manual_seed(0))
        assert torch.equal(drawn, expected)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}])
def test_options_of_loading(tiny_prior, tmp_path, misalign, options):
    tiny_prior().save_pretrained(tmp_path)
    misalign(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert_aligned(loaded)
    assert not report["missing_keys"]
    if "dtype" in options:
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_a_pipeline(tiny_checkpoint, tmp_path, misalign):
    import shutil

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    misalign(copy)
    pipe, before = evae.pipeline(copy, device="cpu"), evae.pipeline(tiny_checkpoint, device="cpu")
    assert_aligned(pipe.model)
    asked = pipe.processor.perturbations[1], pipe.processor.cell_types[0], 20
    drawn = [p.predict(None, *asked, progress=False).X for p in (pipe, before)]
    assert (drawn[0] != drawn[1]).nnz == 0


def resident(path):
    """Bytes of a mapped file that are in this process's memory."""
    blocks = Path("/proc/self/smaps").read_text().split("\nVmFlags")
    sizes = [block.split("\nRss:")[1].split()[0] for block in blocks if str(path) in block]
    return 1024 * sum(map(int, sizes))


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not tell what is in memory")
class TestMemory:
    def mapped(self, folder, misalign):
        """A model of 8 MB that uses the memory of a mapped file, and the file."""
        from safetensors.torch import load_file, save_file

        torch.manual_seed(0)
        save_file({str(i): torch.randn(1024, 1024) for i in range(2)}, folder / "model.safetensors")
        misalign(folder)
        weights = list(load_file(folder / "model.safetensors").values())
        model = torch.nn.Module()
        for name, weight in zip(("first", "second", "tied"), (*weights, None), strict=True):
            setattr(model, name, model.first if weight is None else torch.nn.Parameter(weight, requires_grad=False))
        return model, weights, folder / "model.safetensors"

    def test_the_file_s_pages_are_given_back(self, tmp_path, misalign):
        model, weights, path = self.mapped(tmp_path, misalign)
        before = [weight.sum().item() for weight in weights]
        assert resident(path) > 8_000_000
        align_weights(model)
        assert resident(path) < 1_000_000
        assert {p.data_ptr() % 64 for p in model.parameters()} == {0}
        assert model.tied is model.first
        assert not any(p.requires_grad for p in model.parameters())
        for parameter, weight, total in zip(model.parameters(), weights, before, strict=True):
            assert torch.equal(parameter, weight)  # reads the file again
            assert weight.sum().item() == total

    def test_weights_that_the_user_holds_keep_what_was_written_to_them(self, tiny_tokenizer, tmp_path, misalign):
        from safetensors.torch import load_file

        model = tiny_tokenizer(hidden_size=512, intermediate_size=512)
        model.save_pretrained(tmp_path)
        misalign(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        for weight in weights.values():
            weight += 1
        kept = {name: weight.clone() for name, weight in weights.items()}
        loaded = EvaeModel.from_pretrained(None, config=model.config, state_dict=weights)
        assert all(torch.equal(weights[name], kept[name]) for name in kept)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.state_dict().items())

    def test_only_files_count_as_files(self, tmp_path, misalign):
        _, weights, _ = self.mapped(tmp_path, misalign)
        files = mapped_files()
        assert any(weights[0].data_ptr() in file for file in files)
        assert not any(torch.randn(1024, 1024).data_ptr() in file for file in files)
