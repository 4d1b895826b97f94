"""The options that make a model compute what the published one does: what encoders read, and how priors make tokens."""

import pytest
import torch

from evae.models.contract_evae import EvaeError
from evae.models.heads_evae import counts_to_bins
from evae.models.randomness_evae import CellStreams, categorical

PUBLISHED = {"modulation_activation": "none", "layer_norm_eps": 1e-5, "token_product": True}
TIME = {"time_frequencies": 8, "time_scale": 1.0, "time_endpoint": True}


@pytest.mark.parametrize("encoder", ["attention", "mlp"])
@pytest.mark.parametrize("count_input", ["bins", "normalized"])
def test_encoders_read_bins_or_normalized_counts_in_every_form(
    tiny_tokenizer, cells, as_gene_lists, count_input, encoder
):
    cells[:, 0] = 40  # above 7 a bin holds several counts
    sizes = cells.sum(1, keepdim=True)
    read = counts_to_bins(cells).float() if count_input == "bins" else cells / sizes * 60
    fields = {"encoder": encoder, "quantizer": "gaussian"}
    expected = tiny_tokenizer(**fields).encode(read)
    for sparse in (True, False):
        model = tiny_tokenizer(count_input=count_input, sparse_encoding=sparse, **fields)
        torch.testing.assert_close(model.encode(cells), expected)
        torch.testing.assert_close(model.encode(*as_gene_lists(cells)), expected)


def test_a_prior_without_latents_follows_normalized_counts(tiny_prior, cells):
    prior = tiny_prior(kind="flow", tokenizer={"quantizer": "log1p", "count_input": "normalized"}, **PUBLISHED)
    values = prior.tokenizer.encode(cells)
    torch.testing.assert_close(values.squeeze(-1), torch.log1p(cells / cells.sum(1, keepdim=True) * 60))
    torch.testing.assert_close(prior.tokenizer.mean_counts(values, cells.sum(1)), cells)


@pytest.mark.parametrize("quantizer", ["fsq", "bins"])
def test_autoregressive_codes_are_those_of_the_forward_pass(tiny_prior, quantizer):
    prior = tiny_prior(tokenizer={"quantizer": quantizer}, **PUBLISHED)
    ids = torch.arange(3)
    codes = prior.sample(ids, ids.clamp_max(1), generator=CellStreams(5, range(3)))
    logits = prior(None, ids, ids.clamp_max(1), codes=codes).logits
    assert torch.equal(codes, categorical(logits.softmax(-1), CellStreams(5, range(3)).uniform(prior.n_codes)))


def test_a_masked_code_has_the_sum_of_mask_and_position(tiny_prior):
    prior = tiny_prior(kind="mdlm", **PUBLISHED, **TIME)
    plain = tiny_prior(kind="mdlm", **{**PUBLISHED, "token_product": False}, **TIME)
    codes, masked = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.bool)
    time = torch.tensor([0.5])
    assert torch.equal(prior(codes, time=time, masked=masked).logits, plain(codes, time=time, masked=masked).logits)
    known = ~masked
    assert not torch.allclose(
        prior(codes, time=time, masked=known).logits, plain(codes, time=time, masked=known).logits
    )


def test_the_slowest_frequency_may_be_the_ten_thousandth(tiny_prior):
    embedding = tiny_prior(kind="flow", **TIME).time_embedding
    torch.nn.init.eye_(embedding.up.weight)
    torch.nn.init.zeros_(embedding.up.bias)
    torch.nn.init.eye_(embedding.down.weight)
    torch.nn.init.zeros_(embedding.down.bias)
    angles = 10_000.0 ** -(torch.arange(8) / 7)  # at time 1
    expected = torch.nn.functional.silu(torch.cat([angles.cos(), angles.sin()]))
    torch.testing.assert_close(embedding(torch.ones(1))[0], expected)


@pytest.mark.parametrize(
    ("fields", "named"), [({"modulation_activation": "relu"}, "silu, none"), ({"time_frequencies": 0}, "at least 1")]
)
def test_wrong_values_are_named(tiny_prior, fields, named):
    with pytest.raises(EvaeError, match=named):
        tiny_prior(kind="flow", **fields)
