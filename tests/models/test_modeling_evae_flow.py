"""The flow prior: loss by hand, solvers on a flow that is known, a Gaussian learned, latents brought back to scale."""

import numpy as np
import pytest
import torch

from evae.models import EvaeError, EvaeFlowConfig, EvaeFlowModel

CONDITIONS = {"perturbation_ids": torch.tensor([0, 2, 1]), "cell_type_ids": torch.tensor([1, 0, 1])}
MEAN, STD = 1.5, 0.4  # of the Gaussian that the known flow leads to


@pytest.fixture
def flow(tiny_prior):
    return lambda **fields: tiny_prior(kind="flow", **fields)


def gaussian_velocity(place, time):
    """Velocity from N(0, 1) to N(MEAN, STD^2) along straight paths: E[x - e | (1 - t) e + t x = place]."""
    time = time.view(-1, 1, 1)
    variance = (1 - time) ** 2 + (time * STD) ** 2
    return MEAN + (time * STD**2 - (1 - time)) / variance * (place - time * MEAN)


class TestLoss:
    def test_loss_is_the_squared_error_of_the_velocity_by_hand(self, flow):
        prior = flow()
        generator = torch.Generator().manual_seed(0)
        latents, noise = (torch.randn(3, 4, 3, generator=generator) for _ in range(2))
        time = torch.tensor([0.0, 0.3, 1.0])
        output = prior(latents, **CONDITIONS, time=time, noise=noise)
        x = ((latents - prior.scale.mean) / prior.scale.std).double().numpy()
        e, t = noise.double().numpy(), time.double().numpy()[:, None, None]
        place = torch.from_numpy((1 - t) * e + t * x).float()
        v = prior._velocity(place, time, prior.condition(3, *CONDITIONS.values(), None)).detach().double().numpy()
        assert output.loss.item() == pytest.approx(((v - (x - e)) ** 2).mean(), rel=1e-5)
        assert output.velocity.shape == latents.shape

    def test_time_conditions_and_all_latents_matter(self, flow):
        prior = flow()
        latents, noise = torch.zeros(3, 4, 3), torch.zeros(3, 4, 3)
        call = {**CONDITIONS, "time": torch.full((3,), 0.5), "noise": noise}
        base = prior(latents, **call).velocity
        for change in ({"time": torch.full((3,), 0.6)}, {"perturbation_ids": None}, {"cell_type_ids": None}):
            assert (prior(latents, **{**call, **change}).velocity - base).abs().amax((1, 2)).min() > 1e-4
        for latent in (0, 3):
            moved = latents.clone()
            moved[:, latent] = 1.0
            others = [i for i in range(4) if i != latent]
            assert (prior(moved, **call).velocity - base)[:, others].abs().amax((1, 2)).min() > 1e-5

    def test_draws_differ(self, flow):
        prior, latents = flow(), torch.zeros(3, 4, 3)
        assert prior(latents).loss != prior(latents).loss


class TestScale:
    def test_statistics_of_the_training_cells(self, flow, tmp_path):
        prior = flow()
        latents = torch.randn(500, 4, 3) * torch.linspace(0.1, 5, 12).view(4, 3) + torch.arange(12.0).view(4, 3)
        latents[:, 1, 1] = 7.0  # a value that never varies
        prior.set_statistics(latents)
        standard = prior.scale.standardise(latents)
        assert torch.isfinite(standard).all()
        moving = torch.ones(4, 3, dtype=torch.bool)
        moving[1, 1] = False
        torch.testing.assert_close(standard.mean(0), torch.zeros(4, 3), atol=1e-4, rtol=0)
        torch.testing.assert_close(standard.std(0)[moving], torch.ones(11), atol=1e-4, rtol=0)
        torch.testing.assert_close(prior.scale.restore(standard), latents)
        prior.save_pretrained(tmp_path)
        loaded = EvaeFlowModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.scale.mean, prior.scale.mean)
        assert torch.equal(loaded.scale.std, prior.scale.std)

    def test_a_new_model_leaves_latents_as_they_are(self, tiny_config):
        prior = EvaeFlowModel(EvaeFlowConfig(tokenizer_config=tiny_config(quantizer="gaussian")))
        latents = torch.randn(2, 4, 3)
        assert torch.equal(prior.scale.standardise(latents), latents)


