"""How many operations an accelerator is given, and that nothing is read back; what it computes is what the CPU does.

No accelerator is needed: operations are counted by `scripts/benchmark_operations.py`, on tensors without values.
"""

import sys
from pathlib import Path

import pytest
import torch

from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeConfig, EvaeModel, coders_evae, device_evae
from evae.models.coders_evae import to_sparse
from evae.models.device_evae import as_on_accelerator, most_numbers
from evae.models.randomness_evae import CellStreams, categorical, draw_binomial
from evae.training.resume.state import MovingAverage, build_optimizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from benchmark_operations import NoCard, Operations, ReadBack, count

N = 512
PERCEPTRONS = {"encoder": "mlp", "decoder": "mlp", "condition_on_library": True, "standardize_latents": True}
TOKENIZERS = {
    "published": {},
    "without attention between genes": {"decoder_self_attention": False, "share_keys_values": True},
    "base": {**PERCEPTRONS, "encoder_layers": 3, "decoder_layers": 3, "hidden_size": 128, "n_latents": 32},
    "small": {**PERCEPTRONS, "encoder_layers": 2, "decoder_layers": 2, "hidden_size": 64, "n_latents": 16},
}
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
READS = {"source_cells": 1, "condition_on_effect": True, "n_effects": 10, "control_id": 0}
# name -> tokenizer, fields, most operations of drawing a code and of a training step
PRIORS = {
    "published": ("published", {}, 70, 390),
    "base": ("base", READS, 70, 450),
    "small": ("small", READS | SMALL, 50, 360),
}


@pytest.fixture(scope="module")
def lists():
    """Counts and ids of the expressed genes of some cells."""
    generator = torch.Generator().manual_seed(0)
    return to_sparse(torch.poisson(torch.rand(N, 2000, generator=generator) ** 4 * 0.6, generator=generator))


def counted(work):
    """Operations of a call, which must not read anything back."""
    found = count(work, allow_read_back=False)
    assert not found.stopped_at
    return found.total


@pytest.mark.parametrize("name", TOKENIZERS)
def test_encoding_and_decoding(lists, name):
    card = NoCard()
    with card.on():
        model = EvaeModel(EvaeConfig(**TOKENIZERS[name])).eval().requires_grad_(False)
        counts, genes = card(lambda: lists)
        assert counted(lambda: model.encode(counts, genes)) <= 250
        codes, library = torch.zeros(N, model.config.n_latents, dtype=torch.long), torch.ones(N)
        assert counted(lambda: model.sample_counts(codes, library, CellStreams(0, range(N)))) <= 250


@pytest.mark.parametrize("name", PRIORS)
def test_priors(name):
    tokenizer, fields, most_a_code, most_a_step = PRIORS[name]
    with NoCard().on():
        config = EvaeConfig(**TOKENIZERS[tokenizer])
        prior = EvaeARForCausalLM(EvaeARConfig(config, n_perturbations=10, n_cell_types=4, **fields)).eval()
        ids = torch.zeros(N, dtype=torch.long)
        inputs = {"perturbation_ids": ids, "cell_type_ids": ids, "library_size": torch.ones(N)}
        if "source_cells" in fields:
            latents = config.n_latents, config.latent_width
            inputs |= {"source_latents": torch.zeros(N, 1, *latents), "source_library_size": torch.ones(N, 1)}
            inputs |= {"effect": torch.zeros(N, latents[0] * latents[1])}
        drawn = counted(lambda: prior.sample(**inputs, generator=CellStreams(0, range(N))))
        n_before = 400 if "source_cells" in fields else 160  # what is worked out once, before the first code
        assert drawn <= n_before + most_a_code * config.n_latents
        prior.train()
        optimizer, average = build_optimizer(prior, 1e-3, 1e-3), MovingAverage(prior, 0.99)
        codes = torch.zeros(N, config.n_latents, dtype=torch.long)

        def step():
            loss = prior(codes=codes, **inputs, generator=CellStreams(0, range(N))).loss
            with torch.autocast("cpu", enabled=False):
                loss.backward()
            torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(1)

        assert counted(step) <= most_a_step


def test_what_reads_back_is_found():
    with NoCard().on():
        x = torch.zeros(3)
        assert count(lambda: x.max().item()).stopped_at == "_local_scalar_dense"
        with Operations(allow_read_back=False), pytest.raises(ReadBack):
            x.nonzero()


def test_views_cost_nothing():
    with Operations() as operations:
        torch.empty(2, 3).t()[0].unsqueeze(0).expand(4, -1)
    assert operations.total == 0
    with operations:
        torch.ones(2) + 1
    assert operations.total == 2


@pytest.mark.parametrize("fields", [{}, {"share_keys_values": True}, {"encoder": "mlp"}], ids=str)
def test_an_accelerator_computes_the_same_codes(tiny_tokenizer, cells, monkeypatch, fields):
    model, (counts, genes) = tiny_tokenizer(**fields).double(), to_sparse(cells.double())
    library = cells.sum(1)

    def found():
        codes = model.encode(counts, genes)
        return model.embed(counts, genes), codes, model.sample_counts(codes, library, CellStreams(1, range(len(codes))))

    expected = found()
    monkeypatch.setattr(device_evae, "MOST_NUMBERS", 3 * counts.shape[1] * 16 * 2)  # encodes three cells at once
    monkeypatch.setattr(coders_evae, "BUCKET_TOKENS", 1)
    with as_on_accelerator():
        for one, other in zip(found(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_an_accelerator_draws_the_same_codes(tiny_prior):
    prior = tiny_prior().double()
    ids = {"perturbation_ids": torch.tensor([0, 2, 1, 1]), "cell_type_ids": torch.tensor([1, 0, 1, 1])}
    expected = prior.sample(**ids, generator=CellStreams(3, range(4)))
    assert len(expected.unique()) > 2
    with as_on_accelerator():
        assert torch.equal(prior.sample(**ids, generator=CellStreams(3, range(4))), expected)


@pytest.mark.parametrize("shape", [(50, 20), (7, 3, 64), (5, 200)])
def test_categories_drawn_on_an_accelerator(shape):
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(shape, generator=generator).softmax(-1)
    uniform = torch.rand(shape[:-1], generator=generator)
    cumulative = shares.cumsum(-1)
    expected = (cumulative <= uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(-1)
    assert torch.equal(categorical(shares, uniform), expected)
    with as_on_accelerator():
        assert torch.equal(categorical(shares, uniform), expected)


def test_binomials_drawn_on_an_accelerator():
    counts = torch.arange(60.0).repeat(9, 1)
    share = torch.linspace(0.01, 0.99, 9).unsqueeze(1)
    expected = draw_binomial(counts, share, CellStreams(0, range(9)))
    with as_on_accelerator():
        assert torch.equal(draw_binomial(counts, share, CellStreams(0, range(9))), expected)


def test_steps_are_as_large_as_memory_allows():
    cpu = torch.device("cpu")
    assert most_numbers(cpu, 100) == 100
    with as_on_accelerator():
        assert most_numbers(cpu, 100) == 2**30
