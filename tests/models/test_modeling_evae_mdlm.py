"""The masked diffusion prior: loss and bound against sums written out, samples against exact probabilities."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from evae.models import EvaeError, EvaeMDLMConfig
from evae.models.modeling_evae_mdlm import plan_calls
from evae.models.randomness_evae import CellStreams

CODES = torch.tensor([[3, 0, 14, 7], [1, 1, 2, 9], [5, 13, 0, 0]])
CONDITIONS = {"perturbation_ids": torch.tensor([0, 2, 1]), "cell_type_ids": torch.tensor([1, 0, 1])}
MASK = 15
TOY = {"n_latents": 3, "fsq_levels": [3]}
SEQUENCES = torch.tensor(list(itertools.product(range(3), repeat=3)))  # all cells of the toy


@pytest.fixture
def mdlm(tiny_prior):
    return lambda **fields: tiny_prior(kind="mdlm", **fields)


@pytest.fixture
def toy(mdlm):
    """A function that gives a prior over sequences of three codes out of three, far from uniform."""

    def build(time_conditioned):
        prior = mdlm(tokenizer=TOY, time_conditioned=time_conditioned)
        with torch.no_grad():
            prior.lm_head.weight.mul_(0.5)
        return prior

    return build


def probabilities(prior, tokens, time):
    """The network's probabilities, float64 (cells, latents, codes), of tokens with hidden codes."""
    modulation = prior.condition_modulation(len(tokens), time=torch.as_tensor(time).expand(len(tokens)))
    with torch.no_grad():
        return prior._logits(tokens, modulation).double().softmax(-1)


def exact_bound(prior, codes, n_times=2_000):
    """The bound by every set of hidden codes and the midpoint rule over the time, (cells,)."""
    time = ((torch.arange(n_times, dtype=torch.float64) + 0.5) / n_times).repeat(len(codes))
    rows = codes.repeat_interleave(n_times, dim=0)
    total = torch.zeros(len(rows), dtype=torch.float64)
    for hidden in itertools.product([False, True], repeat=3):
        m = sum(hidden)
        if m:
            masked = torch.tensor(hidden).expand(len(rows), -1)
            p = probabilities(prior, rows.masked_fill(masked, 3), time.float())
            losses = -p.gather(2, rows.unsqueeze(2)).squeeze(2).log()
            total += time ** (m - 1) * (1 - time) ** (3 - m) * (losses * masked).sum(1)
    return -total.view(len(codes), n_times).mean(1)


def exact_any_order(prior):
    """Probability of every toy sequence when codes are revealed one by one in random order, no time told."""
    total = torch.zeros(27, dtype=torch.float64)
    for order in itertools.permutations(range(3)):
        product = torch.ones(27, dtype=torch.float64)
        tokens = torch.full_like(SEQUENCES, 3)
        for position in order:
            own = SEQUENCES[:, position : position + 1]
            product *= probabilities(prior, tokens, 1)[:, position].gather(1, own).squeeze(1)
            tokens[:, position] = SEQUENCES[:, position]
        total += product / 6
    return total.numpy()


def agrees(codes, expected):
    observed = np.bincount((codes * torch.tensor([9, 3, 1])).sum(1).numpy(), minlength=27)
    expected = expected / expected.sum() * len(codes)
    rare = expected < 5  # together: the test holds for numbers that are not small
    pooled = [np.append(x[~rare], x[rare].sum() + 1) for x in (observed, expected)]
    return stats.chisquare(pooled[0], pooled[1]).pvalue > 1e-4