class TestSample:
    def errors(self, flow, monkeypatch, solver, steps):
        """Largest error of mean and standard deviation of the samples after `steps` steps of a known flow."""
        prior, calls = flow(), []
        noise = flow_noise(prior)

        def velocity(place, time, condition, prompt):
            calls.append(time[0].item())
            return gaussian_velocity(place, time)

        monkeypatch.setattr(prior, "_velocity", velocity)
        latents = prior.sample(n_cells=50, num_steps=steps, solver=solver, generator=torch.manual_seed(0))
        exact = prior.scale.restore(MEAN + STD * noise)  # the flow maps straight: a scale and a shift
        return (latents - exact).abs().max().item(), calls

    def test_solvers_are_of_their_order(self, flow, monkeypatch):
        for solver, order in (("euler", 1), ("heun", 2)):
            coarse, fine = (self.errors(flow, monkeypatch, solver, n)[0] for n in (32, 64))
            assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35)
        heun, calls = self.errors(flow, monkeypatch, "heun", 4)
        assert calls == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]
        assert self.errors(flow, monkeypatch, "euler", 4)[1] == [0, 0.25, 0.5, 0.75]
        assert heun < self.errors(flow, monkeypatch, "euler", 8)[0]

    def test_bad_options_raise(self, flow):
        for options, message in (
            ({"num_steps": 0}, "num_steps is 0"),
            ({"solver": "rk4"}, "solver 'rk4' does not exist; choose one of heun, euler"),
        ):
            with pytest.raises(EvaeError, match=message):
                flow().sample(**options)
        with pytest.raises(EvaeError, match=r"latents must be \(cells, 4, 3\), not \(2, 4\)"):
            flow()(torch.zeros(2, 4))
        with pytest.raises(EvaeError, match="needs latents"):
            EvaeFlowConfig(tokenizer_config={"quantizer": "fsq"})


def flow_noise(prior):
    """The noise that `sample` begins with at the seed of `errors`."""
    captured = []
    whole = prior._velocity
    prior._velocity = lambda place, time, condition, prompt: (captured.append(place), whole(place, time, condition))[1]
    try:
        type(prior).sample(prior, n_cells=50, num_steps=1, generator=torch.manual_seed(0))
    finally:
        prior._velocity = whole
    return captured[0]


def test_a_gaussian_is_learned(tiny_config):
    """Trained on correlated Gaussian latents of odd scale, samples have their mean and covariance."""
    torch.manual_seed(0)
    config = tiny_config(quantizer="gaussian", n_latents=2, latent_dim=1)
    prior = EvaeFlowModel(
        EvaeFlowConfig(config, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )
    mean, mixing = torch.tensor([3.0, -20.0]), torch.tensor([[2.0, 0.0], [4.0, 3.0]])

    def draw(n):
        return (torch.randn(n, 2) @ mixing.T + mean).unsqueeze(-1)

    prior.set_statistics(draw(5_000))
    steps = 300
    optimizer = torch.optim.Adam([p for p in prior.parameters() if p.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prior.train()
    for _ in range(steps):
        optimizer.zero_grad()
        prior(draw(128)).loss.backward()
        optimizer.step()
        schedule.step()
    sampled = prior.eval().sample(n_cells=2_000, num_steps=8, generator=torch.manual_seed(1)).squeeze(-1).numpy()
    std = (mixing @ mixing.T).diagonal().sqrt().numpy()
    np.testing.assert_allclose((sampled.mean(0) - mean.numpy()) / std, 0, atol=0.12)
    covariance = np.cov(sampled.T) / np.outer(std, std)
    np.testing.assert_allclose(covariance, (mixing @ mixing.T).numpy() / np.outer(std, std), atol=0.15)
    assert covariance[0, 1] > 0.65  # 0.8; without correlation it would be 0


def test_a_value_that_training_cells_share_does_not_blow_up_other_cells(tiny_prior):
    """The Gaussian bottleneck clamps means to +-4; a value may stand there in all training cells, not in all others."""
    prior = tiny_prior(kind="flow")
    shape = (200, prior.n_codes, prior.config.tokenizer_config.latent_width)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tokens[:, 0, 0] = 4.0
    prior.set_statistics(tokens)
    other = tokens[:3].clone()
    other[:, 0, 0] = 3.0
    values = prior.scale.standardise(other)
    assert values.abs().max() < 6
    torch.testing.assert_close(prior.scale.restore(values), other)
    torch.testing.assert_close(prior.scale.std.flatten()[1:], tokens.std(0).flatten()[1:])
