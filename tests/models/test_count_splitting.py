"""Count splitting: two parts of a cell whose sampling noise is independent, in training only."""

import numpy as np
import pytest
import torch

from evae.models import EvaeConfig, EvaeError, EvaeModel
from evae.models.modeling_evae import split_counts, to_sparse
from evae.models.randomness_evae import CellStreams

SPLITTING = {"count_splitting": True, "condition_on_library": True, "dropout": 0.0}


def test_parts_are_whole_counts_that_add_up(cells):
    seen, target, whole = split_counts(cells, CellStreams(0, range(7)))
    assert whole.tolist() == [True, False] * 3 + [True]
    assert torch.equal((seen + target)[1::2], cells[1::2])
    assert torch.equal(seen[::2], cells[::2])
    assert torch.equal(target[::2], cells[::2])
    assert (seen >= 0).all()
    assert (target >= 0).all()
    assert torch.equal(seen, seen.round())
    assert (seen[1::2] < cells[1::2]).any()
    assert (target[1::2] < cells[1::2]).any()


def test_the_share_is_uniform_and_the_noise_of_the_parts_independent():
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((8_000, 40), 5.0))
    parts = split_counts(counts, CellStreams(0, range(8_000)))[:2]
    seen, target, counts = (part[1::2] for part in (*parts, counts))
    share = (seen.sum(1) / counts.sum(1)).numpy()
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert np.quantile(share, [0.25, 0.75]) == pytest.approx([0.3, 0.7], abs=0.03)
    # within cells of one share, genes that are above their mean in one part are not so in the other
    middle = np.abs(share - 0.5) < 0.02
    first, second = seen[middle], target[middle]
    assert middle.sum() > 100
    correlation = np.corrcoef(first.flatten().numpy(), second.flatten().numpy())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(first.numel())


def test_only_split_cells_train_the_encoder(tiny_config, cells):
    torch.manual_seed(0)
    model = EvaeModel(tiny_config(**SPLITTING)).train()
    model(cells[:1]).loss.backward()  # one cell alone stays whole
    assert all((p.grad == 0).all() for p in model.to_latent.parameters())
    assert model.decoder.output.weight.grad.abs().max() > 0
    model(cells[:2]).loss.backward()
    assert model.to_latent.weight.grad.abs().max() > 0


def test_gene_lists_split_too(tiny_config, cells):
    torch.manual_seed(0)
    model = EvaeModel(tiny_config(**SPLITTING)).train()
    output = model(*to_sparse(cells))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert not torch.equal(output.loss, model(*to_sparse(cells)).loss)


def test_evaluation_sees_whole_cells(tiny_tokenizer, cells):
    model = tiny_tokenizer(**SPLITTING)
    output = model(cells)
    assert torch.equal(output.loss, model(cells).loss)
    assert torch.equal(output.codes, model.encode(cells))
    torch.testing.assert_close(output.outputs, model.decode(output.codes, cells.sum(1)))


def test_needs_the_library_size():
    with pytest.raises(EvaeError, match="count_splitting needs condition_on_library"):
        EvaeConfig(count_splitting=True)


def test_other_molecules_are_decoded_as_those_of_split_cells(tiny_tokenizer, cells):
    model, total = tiny_tokenizer(**SPLITTING), cells.sum(1)
    codes = model.encode(cells)
    other, own = model.decode(codes, total, independent=True), model.decode(codes, total)
    assert not torch.isclose(other, own).all(-1).all(-1).any()
    streams = CellStreams(0, range(7))
    _, target, whole = split_counts(cells, streams.branch(0))
    model.train()
    trained = model(cells, generator=CellStreams(0, range(7)))  # dropout is 0
    model.eval()
    split = ~whole
    same = model.decode(trained.codes[split], target.sum(1)[split], independent=True)
    torch.testing.assert_close(trained.outputs[split], same)
    unsplit = tiny_tokenizer(condition_on_library=True)
    assert torch.equal(unsplit.decode(codes, total, independent=True), unsplit.decode(codes, total))


@pytest.mark.parametrize("kind", ["ar", "mdlm", "flow"])
def test_priors_draw_counts_twice_from_the_same_codes(tiny_prior, kind):
    prior = tiny_prior(kind=kind, tokenizer=SPLITTING)
    asked = {"perturbation_ids": torch.ones(40, dtype=torch.long), "cell_type_ids": torch.zeros(40, dtype=torch.long)}
    asked |= {"library_size": torch.full((40,), 30.0)}
    own, other = prior.sample_cells(**asked, generator=CellStreams(0, range(40)), also_independent=True)
    assert torch.equal(own, prior.sample_cells(**asked, generator=CellStreams(0, range(40))))
    streams = CellStreams(0, range(40))
    tokens = prior.sample(**asked, n_cells=40, generator=streams)
    assert torch.equal(other, prior.tokenizer.sample_counts(tokens, asked["library_size"], streams, independent=True))
    assert not torch.equal(own, other)