class TestLoss:
    def test_loss_is_the_weighted_cross_entropy_by_hand(self, mdlm):
        prior = mdlm()
        time, masked = torch.tensor([0.2, 0.7, 1.0]), torch.rand(3, 4, generator=torch.manual_seed(3)) < 0.6
        assert 0 < masked.sum() < 12
        output = prior(CODES, **CONDITIONS, time=time, masked=masked)
        modulation = prior.condition_modulation(3, **CONDITIONS, time=time)
        logits = prior._logits(torch.where(masked, MASK, CODES), modulation).detach().double().numpy()
        expected = 0.0
        for cell, latent in itertools.product(range(3), range(4)):
            if masked[cell, latent]:
                x = logits[cell, latent]
                expected += (np.log(np.exp(x).sum()) - x[CODES[cell, latent]]) / time[cell].item()
        assert output.loss.item() == pytest.approx(expected / 12, rel=1e-5)

    def test_drawn_masks_and_times_follow_the_schedule(self, mdlm):
        n = 4_000
        torch.manual_seed(0)
        codes = torch.randint(15, (n, 4))
        masked = mdlm()(codes).masked
        # times are spread evenly over the cells, so the share of hidden codes is 1/2 with less than binomial noise
        assert masked.float().mean().item() == pytest.approx(0.5, abs=5 * (0.25 / (4 * n)) ** 0.5)
        per_cell = masked.sum(1).bincount(minlength=5).numpy()  # uniform on 0..4 when the time is uniform
        assert stats.chisquare(per_cell).pvalue > 1e-4

    def test_mean_loss_is_the_bound(self, toy):
        """The training loss, averaged over times and masks, estimates the bound that `score` gives."""
        prior, n = toy(True), 40_000
        codes = torch.tensor([[0, 2, 1]])
        time = (torch.arange(n) + 0.5) / n
        masked = torch.rand(n, 3, generator=torch.manual_seed(0)) < time.unsqueeze(1)
        with torch.no_grad():
            loss = prior(codes.expand(n, -1), time=time, masked=masked).loss.item()
        assert loss * 3 == pytest.approx(-exact_bound(prior, codes).item(), rel=0.05)

    def test_only_hidden_codes_count_and_all_tokens_see_each_other(self, mdlm):
        prior = mdlm()
        masked = torch.tensor([[False, True, False, False]]).expand(3, -1)
        time = torch.full((3,), 0.5)
        before = prior(CODES, time=time, masked=masked).logits[:, 1]
        for seen in (0, 2, 3):  # before and after the hidden one
            changed = CODES.clone()
            changed[:, seen] = (changed[:, seen] + 1) % MASK
            after = prior(changed, time=time, masked=masked).logits[:, 1]
            assert (before - after).abs().amax(-1).min() > 1e-4
        hidden = CODES.clone()
        hidden[:, 1] = (hidden[:, 1] + 1) % MASK
        assert torch.equal(prior(hidden, time=time, masked=masked).logits[:, 1], before)

    def test_time_is_told_or_not(self, mdlm):
        masked = torch.ones(3, 4, dtype=torch.bool)
        for told in (True, False):
            prior = mdlm(time_conditioned=told)
            early, late = (prior(CODES, time=torch.full((3,), t), masked=masked).logits for t in (0.2, 0.9))
            assert torch.equal(early, late) is not told


class TestScore:
    @pytest.mark.parametrize("time_conditioned", [True, False])
    def test_bound_against_exact_enumeration(self, toy, time_conditioned):
        prior = toy(time_conditioned)
        codes = SEQUENCES[[5, 14, 26]]
        exact = exact_bound(prior, codes)
        repeats = 2_000
        estimates = prior.score(codes.repeat(repeats, 1), generator=torch.manual_seed(0)).double()
        estimates = estimates.view(repeats, 3)
        error = estimates.std(0) / repeats**0.5
        assert (error < 0.02 * exact.abs()).all()
        assert ((estimates.mean(0) - exact).abs() < 5 * error + 1e-6).all()
        assert exact.max() - exact.min() > 20 * error.max()  # cells that one number would not fit

    def test_a_lower_bound_of_the_likelihood(self, toy):
        prior = toy(False)
        assert (exact_bound(prior, SEQUENCES, 100).numpy() <= np.log(exact_any_order(prior)) + 1e-3).all()

    def test_more_samples_are_an_average(self, toy):
        prior = toy(True)
        spread = [
            prior.score(SEQUENCES[:1].expand(500, -1), n_samples=n, generator=torch.manual_seed(1)).std().item()
            for n in (1, 8)
        ]
        assert spread[1] == pytest.approx(spread[0] / 8**0.5, rel=0.3)


