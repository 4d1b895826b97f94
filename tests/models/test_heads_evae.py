"""Output heads against scipy and plain float64 formulas; samples against their distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from evae.models.configuration_evae import HEADS
from evae.models.heads_evae import (
    BIN_UPPER_EDGES,
    BIN_VALUES,
    HEAD_CLASSES,
    bins_to_counts,
    counts_to_bins,
    log_normalize,
)

PUBLISHED_BINS = {  # first count, last count (None: open), value
    **{i: (i, i, float(i)) for i in range(8)},
    8: (8, 9, 8.5),
    9: (10, 11, 10.5),
    10: (12, 15, 13.5),
    11: (16, 23, 19.5),
    12: (24, 31, 27.5),
    13: (32, 47, 39.5),
    14: (48, 63, 55.5),
    15: (64, 95, 76.5),
    16: (96, 127, 109.3),
    17: (128, 191, 154.3),
    18: (192, 255, 219.9),
    19: (256, None, 360.8),
}


@pytest.fixture
def head(tiny_config):
    """A function that gives a head over 30 genes."""
    return lambda name, **fields: HEAD_CLASSES[name](tiny_config(head=name, **fields))


@pytest.fixture
def outputs():
    """A function that gives random decoder outputs (cells, genes, n_outputs) on a plausible scale."""

    def draw(head, n_cells=7, seed=0):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(n_cells, 30, head.n_outputs, generator=generator)
        return values * 1.5 if head.n_outputs > 1 else values + 1.5

    return draw


class TestBins:
    def test_edges_and_values_are_the_published(self):
        assert len(BIN_VALUES) == 20
        for index, (first, last, value) in PUBLISHED_BINS.items():
            counts = [first, 10_000 if last is None else last]
            assert counts_to_bins(torch.tensor(counts)).tolist() == [index, index]
            assert bins_to_counts(torch.tensor([index])).item() == pytest.approx(value)
        assert len(BIN_UPPER_EDGES) == 19

    def test_every_count_falls_in_its_own_bin(self):
        counts = torch.arange(300)
        bins = counts_to_bins(counts)
        for count, index in zip(counts.tolist(), bins.tolist(), strict=True):
            first, last, _ = PUBLISHED_BINS[index]
            assert first <= count
            assert last is None or count <= last

    def test_within_draws_every_whole_count_of_the_bin_equally(self):
        generator = torch.Generator().manual_seed(0)
        for index, (first, last, value) in PUBLISHED_BINS.items():
            drawn = bins_to_counts(torch.full((20_000,), index), generator, within=True)
            if last is None:
                first = last = round(value)
            found, frequency = drawn.unique(return_counts=True)
            assert found.tolist() == list(range(first, last + 1))
            if len(found) > 1:
                assert stats.chisquare(frequency.numpy()).pvalue > 1e-4


class TestCrossEntropyQuantile:
    def test_loss_is_the_plain_formula(self, head, outputs, cells):
        quantile = head("ce-quantile")
        logits = outputs(quantile)
        x = logits.double().numpy()
        log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
        edges = np.array(BIN_UPPER_EDGES)
        bins = (cells.numpy()[..., None] > edges).sum(-1)
        expected = -np.take_along_axis(log_p, bins[..., None], -1).mean()
        assert quantile.loss(logits, cells, cells.sum(1)).item() == pytest.approx(expected, rel=1e-5)

    def test_sample_frequencies_follow_the_softmax(self, head, outputs):
        quantile = head("ce-quantile")
        logits = outputs(quantile)[:1, :2]
        drawn = quantile.sample(logits.expand(40_000, -1, -1), None, torch.Generator().manual_seed(0))
        for gene in range(2):
            frequency = [(drawn[:, gene] == torch.tensor(value)).sum().item() for value in BIN_VALUES]
            assert sum(frequency) == 40_000
            expected = logits[0, gene].double().softmax(-1).numpy() * 40_000
            assert stats.chisquare(frequency, expected / expected.sum() * 40_000).pvalue > 1e-4

    def test_an_impossible_bin_is_never_drawn(self, head):
        logits = torch.full((5_000, 1, 20), -1e4)
        logits[..., 3] = 0
        assert head("ce-quantile").sample(logits, None).unique().tolist() == [3.0]


class TestNegativeBinomial:
    def theta(self, nb):
        torch.manual_seed(1)
        torch.nn.init.normal_(nb.log_dispersion, std=2.0)
        with torch.no_grad():
            nb.log_dispersion[0] = -20.0  # below the floor
        return np.maximum(np.exp(nb.log_dispersion.detach().double().numpy()), 0.01)

    def mu(self, nb, outputs, library):
        x = outputs.double().numpy().squeeze(-1)
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True) * library.double().numpy()[:, None]

    def test_log_likelihood_is_that_of_scipy(self, head, outputs, cells):
        """Ours is float32: within 1e-4 relative and 1e-4 nats of scipy in float64 for small counts.

        Differences of lgamma cost up to 5e-3 nats where a gene has thousands of counts.
        """
        nb = head("nb")
        theta, values = self.theta(nb), outputs(nb)
        counts = torch.cat([cells, cells * 200])
        library = counts.sum(1)
        mu = self.mu(nb, torch.cat([values, values]), library)
        expected = stats.nbinom.logpmf(counts.numpy(), theta, theta / (theta + mu))
        ours = nb.log_likelihood(torch.cat([values, values]), counts, library).detach().numpy()
        np.testing.assert_allclose(ours[:7], expected[:7], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours[7:], expected[7:], rtol=1e-4, atol=5e-3)
        loss = nb.loss(values, cells, cells.sum(1)).item()
        assert loss == pytest.approx(-expected[:7].sum(-1).mean(), rel=1e-4)

    def test_samples_have_the_moments(self, head, outputs):
        nb = head("nb")
        theta, values = self.theta(nb), outputs(nb)[:1, :]
        library = torch.full((60_000,), 3000.0)
        drawn = nb.sample(values.expand(60_000, -1, -1), library, torch.Generator().manual_seed(0))
        drawn = drawn.detach().double()
        mu = self.mu(nb, values, library[:1])[0]
        variance = mu + mu**2 / theta
        assert (drawn == drawn.round()).all()
        assert (np.abs(drawn.mean(0).numpy() - mu) < 5 * np.sqrt(variance / 60_000)).all()
        heavy = theta < 0.2  # a variance estimate with so heavy a tail says nothing
        kurtosis = stats.nbinom.stats(theta, theta / (theta + mu), moments="k")
        tolerance = 5 * np.sqrt((kurtosis + 2) / 60_000)
        assert (~heavy).sum() > 10
        assert (np.abs(drawn.var(0).numpy() / variance - 1) < tolerance)[~heavy].all()


class TestLogNormalisedHeads:
    def test_hurdle_loss_is_the_plain_formula(self, head, outputs, cells):
        hurdle = head("hurdle", zero_loss_weight=0.1, median_library_size=60.0)
        values = outputs(hurdle)
        library = cells.sum(1)
        c, x, size = cells.double().numpy(), values.double().numpy(), library.double().numpy()[:, None]
        target = np.log1p(c * 60.0 / size)
        p = 1 / (1 + np.exp(-x[..., 0]))
        gate = -np.where(c > 0, np.log(p), np.log(1 - p)).mean()
        magnitude = ((x[..., 1] - target)[c > 0] ** 2).mean()
        expected = 0.1 * gate + magnitude
        assert hurdle.loss(values, cells, library).item() == pytest.approx(expected, rel=1e-5)

    def test_hurdle_sample_is_zero_or_the_magnitude(self, head, outputs):
        hurdle = head("hurdle")
        values = outputs(hurdle)[:1]
        library = torch.full((20_000,), 90.0)
        drawn = hurdle.sample(values.expand(20_000, -1, -1), library, torch.Generator().manual_seed(0))
        emitted = np.expm1(np.clip(values[0, :, 1].double().numpy(), 0, None)) * 90.0 / 60.0
        assert np.all(np.isclose(drawn.numpy(), 0) | np.isclose(drawn.numpy(), emitted, rtol=1e-5))
        positive = emitted > 0
        frequency = (drawn > 0).double().mean(0).numpy()[positive]
        p = values[0, :, 0].double().sigmoid().numpy()[positive]
        assert (np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()

    def test_mse_is_the_plain_formula(self, head, outputs, cells):
        mse = head("mse")
        values = outputs(mse)
        target = np.log1p(cells.double().numpy() * 60.0 / cells.double().numpy().sum(1, keepdims=True))
        expected = ((values.double().numpy().squeeze(-1) - target) ** 2).mean()
        assert mse.loss(values, cells, cells.sum(1)).item() == pytest.approx(expected, rel=1e-5)

    def test_a_perfect_mse_prediction_gives_the_counts_back(self, head, cells):
        library = cells.sum(1)
        values = log_normalize(cells, library, 60.0).unsqueeze(-1)
        torch.testing.assert_close(head("mse").mean(values, library), cells, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
class TestEveryHead:
    def test_the_generator_decides(self, name, head, outputs):
        chosen = head(name)
        values, library = outputs(chosen, 50), torch.full((50,), 100.0)
        draw = [chosen.sample(values, library, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
        torch.manual_seed(99)  # the global state must not matter
        again = chosen.sample(values, library, torch.Generator().manual_seed(3))
        assert torch.equal(draw[0], draw[1])
        assert torch.equal(draw[0], again)
        assert torch.equal(draw[0], draw[2]) == (name == "mse")  # mse has no distribution

    @pytest.mark.parametrize("within", [False, True])
    def test_mean_is_the_mean_of_samples(self, name, within, head, outputs):
        chosen = head(name, sample_within_bins=within)
        values, n = outputs(chosen)[:1], 40_000
        library = torch.full((n,), 300.0)
        with torch.no_grad():
            drawn = chosen.sample(values.expand(n, -1, -1), library, torch.Generator().manual_seed(0))
            mean = chosen.mean(values, library[:1])[0].double()
        drawn = drawn.double()
        error = 5 * drawn.std(0) / n**0.5 + 1e-4 * mean + 1e-6
        assert mean.max() > 1
        assert ((drawn.mean(0) - mean).abs() <= error).all()

    def test_loss_prefers_the_truth(self, name, head, cells):
        """Gradient descent on the outputs themselves reaches outputs whose mean is the counts."""
        chosen = head(name)
        library = cells.sum(1)
        values = torch.zeros(7, 30, chosen.n_outputs, requires_grad=True)
        optimizer = torch.optim.Adam([values, *chosen.parameters()], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            chosen.loss(values, cells, library).backward()
            optimizer.step()
        mean = chosen.mean(values, library).detach()
        assert np.corrcoef(mean.flatten().numpy(), cells.flatten().numpy())[0, 1] > 0.98

    def test_samples_are_finite_and_non_negative_at_the_extremes(self, name, head):
        chosen = head(name)
        for value in (-1e4, -50.0, 50.0, 1e4):
            outputs = torch.full((2, 30, chosen.n_outputs), value)
            drawn = chosen.sample(outputs, torch.tensor([1.0, 1e5]))
            assert torch.isfinite(drawn).all()
            assert (drawn >= 0).all()
