"""A converted VAE computes what the published one does: codes, distributions, losses, samples with the same noise."""

import pytest
import torch

from evae.models.contract_evae import EvaeError
from evae.models.randomness_evae import CellStreams, draw_negative_binomial

from .conftest import CELLS, READS

EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "lfq", "noquant"], scope="class")
@pytest.mark.parametrize("head", READS, scope="class")
class TestEveryHead:
    @pytest.fixture(scope="class")
    def pair(self, head, quantizer, write_vae, converted):
        vae, folder = write_vae(head, quantizer, wrapped=head == "mse")
        return vae, converted(folder)

    def test_codes_latents_and_pooled_tokens(self, pair, head, read_as, counts):
        vae, model = pair
        theirs = vae(read_as(READS[head]))
        if theirs.codes is None:
            torch.testing.assert_close(model.encode(counts), theirs.latents, **EXACT)
        else:
            assert torch.equal(model.encode(counts), theirs.codes)
            assert len(theirs.codes.unique(dim=0)) >= CELLS / 3
            torch.testing.assert_close(model.codes_to_latents(theirs.codes), theirs.latents)
        torch.testing.assert_close(
            model.embed(counts, kind="pooled"), vae.tokens(read_as(READS[head])).mean(1), **EXACT
        )

    def test_loss(self, pair, head, read_as, counts):
        vae, model = pair
        torch.testing.assert_close(model(counts).loss, vae(read_as(READS[head]), kl_weight=0.01).loss, **EXACT)

    def test_samples_with_the_same_noise(self, pair, head, read_as, counts):
        vae, model = pair
        theirs, library = vae(read_as(READS[head])), counts.sum(1)
        latents = theirs.latents if theirs.codes is None else theirs.codes
        sampled = model.sample_counts(latents, library, CellStreams(2, range(CELLS)))
        uniform = CellStreams(2, range(CELLS)).uniform(counts.shape[1])
        expected = drawn(vae.output_head, theirs.features, library, uniform, model.config.median_library_size)
        torch.testing.assert_close(sampled, expected, **EXACT)


@pytest.mark.parametrize(
    ("counts_function", "head"), [("embedding", "cross_entropy"), ("sinusoidal", "mse"), ("sinusoidal", "nb")]
)
def test_every_function_of_the_count(counts_function, head, write_vae, converted, read_as, counts):
    """Their tokens of zeros are not 0, so the encoder must attend to all genes."""
    vae, folder = write_vae(head, counts=counts_function)
    model, theirs = converted(folder), vae(read_as(READS[head]))
    torch.testing.assert_close(model.embed(counts, kind="pooled"), vae.tokens(read_as(READS[head])).mean(1), **EXACT)
    torch.testing.assert_close(model(counts).loss, theirs.loss, **EXACT)
    assert torch.equal(model.encode(counts), theirs.codes)


def test_vectors_of_bins_need_a_head_that_reads_bins(write_vae, converted):
    _, folder = write_vae("mse", counts="embedding")
    with pytest.raises(EvaeError, match="a vector a bin"):
        converted(folder)


BIN_VALUES = torch.tensor(
    [0, 1, 2, 3, 4, 5, 6, 7, 8.5, 10.5, 13.5, 19.5, 27.5, 39.5, 55.5, 76.5, 109.3, 154.3, 219.9, 360.8]
)


def drawn(head, features, library, uniform, median):
    """Counts drawn from a published head with given noise."""
    if head.kind == "cross_entropy":
        shares = head.proj(features).softmax(-1)
        return BIN_VALUES[(shares.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1).clamp_max(19)]
    if head.kind == "nb":
        mean = library.unsqueeze(1) * head.shares(features)
        return draw_negative_binomial(mean, head.dispersion(), CellStreams(2, range(CELLS)))
    values = head.proj(features)[..., -1]
    if head.kind == "hurdle":
        values = values * (uniform < 1 - head.proj(features)[..., 0].sigmoid())
    return torch.expm1(values.clamp_min(0)) * library.unsqueeze(1) / median
