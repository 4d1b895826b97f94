"""Layers against their formulas, written out plainly in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from evae.models import EvaeConfig
from evae.models.adaln_evae import ModulatedBlock, modulations
from evae.models.count_embedding_evae import CountEmbedding
from evae.models.layers_evae import Attention, CrossBlock, Dropout, Perceptron


@pytest.fixture
def config(tiny_config):
    """A configuration of width 16 with two heads."""
    config = tiny_config()
    config._attn_implementation = "eager"
    return config


def drawn(module):
    """The module in float64 and evaluation mode, biases included in what is random."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def plain_attention(attention, x, memory, bias=None):
    """softmax(q k / sqrt(width of a head) + bias) v, head by head."""
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        query, key = linear(x, attention.q_proj)[..., part], linear(memory, attention.k_proj)[..., part]
        scores = query @ key.transpose(1, 2) / math.sqrt(8)
        weights = (scores if bias is None else scores + bias).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        heads.append(weights @ linear(memory, attention.v_proj)[..., part])
    return linear(torch.cat(heads, dim=-1), attention.o_proj)


def normed(x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


def plain_feed_forward(feed_forward, x):
    return linear(F.gelu(linear(x, feed_forward.up)), feed_forward.down)


@pytest.fixture
def x():
    return torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def memory():
    return torch.randn(3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class TestAttention:
    def test_onto_a_memory_with_a_bias(self, config, x, memory):
        attention, bias = drawn(Attention(config)), torch.randn(3, 1, 7, dtype=torch.float64)
        expected = plain_attention(attention, x, memory, bias)
        torch.testing.assert_close(attention(x, memory, bias.unsqueeze(1)), expected, atol=1e-12, rtol=0)

    def test_onto_itself_and_causal(self, config, x):
        attention = drawn(Attention(config))
        torch.testing.assert_close(attention(x), plain_attention(attention, x, x), atol=1e-12, rtol=0)
        attention.is_causal = True
        hidden = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)
        expected = plain_attention(attention, x, x, hidden)
        for implementation in ("eager", "sdpa"):
            config._attn_implementation = implementation
            torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=0)


def test_cross_block(config, x, memory):
    block = drawn(CrossBlock(config))

    def norm(x, layer):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias

    y = norm(x, block.self_norm)
    expected = x + plain_attention(block.self_attention, y, y)
    expected = expected + plain_attention(block.cross_attention, norm(expected, block.cross_norm), memory)
    feed_forward = plain_feed_forward(block.feed_forward, norm(expected, block.feed_forward_norm))
    torch.testing.assert_close(block(x, memory), expected + feed_forward, atol=1e-12, rtol=0)


def plain_block(block, x, modulation):
    """x + gate * attention((1 + scale) * norm(x) + shift), then likewise the feed-forward part."""
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unsqueeze(2).unbind(1)
    y = (1 + scale_a) * normed(x) + shift_a
    x = x + gate_a * plain_attention(block.attention, y, y)
    y = (1 + scale_f) * normed(x) + shift_f
    return x + gate_f * plain_feed_forward(block.feed_forward, y)


@pytest.mark.parametrize("n_conditions", [3, 1])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_modulated_block(tiny_prior, x, n_conditions, with_adapter):
    """Numbers and gradients; one condition may be that of all cells, and a layer may be another than torch's."""
    block = drawn(ModulatedBlock(tiny_prior().config, is_causal=False, layer_idx=0))
    if with_adapter:
        block.attention.q_proj.__class__ = type("Adapted", (torch.nn.Linear,), {})
    modulation = torch.randn(n_conditions, 6, 16, dtype=torch.float64)
    inputs, found = [x.requires_grad_(), modulation.requires_grad_(), *block.parameters()], []
    for forward in (lambda x, of_all: block(x, modulations(of_all)), lambda *given: plain_block(block, *given)):
        output = forward(x, modulation)
        found.append((output, *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-12)


def test_modulated_block_in_lower_precision(tiny_prior, x):
    """Near the exact one, with gradients in the precision of what they are of; frozen parts get none."""
    block = drawn(ModulatedBlock(tiny_prior().config, is_causal=False, layer_idx=0)).float()
    block.feed_forward.up.requires_grad_(False)
    x, modulation = x.float().requires_grad_(), torch.randn(3, 6, 16).requires_grad_()
    inputs, found = [x, modulation, *(p for p in block.parameters() if p.requires_grad)], []
    for on in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            output = block(x, modulations(modulation))
        found.append((output, *torch.autograd.grad(output.square().mean(), inputs)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 0.05 * other.abs().max() + 0.01  # that of a bias of the keys is 0
    block(x, modulations(modulation)).sum().backward()
    assert block.feed_forward.up.weight.grad is None


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout(precision, share):
    """Numbers are left out independently, with that probability; those that stay make up for them."""
    dropout, x = Dropout(share), torch.ones(3, 100, 333, dtype=precision).requires_grad_()
    torch.manual_seed(0)
    found = dropout(x)
    left_out, n = found == 0, x.numel()
    assert abs(float(left_out.float().mean()) - share) < 5 * (share * (1 - share) / n) ** 0.5
    both = (left_out.flatten()[1:] & left_out.flatten()[:-1]).float().mean()
    assert abs(float(both) - share**2) < 5 * (share**2 / n) ** 0.5
    assert found.dtype == precision
    torch.testing.assert_close(found[~left_out], torch.full_like(found[~left_out], 1 / (1 - share)), rtol=1e-2, atol=0)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], found)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), found)
    assert torch.equal(dropout.eval()(x), x)


