"""A converted prior computes what the published one does: logits or velocities, losses, samples with the same noise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evae.models.randomness_evae import CellStreams

from .conftest import CELLS

EXACT = {"rtol": 1e-5, "atol": 1e-5}
PERTURBED, TYPED = torch.arange(CELLS) % 3, torch.arange(CELLS) % 2
TIME = torch.linspace(0.05, 1, CELLS)
OVER = pytest.mark.parametrize("over_codes", [True, False], ids=["over codes", "over counts"], scope="class")
STEPS = 6


def choose(logits, uniform):
    """The category of every uniform number."""
    return (logits.softmax(-1).cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1).clamp_max(logits.shape[-1] - 1)


@OVER
class TestAutoregressive:
    @pytest.fixture(scope="class")
    def pair(self, over_codes, write_prior, converted):
        prior, folder = write_prior("autoregressive", over_codes)
        return prior, converted(folder)

    def test_logits_and_loss(self, pair, counts):
        theirs, ours = pair
        codes = ours.tokenizer.encode(counts)
        logits = theirs.autoregressive_logits(codes, theirs.condition(PERTURBED, TYPED))
        output = ours(None, PERTURBED, TYPED, codes=codes)
        torch.testing.assert_close(output.logits[..., :-1], logits, **EXACT)
        torch.testing.assert_close(output.loss, F.cross_entropy(logits.flatten(0, 1), codes.flatten()), **EXACT)

    def test_samples_with_the_same_noise(self, pair):
        theirs, ours = pair
        uniform = CellStreams(1, range(CELLS)).uniform(ours.n_codes)
        codes = torch.zeros(CELLS, ours.n_codes, dtype=torch.long)
        for place in range(ours.n_codes):
            logits = theirs.autoregressive_logits(codes, theirs.condition(PERTURBED, TYPED))
            codes[:, place] = choose(logits[:, place], uniform[:, place])
        assert torch.equal(ours.sample(PERTURBED, TYPED, generator=CellStreams(1, range(CELLS))), codes)


@pytest.mark.parametrize("sees_time", [True, False], ids=["mdlm", "radd"], scope="class")
@OVER
class TestMaskedDiffusion:
    @pytest.fixture(scope="class")
    def pair(self, over_codes, sees_time, write_prior, converted):
        prior, folder = write_prior("masked_diffusion", over_codes, sees_time=sees_time)
        return prior, converted(folder)

    def test_logits_and_loss(self, pair, counts):
        theirs, ours = pair
        codes = ours.tokenizer.encode(counts)
        masked = CellStreams(4, range(CELLS)).uniform(ours.n_codes) < TIME.unsqueeze(1)
        logits = theirs.denoised_logits(codes, masked, theirs.condition(PERTURBED, TYPED, TIME))
        output = ours(codes, PERTURBED, TYPED, time=TIME, masked=masked)
        torch.testing.assert_close(output.logits, logits, **EXACT)
        losses = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none") * masked
        torch.testing.assert_close(output.loss, (losses.sum(1) / TIME / ours.n_codes).mean(), **EXACT)

    def test_samples_with_the_same_noise(self, pair):
        theirs, ours = pair
        assert ours.config.sampling_steps == STEPS
        when, uniform = CellStreams(1, range(CELLS)).uniform(2, ours.n_codes).unbind(1)
        codes, masked = torch.zeros(CELLS, ours.n_codes, dtype=torch.long), torch.ones(CELLS, ours.n_codes).bool()
        for step in range(STEPS):
            time = torch.full((CELLS,), 1 - step / STEPS)
            logits = theirs.denoised_logits(codes, masked, theirs.condition(PERTURBED, TYPED, time))
            now = (when * STEPS).long() == step
            codes, masked = torch.where(now, choose(logits, uniform), codes), masked & ~now
        assert torch.equal(ours.sample(PERTURBED, TYPED, generator=CellStreams(1, range(CELLS))), codes)


@OVER
class TestFlow:
    @pytest.fixture(scope="class")
    def pair(self, over_codes, write_prior, converted):
        prior, folder = write_prior("flow_matching", over_codes)
        return prior, converted(folder)

    @staticmethod
    def velocity(theirs, z, time):
        squeezed = z if theirs.over_codes else z.squeeze(-1)
        found = theirs.velocity(squeezed, theirs.condition(PERTURBED, TYPED, time))
        return found if theirs.over_codes else found.unsqueeze(-1)

    def test_velocity_and_loss(self, pair, counts):
        theirs, ours = pair
        latents = ours.tokenizer.encode(counts)
        noise = CellStreams(4, range(CELLS)).normal(*latents.shape[1:])
        time = TIME.view(-1, 1, 1)
        velocity = self.velocity(theirs, (1 - time) * noise + time * latents, TIME)
        output = ours(latents, PERTURBED, TYPED, time=TIME, noise=noise)
        torch.testing.assert_close(output.velocity, velocity, **EXACT)
        torch.testing.assert_close(output.loss, ((velocity - latents + noise) ** 2).mean(), **EXACT)

    def test_samples_with_the_same_noise(self, pair):
        theirs, ours = pair
        width = ours.config.tokenizer_config.latent_width
        z = CellStreams(1, range(CELLS)).normal(ours.n_codes, width)
        for step in range(STEPS):
            now, then = (torch.full((CELLS,), s / STEPS) for s in (step, step + 1))
            first = self.velocity(theirs, z, now)
            z = z + (first + self.velocity(theirs, z + first / STEPS, then)) / 2 / STEPS
        torch.testing.assert_close(ours.sample(PERTURBED, TYPED, generator=CellStreams(1, range(CELLS))), z, **EXACT)


def test_the_flow_over_counts_reads_normalized_ones(write_prior, converted, counts, read_as):
    _, folder = write_prior("flow_matching", over_codes=False)
    encoded = converted(folder).tokenizer.encode(counts)
    torch.testing.assert_close(encoded.squeeze(-1), read_as("normalized"), **EXACT)


@pytest.mark.parametrize("function", ["mlp", "sinusoidal"])
def test_every_function_of_the_count(write_prior, converted, counts, function):
    theirs, folder = write_prior("masked_diffusion", over_codes=False, counts=function)
    ours = converted(folder)
    codes, masked = ours.tokenizer.encode(counts), torch.zeros(counts.shape, dtype=torch.bool)
    logits = theirs.denoised_logits(codes, masked, theirs.condition(PERTURBED, TYPED, TIME))
    output = ours(codes, PERTURBED, TYPED, time=TIME, masked=masked)
    torch.testing.assert_close(output.logits, logits, **EXACT)


def test_a_prior_over_learned_vectors(write_prior, converted, counts):
    theirs, folder = write_prior("autoregressive", vae="vq")
    ours = converted(folder)
    codes = ours.tokenizer.encode(counts)
    logits = theirs.autoregressive_logits(codes, theirs.condition(PERTURBED, TYPED))
    torch.testing.assert_close(ours(None, PERTURBED, TYPED, codes=codes).logits[..., :-1], logits, **EXACT)


def test_perturbations_by_feature_vectors(write_prior, converted, counts, tmp_path):
    """The control has none and is a vector of zeros in the run; a further name of the table can be predicted."""
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", genes=np.array(["STAT1", "NEW", "JAK2"]), emb=vectors)
    theirs, folder = write_prior("autoregressive", n_features=5)
    ours = converted(folder, features=tmp_path / "vectors.npz")
    rows = torch.from_numpy(np.stack([vectors[2], vectors[0], np.zeros(5, dtype=np.float32), vectors[1]]))
    codes, ids = ours.tokenizer.encode(counts), torch.arange(CELLS) % 4
    logits = theirs.autoregressive_logits(codes, theirs.condition(rows[ids], TYPED))
    torch.testing.assert_close(ours(None, ids, TYPED, codes=codes).logits[..., :-1], logits, **EXACT)


def test_the_nested_tokenizer_is_the_priors_own(write_prior, converted, counts, published):
    theirs, folder = write_prior("autoregressive")
    assert torch.equal(converted(folder).tokenizer.encode(counts), theirs.vae(published.bins_of(counts)).codes)
