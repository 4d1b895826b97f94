"""Sampling with `compile=True`: the same codes, from one graph for all positions and for batches of all sizes."""

import gc

import pytest
import torch
from torch._dynamo.utils import counters

from evae.models import EvaeError, code_writer_evae
from evae.models.randomness_evae import CellStreams

IDS = {"perturbation_ids": torch.tensor([0, 2, 1, 1, 0]), "cell_type_ids": torch.tensor([1, 0, 1, 0, 0])}

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture
def graphs(monkeypatch):
    """The number of graphs made. They are traced and rewritten as for any compiler, then run as they are."""
    torch._dynamo.reset()
    counters.clear()
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, mode=None, **how: real(f, backend="aot_eager", fullgraph=True, **how)
    )
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def draw(prior, n=5, first=0, ids=IDS, **options):
    streams = CellStreams(3, range(first, first + n))
    return prior.sample(**{name: ids[:n] for name, ids in ids.items()}, generator=streams, **options)


def test_codes_of_any_batch_come_from_one_graph(graphs, tiny_prior):
    prior = tiny_prior(tokenizer={"n_latents": 7})
    for n in (5, 3, 1, 5):
        for options in ({}, {"first": 50, "temperature": 0.7}):
            assert torch.equal(draw(prior, n, **options, compile=True), draw(prior, n, **options))
    shared = {name: ids[:1].expand(5) for name, ids in IDS.items()}
    with torch.inference_mode():  # as the pipeline does
        assert torch.equal(draw(prior, ids=shared, compile=True), draw(prior, ids=shared))
    with torch.no_grad():
        prior.lm_head.weight.mul_(3)
    assert torch.equal(draw(prior, compile=True), draw(prior))
    assert graphs() == 1


@pytest.mark.parametrize("n_latents", [1, 6])
def test_codes_drawn_stay_when_more_are_drawn(graphs, tiny_prior, n_latents):
    prior = tiny_prior(tokenizer={"n_latents": n_latents})
    for n in (1, 5):
        codes = draw(prior, n, compile=True)
        expected = codes.clone()
        for first in (10, 20, 30):
            draw(prior, n, first, compile=True)
        assert torch.equal(codes, expected)


def test_weights_that_are_no_numbers_leave_no_trace(graphs, tiny_prior):
    prior = tiny_prior()
    weight = prior.blocks[0].attention.v_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        draw(prior, compile=True)
        weight.fill_(float("nan"))
        draw(prior, compile=True)
        weight.copy_(before)
    assert torch.equal(draw(prior, compile=True), draw(prior))


def test_guidance_has_a_graph_of_its_own(graphs, tiny_prior):
    prior = tiny_prior()
    for n in (5, 3):
        for scale in (2.0, 1.5, 0.0):
            options = {"n": n, "guidance_scale": scale}
            assert torch.equal(draw(prior, **options, compile=True), draw(prior, **options))
    assert graphs() == 1
    assert torch.equal(draw(prior, compile=True), draw(prior))
    assert graphs() == 2


def test_under_autocast_and_in_other_precisions(graphs, tiny_prior):
    prior = tiny_prior()
    for number, precision in enumerate((torch.float32, torch.float64)):
        assert torch.equal(draw(prior.to(precision), compile=True), draw(prior))
        assert graphs() == number + 1
    with torch.autocast("cpu", torch.bfloat16):
        codes = draw(prior.float(), compile=True)
        assert (codes == draw(prior)).float().mean() > 0.8  # masked sums round another way


@pytest.mark.parametrize(("kind", "options"), [("mdlm", {}), ("flow", {"solver": "euler"})])
def test_other_priors(graphs, tiny_prior, kind, options):
    prior = tiny_prior(kind=kind)
    for n_graphs in (None, graphs):
        before = n_graphs and n_graphs()
        for n in (5, 4, 3):
            found, expected = draw(prior, n, **options, compile=True), draw(prior, n, **options)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 1 <= graphs() == before <= 3


def test_memory_goes_with_the_prior(graphs, tiny_prior):
    prior = tiny_prior()
    draw(prior, compile=True)
    assert len(code_writer_evae._COMPILED) == 1
    del prior
    gc.collect()
    assert not code_writer_evae._COMPILED


def test_needs_a_compiler(tiny_prior, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EvaeError, match=r"C\+\+ compiler"):
        draw(tiny_prior(), compile=True)