class TestSample:
    n = 6_000

    def test_one_code_a_time_is_the_any_order_model(self, toy):
        prior = toy(False)
        exact = exact_any_order(prior)
        assert exact.sum() == pytest.approx(1)
        assert exact.max() > 3 / 27
        codes = prior.sample(n_cells=self.n, num_steps=10**9, generator=torch.manual_seed(0))
        assert agrees(codes, exact)
        assert not agrees(codes, self.independent(prior))

    def independent(self, prior):
        p = probabilities(prior, torch.full((1, 3), 3), 1)[0]
        return torch.stack([p[i, SEQUENCES[:, i]] for i in range(3)]).prod(0).numpy()

    @pytest.mark.parametrize("order", ["random", "confidence"])
    def test_one_step_draws_every_code_alone(self, toy, order):
        prior = toy(True)
        codes = prior.sample(n_cells=self.n, num_steps=1, order=order, generator=torch.manual_seed(0))
        assert agrees(codes, self.independent(prior))

    @pytest.mark.parametrize("order", ["random", "confidence"])
    @pytest.mark.parametrize("num_steps", [1, 2, 3, 1000])
    def test_few_calls_and_no_code_is_hidden_again(self, mdlm, monkeypatch, order, num_steps):
        prior, seen = mdlm(), []
        whole = prior._logits
        monkeypatch.setattr(prior, "_logits", lambda tokens, m, prompt: (seen.append(tokens), whole(tokens, m))[1])
        codes = prior.sample(n_cells=40, num_steps=num_steps, order=order)
        assert len(seen) <= min(4, num_steps)
        assert (seen[0] == MASK).all()
        assert ((codes >= 0) & (codes < MASK)).all()
        for before, after in itertools.pairwise([*seen, codes]):
            revealed = before != MASK
            assert torch.equal(before[revealed], after[revealed])
            assert (after != before).any()

    def test_every_call_is_told_its_time(self, mdlm, monkeypatch):
        prior, seen = mdlm(), []
        whole = prior._modulation
        monkeypatch.setattr(prior, "_modulation", lambda c, t: (seen.append(t), whole(c, t))[1])
        prior.sample(n_cells=5, num_steps=4, order="confidence")
        assert [t.unique().item() for t in seen] == [1.0, 0.75, 0.5, 0.25]

    def test_confidence_order_begins_with_the_surest(self, mdlm, monkeypatch):
        prior = mdlm()
        certain = torch.zeros(1, 4, 15)
        certain[0, 2, 7] = 50.0  # latent 2 is sure, the others are not
        seen = []

        def logits(tokens, modulation, prompt):
            seen.append(tokens)
            return certain.expand(len(tokens), -1, -1)

        monkeypatch.setattr(prior, "_logits", logits)
        codes = prior.sample(n_cells=20, num_steps=4, order="confidence")
        assert (codes[:, 2] == 7).all()
        assert ((seen[1] != MASK) == torch.tensor([False, False, True, False])).all()

    def test_temperature(self, toy):
        prior = toy(False)
        cold = prior.sample(n_cells=50, num_steps=1, temperature=1e-4)
        assert torch.equal(cold, probabilities(prior, torch.full((50, 3), 3), 1).argmax(-1))
        assert agrees(prior.sample(n_cells=self.n, temperature=1e6), np.full(27, 1 / 27))

    def test_bad_options_raise(self, mdlm):
        for options, message in (
            ({"num_steps": 0}, "num_steps is 0"),
            ({"order": "best"}, "order 'best' does not exist; choose one of random, confidence"),
        ):
            with pytest.raises(EvaeError, match=message):
                mdlm().sample(**options)
        with pytest.raises(EvaeError, match="code id 15 does not exist"):
            mdlm()(torch.full((1, 4), MASK))
        with pytest.raises(EvaeError, match="a cell has 4 codes; 3 were given"):
            mdlm()(CODES[:, :3])
        with pytest.raises(EvaeError, match="needs codes"):
            EvaeMDLMConfig(tokenizer_config={"quantizer": "gaussian"})


def test_calls_and_times_by_hand():
    when = torch.tensor([[0.30, 0.05, 0.95, 0.31], [0.99, 0.99, 0.99, 0.99]])
    call, times = plan_calls(when, 10)
    assert call.tolist() == [[1, 0, 2, 1], [0, 0, 0, 0]]
    torch.testing.assert_close(times[0, :3], torch.tensor([1.0, 0.7, 0.1]))
    torch.testing.assert_close(times[1, :1], torch.tensor([0.1]))


def test_streams_are_the_cells_own():
    streams = CellStreams(3, range(10))
    whole = streams.uniform(4)
    assert whole.unique().numel() == 40
    assert torch.equal(streams[6:9].uniform(2), whole[6:9, :2])
    assert torch.equal(streams[6:9][1:].uniform(4), whole[7:9])
    mine = streams[:2]
    assert torch.equal(torch.stack([mine.uniform(), mine.uniform()], dim=1), whole[:2, :2])
