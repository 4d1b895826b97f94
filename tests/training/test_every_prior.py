"""Masked diffusion and flow through stage 2, and their predictions through the pipeline."""

import json

import numpy as np
import pytest
from accelerate import Accelerator

import evae
from evae.data.streaming.loader import CellLoader
from evae.models import EvaeFlowModel, EvaeMDLMModel, EvaeModel
from evae.models.contract_evae import EvaeError
from evae.training.codes import encode_cells
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

SHORT = ["max_steps=12", "batch_size=64", "warmup_steps=2", "save_every=6", "eval_every=6", "learning_rate=1e-2"]
SIZES = ["model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=16"]
TOKENIZER = [
    *("model.n_latents=4", "model.encoder_layers=1", "model.decoder_layers=1", "model.fsq_levels=[4,4]"),
    *("model.latent_dim=3", "model.decoder_self_attention=false", "model.standardize_latents=true"),
]
KINDS = {"evae_mdlm": ("fsq", EvaeMDLMModel), "evae_flow": ("gaussian", EvaeFlowModel)}


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """The folders (tokenizer, prior) of both kinds."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for kind, (quantizer, _) in KINDS.items():
        common = [f"dataset={dataset}", *SHORT, *SIZES]
        own = [f"output_dir={folder / quantizer}", f"model.quantizer={quantizer}", *TOKENIZER]
        tokenizer = train_tokenizer(load_settings("tokenizer", None, [*common, *own]))
        own = [f"output_dir={folder / kind}", f"tokenizer={tokenizer}", f"model_type={kind}"]
        sizes = ["model.num_hidden_layers=1", "model.sampling_steps=4"]
        made[kind] = tokenizer, train_prior(load_settings("prior", None, [*common, *own, *sizes]))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_predicts_through_the_pipeline(runs, kind, monkeypatch):
    pipe = evae.pipeline(runs[kind][1], device="cpu")
    assert type(pipe.model) is KINDS[kind][1]
    assert pipe.model.config.sampling_steps == 4
    names, cell_type = pipe.processor.perturbations, pipe.processor.cell_types[0]

    def draw(**options):
        predicted = pipe.predict(None, names[:2], cell_type, n_cells=7, progress=False, **options)
        return predicted.X.toarray()

    whole = draw()
    assert whole.shape == (14, 40)
    assert whole.sum() > 0
    assert (whole == np.floor(whole)).all()
    for batch_size in (1, 5):
        np.testing.assert_array_equal(draw(batch_size=batch_size), whole)
    assert (draw(seed=1) != whole).any()
    np.testing.assert_array_equal(draw(guidance_scale=1.0), whole)
    given, sample = {}, pipe.model.sample
    monkeypatch.setattr(pipe.model, "sample", lambda **options: (given.update(options), sample(**options))[1])
    draw(guidance_scale=3.0, guide="all", num_steps=2)
    assert (given["guidance_scale"], given["guide"], given["num_steps"]) == (3.0, "all", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_logged(runs, kind):
    lines = [json.loads(line) for line in (runs[kind][1] / "log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_latents_are_standardised_with_the_training_cells(runs, dataset):
    tokenizer, prior = runs["evae_flow"]
    cells = CellLoader(dataset, "train", batch_size=500, shuffle=False, epochs=1, drop_last=False)
    encoded = encode_cells(EvaeModel.from_pretrained(tokenizer), cells, Accelerator(cpu=True))
    assert encoded.codes.dtype == np.float32
    assert encoded.codes.shape[1:] == (4, 3)
    batch = encoded.batch(np.array([2, 0]))
    assert "codes" not in batch
    np.testing.assert_array_equal(batch["latents"].numpy(), encoded.codes[[2, 0]])
    scale = EvaeFlowModel.from_pretrained(prior).scale
    np.testing.assert_allclose(scale.mean.numpy(), encoded.codes.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale.std.numpy(), encoded.codes.std(0, ddof=1), rtol=1e-3)


@pytest.mark.parametrize("kind", ["evae_ar", "evae_mdlm", "evae_flow"])
def test_without_a_tokenizer_the_counts_themselves_are_modelled(dataset, tmp_path, kind):
    places = [f"dataset={dataset}", f"output_dir={tmp_path / kind}", "tokenizer=counts", f"model_type={kind}"]
    sizes = ["model.num_hidden_layers=1", *(["model.sampling_steps=4"] if kind != "evae_ar" else [])]
    pipe = evae.pipeline(train_prior(load_settings("prior", None, [*places, *SHORT, *SIZES, *sizes])), device="cpu")
    assert pipe.model.n_codes == 40
    predicted = pipe.predict(None, pipe.processor.perturbations[1], pipe.processor.cell_types[0], 5, progress=False)
    assert predicted.shape == (5, 40)
    assert predicted.X.sum() > 0
    cells = CellLoader(dataset, "train", batch_size=5, shuffle=False, epochs=1, drop_last=False)
    real = next(iter(cells))
    encoded = pipe.model.tokenizer.encode(real["counts"], real["gene_ids"])
    assert encoded.shape[:2] == (5, 40)


def test_the_wrong_tokenizer_is_named(runs, dataset, tmp_path):
    for kind, other in (("evae_mdlm", "evae_flow"), ("evae_flow", "evae_mdlm")):
        settings = [f"dataset={dataset}", f"output_dir={tmp_path / kind}", f"tokenizer={runs[other][0]}"]
        with pytest.raises(EvaeError, match="train the tokenizer with quantizer"):
            train_prior(load_settings("prior", None, [*settings, f"model_type={kind}"]))
