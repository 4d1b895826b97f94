"""A folder that is not whole, or does not fit its configuration, never loads silently."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from evae.models import (
    EvaeARConfig,
    EvaeARForCausalLM,
    EvaeConfig,
    EvaeError,
    EvaeFlowConfig,
    EvaeFlowModel,
    EvaeMDLMConfig,
    EvaeMDLMModel,
    EvaeModel,
)
from evae.models.layers_evae import parameters_at_least

KINDS = {
    "ar": (EvaeARConfig, EvaeARForCausalLM),
    "mdlm": (EvaeMDLMConfig, EvaeMDLMModel),
    "flow": (EvaeFlowConfig, EvaeFlowModel),
}


@pytest.fixture
def folder(tiny_prior, tmp_path):
    tiny_prior().save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(folder)


def test_pickled_weights_are_no_weights(folder):
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"safetensors"):
        AutoModel.from_pretrained(folder, use_safetensors=True)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Exception, match=r"(?i)safetensors|header|incomplete|deserializ"):
        AutoModel.from_pretrained(folder)


def test_missing_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModel.from_pretrained(folder)


def test_weights_of_another_size(folder):
    change_config(folder, n_perturbations=9)
    with pytest.raises(RuntimeError, match=r"condition\.perturbation\.weight|mismatch"):
        AutoModel.from_pretrained(folder)


def test_missing_weights_raise_and_unknown_ones_are_reported(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "stray": torch.zeros(1)}, path, metadata={"format": "pt"})
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"stray"}
    del weights["lm_head.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EvaeError, match=r"the weights lack 1 tensor of the model \(first: lm_head.bias\)"):
        AutoModel.from_pretrained(folder)


def test_pickled_weights_beside_the_configuration_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no matter what")
    with pytest.raises(OSError, match=r"safetensors"):
        AutoModel.from_pretrained(folder)


ABSURD = {
    "n_genes": 10**12,
    "hidden_size": 10**10,
    "intermediate_size": 10**12,
    "n_latents": 10**12,
    "encoder_layers": 10**9,
    "decoder_layers": 10**9,
    "latent_dim": 10**12,
}


class TestAbsurdSizes:
    """Refused before anything is built: each of these would take terabytes, or years."""

    @pytest.mark.parametrize("coder", ["attention", "mlp"])
    @pytest.mark.parametrize("field", ABSURD)
    def test_tokenizer(self, tiny_config, field, coder):
        config = tiny_config(quantizer="gaussian", encoder=coder, decoder=coder, **{field: ABSURD[field]})
        with pytest.raises(EvaeError, match=r"asks for at least [0-9,]+ parameters"):
            EvaeModel(config)

    @pytest.mark.parametrize(
        "field", ["n_perturbations", "n_cell_types", "hidden_size", "num_hidden_layers", "intermediate_size"]
    )
    def test_prior(self, folder, field):
        change_config(folder, **{field: 10**12})
        with pytest.raises(EvaeError, match=r"asks for at least [0-9,]+ parameters"):
            AutoModel.from_pretrained(folder)

    def test_codes(self, tiny_config):
        config = EvaeARConfig(tokenizer_config=tiny_config(fsq_levels=[1000] * 5), hidden_size=16)
        with pytest.raises(EvaeError, match=r"asks for at least [0-9,]+ parameters"):
            EvaeARForCausalLM(config)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("coder", ["attention", "mlp", "shared"])
    def test_the_bound_is_below_the_number_and_close(self, kind, coder):
        quantizer = "gaussian" if kind == "flow" else "fsq"
        coders = {"encoder": coder, "decoder": coder} if coder != "shared" else {"share_keys_values": True}
        with torch.device("meta"):
            tokenizer = EvaeConfig(quantizer=quantizer, head="mse", **coders)
            model = KINDS[kind][1](KINDS[kind][0](tokenizer_config=tokenizer, n_perturbations=100))
        number = sum(p.numel() for p in model.parameters())
        assert 0.95 * number < parameters_at_least(model.config) <= number


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "poisson"}, "head 'poisson' does not exist; choose one of ce-quantile, hurdle, mse, nb"),
        ({"quantizer": "rvq"}, "quantizer 'rvq' does not exist"),
        ({"encoder": "cnn"}, "encoder 'cnn' does not exist"),
        ({"decoder": "cnn"}, "decoder 'cnn' does not exist"),
        ({"n_genes": 0}, "n_genes must be a whole number of at least 1, not 0"),
        ({"n_latents": 2.5}, "n_latents must be a whole number"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 must be a multiple"),
        ({"fsq_levels": []}, "fsq_levels"),
        ({"fsq_levels": [8, 2]}, "fsq_levels must be whole numbers of at least 3"),
    ],
)
def test_configuration_that_cannot_be(fields, message):
    with pytest.raises(EvaeError, match=message):
        EvaeConfig(**fields)


def test_prior_configuration_that_cannot_be():
    for fields, message in (
        ({"n_perturbations": 0}, "n_perturbations must be"),
        ({"hidden_size": 10, "num_attention_heads": 4}, "must be a multiple"),
        ({"tokenizer_config": {"quantizer": "gaussian"}}, "needs codes"),
        ({"tokenizer_config": {"head": "poisson"}}, "head 'poisson'"),
    ):
        with pytest.raises(EvaeError, match=message):
            EvaeARConfig(**fields)


def test_configuration_round_trip(tiny_config, tmp_path):
    """Nested and derived fields come back; derived ones follow the tokenizer, whatever the file says."""
    config = EvaeARConfig(tokenizer_config=tiny_config(head="nb", kl_weight=0.5), n_perturbations=7, dropout=0.25)
    config.save_pretrained(tmp_path)
    change_config(tmp_path, vocab_size=3, bos_token_id=1)
    loaded = EvaeARConfig.from_pretrained(tmp_path)
    assert type(loaded.tokenizer_config) is EvaeConfig
    assert loaded.tokenizer_config.head == "nb"
    assert loaded.tokenizer_config.kl_weight == 0.5
    assert loaded.tokenizer_config.fsq_levels == [5, 3]
    assert (loaded.n_perturbations, loaded.dropout) == (7, 0.25)
    assert (loaded.vocab_size, loaded.bos_token_id) == (16, 15)
    assert loaded.to_dict() == EvaeARConfig.from_dict(loaded.to_dict()).to_dict()


def test_another_number_of_heads_is_another_model(tiny_prior, tmp_path):
    """Weights of any number of heads have the same shapes, so only the configuration can tell."""
    prior = tiny_prior()
    prior.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["tokenizer_config"]):
        changed = part["num_attention_heads"]
        part["num_attention_heads"] = 2 * changed
        path.write_text(json.dumps(config))
        with pytest.raises(EvaeError, match="undo the change in"):
            type(prior).from_pretrained(tmp_path)
        part["num_attention_heads"] = changed
    del config["head_width"], config["tokenizer_config"]["head_width"]  # as older checkpoints are
    path.write_text(json.dumps(config))
    type(prior).from_pretrained(tmp_path)
