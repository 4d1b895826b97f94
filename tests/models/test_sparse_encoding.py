"""Encoding the expressed genes only is exact: numbers and gradients as from every gene, in float64."""

import pytest
import torch
from torch import nn

from evae.models import EvaeModel
from evae.models.modeling_evae import to_sparse


@pytest.fixture(params=["sdpa", "eager"])
def pair(request, tiny_config):
    """A tokenizer that encodes every gene, and one with its weights that encodes the expressed genes."""
    models = []
    for sparse in (False, True):
        torch.manual_seed(0)
        config = tiny_config(sparse_encoding=sparse, head="hurdle", attn_implementation=request.param)
        model = EvaeModel(config).double().eval()
        assert model.config._attn_implementation == request.param
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:  # biases start at zero
                nn.init.normal_(module.bias)
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    return models


def loss_and_gradients(model, *cells):
    model.zero_grad()
    library = cells[0].sum(1)
    latents = model.embed(*cells)
    (model(*cells, library_size=library).loss + (latents**2).sum()).backward()
    return latents.detach(), {k: p.grad.clone() for k, p in model.named_parameters()}


def assert_equal(dense, sparse):
    torch.testing.assert_close(sparse[0], dense[0], atol=1e-12, rtol=1e-12)
    for name, gradient in dense[1].items():
        torch.testing.assert_close(sparse[1][name], gradient, atol=1e-10, rtol=1e-9, msg=name)


def all_forms(cells, as_gene_lists):
    yield (cells,)
    yield to_sparse(cells)
    yield as_gene_lists(cells)
    yield as_gene_lists(cells, seed=1, extra=40)


def test_equals_dense_encoding(pair, cells, as_gene_lists):
    dense, sparse = pair
    expected = loss_and_gradients(dense, cells.double())
    assert expected[1]["encoder.embedding.gene_embedding.weight"].abs().max() > 0
    for form in all_forms(cells.double(), as_gene_lists):
        assert_equal(expected, loss_and_gradients(sparse, *form))
        assert_equal(expected, loss_and_gradients(dense, *form))


def test_every_gene_expressed_and_no_gene_expressed(pair, cells, as_gene_lists):
    """log(0 zeros) is -inf, which must remove the zero token and leave no NaN; likewise nothing but zeros."""
    dense, sparse = pair
    mixed = cells.double().clone()
    mixed[0] += 1
    mixed[1] = 0
    expected = loss_and_gradients(dense, mixed)
    assert torch.isfinite(expected[0]).all()
    for form in all_forms(mixed, as_gene_lists):
        found = loss_and_gradients(sparse, *form)
        assert all(torch.isfinite(gradient).all() for gradient in found[1].values())
        assert_equal(expected, found)


def test_whole_batch_expressed_in_float32(tiny_tokenizer, cells):
    model = tiny_tokenizer().train()
    output = model(cells + 1)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_mlp_encoder_reads_gene_lists_as_dense_counts(tiny_tokenizer, cells, as_gene_lists):
    model = tiny_tokenizer(encoder="mlp").double()
    expected = model.embed(cells.double())
    torch.testing.assert_close(model.embed(*as_gene_lists(cells.double())), expected, atol=1e-12, rtol=0)