def test_final_modulation_of_the_prior(tiny_prior):
    """logits = head((1 + scale) * norm(x) + shift); with every gate closed x is the embedded code alone."""
    prior = tiny_prior().double()
    modulation = torch.zeros(1, 14, 16, dtype=torch.float64)
    modulation[:, -2:] = torch.randn(2, 16, dtype=torch.float64)
    codes = torch.tensor([[15, 3, 7]])
    x = prior.token_embedding(codes) + prior.position_embedding.weight[:3]
    expected = linear((1 + modulation[:, -1]) * normed(x) + modulation[:, -2], prior.lm_head)
    found = prior(input_ids=codes, modulation=modulation).logits
    torch.testing.assert_close(found[..., :-1], expected, atol=1e-12, rtol=0)  # the last column is the start token's


def test_count_embedding():
    """gene embedding * W2 silu(W1 log1p(count)), and exactly zero where the count is zero."""
    embedding = drawn(CountEmbedding(EvaeConfig(n_genes=9, hidden_size=16, num_attention_heads=2)))
    genes, counts = torch.tensor([[4, 0, 8]]), torch.tensor([[3.0, 0.0, 250.0]], dtype=torch.float64)
    hidden = torch.log(1 + counts).unsqueeze(-1) * embedding.up.weight.squeeze(1)
    features = (hidden / (1 + (-hidden).exp())) @ embedding.down.weight.T
    expected = embedding.gene_embedding.weight[genes] * features
    torch.testing.assert_close(embedding(genes, counts), expected, atol=1e-12, rtol=0)
    assert (embedding(genes, counts)[0, 1] == 0).all()


@pytest.mark.parametrize("function", ["sinusoidal", "embedding"])
@pytest.mark.parametrize("sparse", [False, True])
def test_other_functions_of_the_count(function, sparse, tiny_config):
    """gene embedding * f(count); with sparse encoding f(count) - f(0), so that zeros have one token."""
    fields = {"count_embedding": function, "count_input": "bins", "count_scale": 0.5, "sparse_encoding": sparse}
    embedding = drawn(CountEmbedding(tiny_config(**fields)))
    genes, bins = torch.tensor([[4, 0, 8]]), torch.tensor([[3.0, 0.0, 19.0]], dtype=torch.float64)

    def f(bins):
        if function == "embedding":
            return embedding.bins.weight[bins.long()]
        angles = [0.5 * bins / 10_000 ** (i / 8) for i in range(8)]
        waves = torch.stack([a.sin() for a in angles] + [a.cos() for a in angles], dim=-1)
        return waves @ embedding.waves.weight.T + (0 if sparse else embedding.waves.bias)

    features = f(bins) - (f(torch.zeros_like(bins)) if sparse else 0)
    expected = embedding.gene_embedding.weight[genes] * features
    torch.testing.assert_close(embedding(genes, bins), expected, atol=1e-6, rtol=0)  # angles are float32
    assert (embedding(genes, bins)[0, 1] == 0).all() == sparse


def test_perceptron():
    perceptron = drawn(Perceptron(6, 4, 16, n_layers=2, dropout=0.5))
    x = torch.randn(3, 6, dtype=torch.float64)
    y = linear(x, perceptron.input)
    for norm, layer in zip(perceptron.norms, perceptron.layers, strict=True):
        y = y + F.gelu(linear(norm(y), layer))
    expected = linear(perceptron.output_norm(y), perceptron.output)
    torch.testing.assert_close(perceptron(x), expected, atol=1e-12, rtol=0)
