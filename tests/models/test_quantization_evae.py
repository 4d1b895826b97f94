"""FSQ and VQ against vector-quantize-pytorch, the Gaussian against torch.distributions, the standardizer."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from evae.models.quantization_evae import (
    FiniteScalarQuantizer,
    GaussianBottleneck,
    LatentStandardizer,
    LookupFreeQuantizer,
    VectorQuantizer,
)

LEVELS = [[8, 8, 8], [5, 3], [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [4, 3], [3]]


@pytest.fixture
def theirs(levels):
    """The same quantizer by the reference."""
    reference = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is in the extra dev")
    return reference.FSQ(levels)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
class TestAgainstVectorQuantizePytorch:
    def test_values_codes_and_gradients(self, levels, theirs):
        torch.manual_seed(0)
        ours = FiniteScalarQuantizer(levels)
        z = torch.randn(50, 9, len(levels)) * 2
        weight = torch.randn_like(z)
        mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
        values, codes = ours(mine)
        their_values, their_codes = theirs(other)
        torch.testing.assert_close(values, their_values, atol=1e-6, rtol=0)
        assert torch.equal(codes, their_codes.long())
        (values * weight).sum().backward()
        (their_values * weight).sum().backward()
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5)

    def test_codes_to_values(self, levels, theirs):
        ours = FiniteScalarQuantizer(levels)
        codes = torch.arange(math.prod(levels))
        values = ours.codes_to_values(codes)
        torch.testing.assert_close(values, theirs.indices_to_codes(codes), atol=1e-6, rtol=0)
        assert torch.equal(ours.values_to_codes(values), codes)

    def test_every_code_is_within_reach(self, levels):
        z = torch.linspace(-6, 6, 2001).unsqueeze(-1).expand(-1, len(levels))
        values = FiniteScalarQuantizer(levels)(z)[0]
        for column, level in zip(values.unbind(-1), levels, strict=True):
            expected = (torch.arange(level) - level // 2) / (level // 2)
            torch.testing.assert_close(column.sort().values.unique(), expected, atol=1e-6, rtol=0)


class TestVectorsAgainstVectorQuantizePytorch:
    @pytest.fixture
    def pair(self):
        """Ours with the vectors and counts of theirs, both in training."""
        reference = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is in the extra dev")
        torch.manual_seed(0)
        theirs, ours = reference.VectorQuantize(dim=5, codebook_size=7), VectorQuantizer(7, 5)
        theirs._codebook.embed.copy_(torch.randn(1, 7, 5))
        theirs._codebook.embed_avg.copy_(theirs._codebook.embed)
        ours.set_codes(theirs._codebook.embed[0])
        return ours.train(), theirs.train()

    def test_training_steps(self, pair):
        """Codes, values, gradient and distance, and the vectors after every step, one of them never used."""
        ours, theirs = pair
        for _ in range(4):
            z = torch.randn(6, 9, 5) + 0.5
            weight, mine, other = torch.randn_like(z), z.clone().requires_grad_(), z.clone().requires_grad_()
            values, codes, distance = ours(mine)
            their_values, their_codes, commitment = theirs(other)
            assert torch.equal(codes, their_codes)
            torch.testing.assert_close(values, their_values, atol=1e-5, rtol=0)
            torch.testing.assert_close(distance.mean(), commitment.squeeze())
            ((values * weight).sum() + distance.mean()).backward()
            ((their_values * weight).sum() + commitment.sum()).backward()
            assert mine.grad.abs().max() > 0
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0], atol=1e-5, rtol=1e-5)

    def test_evaluation(self, pair):
        ours, theirs = (module.eval() for module in pair)
        z, before = torch.randn(6, 9, 5), ours.codebook
        values, codes, distance = ours(z)
        assert distance is None
        assert torch.equal(codes, theirs(z)[1])
        torch.testing.assert_close(values, theirs.get_codes_from_indices(codes))
        assert torch.equal(ours.codebook, before)


def test_signs_are_those_of_vector_quantize_pytorch():
    """Codes, values, the loss of the entropies and the gradient of all."""
    reference = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is in the extra dev")
    theirs, ours = reference.LFQ(codebook_size=16).train(), LookupFreeQuantizer(4).train()
    torch.manual_seed(0)
    z = torch.randn(6, 9, 4) * 0.01  # near 0, where a code is uncertain
    weight, mine, other = torch.randn_like(z), z.clone().requires_grad_(), z.clone().requires_grad_()
    values, codes, penalty = ours(mine)
    their_values, their_codes, their_penalty = theirs(other)
    assert torch.equal(codes, their_codes.long())
    torch.testing.assert_close(values, their_values)
    torch.testing.assert_close(0.1 * penalty, their_penalty)
    ((values * weight).sum() + penalty).backward()
    ((their_values * weight).sum() + their_penalty / 0.1).backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
    values, codes, nothing = ours.eval()(z)
    assert nothing is None
    torch.testing.assert_close(values, theirs.indices_to_codes(codes))
    assert torch.equal(ours.codes_to_values(codes), values)


@pytest.mark.parametrize(
    ("fields", "n_codes"), [({"quantizer": "vq", "vq_codes": 6}, 6), ({"quantizer": "lfq", "lfq_bits": 3}, 8)]
)
def test_a_model_trains_and_its_prior_writes_codes(tiny_tokenizer, tiny_prior, cells, tmp_path, fields, n_codes):
    model = tiny_tokenizer(**fields)
    model.calibrate(cells)
    assert len(model.encode(cells).unique()) > 1
    model.train()
    output = model(cells)
    output.loss.backward()
    assert output.loss != output.reconstruction_loss
    assert output.kl_loss is None
    assert model.encoder.latent_tokens.grad.abs().max() > 0
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).encode(cells), model.encode(cells))
    prior = tiny_prior(tokenizer=fields)
    assert prior.config.bos_token_id == n_codes
    codes = prior.sample(n_cells=3)
    assert codes.max() < n_codes
    assert prior.tokenizer.sample_counts(codes, torch.full((3,), 40.0)).shape == (3, 30)


def test_forward_values_are_those_of_its_codes():
    quantizer = FiniteScalarQuantizer([8, 6, 5])
    values, codes = quantizer(torch.randn(100, 3) * 3)
    torch.testing.assert_close(values, quantizer.codes_to_values(codes), atol=1e-6, rtol=0)


def test_bfloat16_keeps_codes():
    """Grid values survive the trip through bfloat16, for every codebook published."""
    for levels in LEVELS:
        quantizer = FiniteScalarQuantizer(levels)
        codes = torch.arange(math.prod(levels))
        values = quantizer.codes_to_values(codes).to(torch.bfloat16)
        assert torch.equal(quantizer.values_to_codes(values), codes)


def test_quantizer_works_on_the_meta_device_and_holds_no_tensors():
    with torch.device("meta"):
        quantizer = FiniteScalarQuantizer([8, 8, 8])
    assert not quantizer.state_dict()
    assert quantizer(torch.zeros(2, 3))[1].shape == (2,)


class TestGaussianBottleneck:
    def test_kl_is_that_of_torch_distributions(self):
        parameters = torch.randn(5, 4, 6)
        mean, log_variance = parameters.chunk(2, dim=-1)
        expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum((1, 2))
        torch.testing.assert_close(GaussianBottleneck()(parameters)[2], expected)

    def test_mean_in_evaluation_and_draws_in_training(self):
        parameters = torch.tensor([1.5, -0.5, math.log(4.0), math.log(0.25)]).expand(20_000, 1, 4)
        bottleneck = GaussianBottleneck().eval()
        drawn, mean, _ = bottleneck(parameters)
        assert torch.equal(drawn, mean)
        torch.testing.assert_close(mean[0, 0], torch.tensor([1.5, -0.5]))
        torch.manual_seed(0)
        drawn, mean, _ = bottleneck.train()(parameters)
        # five standard errors of a mean and of a standard deviation over 20,000 draws
        torch.testing.assert_close(drawn.mean((0, 1)), mean[0, 0], atol=5 * 2 / 141, rtol=0)
        torch.testing.assert_close(drawn.std(0)[0], torch.tensor([2.0, 0.5]), atol=0, rtol=5 / 200)

    def test_clamps(self):
        parameters = torch.tensor([100.0, -100.0, 100.0, -100.0]).reshape(1, 1, 4)
        _, mean, kl = GaussianBottleneck()(parameters)
        assert mean.flatten().tolist() == [4.0, -4.0]
        variances = torch.tensor([10.0, -14.0]).exp()
        expected = kl_divergence(Normal(torch.tensor([4.0, -4.0]), variances.sqrt()), Normal(0.0, 1.0)).sum()
        torch.testing.assert_close(kl, expected.reshape(1))


class TestLatentStandardizer:
    def test_training_gives_zero_mean_and_unit_variance_over_cells(self):
        z = torch.randn(500, 4, 2) * torch.tensor([0.1, 30.0]) + torch.tensor([5.0, -2.0])
        output = LatentStandardizer(4, 2).train()(z)
        torch.testing.assert_close(output.mean(0), torch.zeros(4, 2), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.var(0, unbiased=False), torch.ones(4, 2), atol=5e-3, rtol=0)

    def test_a_small_spread_far_from_zero_survives_float32(self):
        z = 1000 + 0.1 * torch.randn(500, 2, 1, generator=torch.Generator().manual_seed(0))
        output = LatentStandardizer(2, 1).train()(z)
        variance = z.double().var(0, correction=0)
        found = output.double().var(0, correction=0)
        torch.testing.assert_close(found, variance / (variance + 1e-5), rtol=1e-3, atol=0)

    def test_running_statistics_reach_the_data_and_serve_evaluation(self):
        torch.manual_seed(0)
        standardizer = LatentStandardizer(1, 1, momentum=0.1).train()
        for _ in range(200):
            standardizer(torch.randn(200, 1, 1) * 3 + 7)
        torch.testing.assert_close(standardizer.running_mean, torch.full((1, 1), 7.0), atol=0.3, rtol=0)
        torch.testing.assert_close(standardizer.running_variance, torch.full((1, 1), 9.0), atol=1.0, rtol=0)
        output = standardizer.eval()(torch.full((1, 1, 1), 10.0))
        expected = (10 - standardizer.running_mean) / (standardizer.running_variance + 1e-5).sqrt()
        torch.testing.assert_close(output[0], expected)

    def test_running_mean_keeps_up_with_training(self):
        """Before the codes settle, the mean moves by several standard deviations in a hundred steps."""
        torch.manual_seed(0)
        standardizer = LatentStandardizer(1, 1).train()
        for step in range(100):
            standardizer(torch.randn(200, 1, 1) + 0.05 * step)
        assert abs(standardizer.eval()(torch.full((1, 1, 1), 0.05 * 99)).item()) < 0.6

    def test_evaluation_changes_no_statistics(self):
        standardizer = LatentStandardizer(1, 1).eval()
        standardizer(torch.randn(10, 1, 1) + 5)
        assert standardizer.running_mean.item() == 0
        assert standardizer.running_variance.item() == 1
