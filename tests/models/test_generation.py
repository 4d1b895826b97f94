"""Writing codes: `generate`, `sample_codes` and `sample_cells` draw what the prior says, in order."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from evae.models import EvaeARForCausalLM, EvaeError
from evae.models.randomness_evae import CellStreams

CONDITIONS = {"perturbation_ids": torch.tensor([0, 2, 1]), "cell_type_ids": torch.tensor([1, 0, 1])}


@pytest.fixture
def toy(tiny_prior):
    """A prior over 3 x 3 = 9 sequences of two codes, far from uniform, and their probabilities by hand."""
    prior = tiny_prior(tokenizer={"n_latents": 2, "fsq_levels": [3]})
    with torch.no_grad():
        prior.lm_head.weight.mul_(3)
    sequences = torch.tensor(list(itertools.product(range(3), repeat=2)))
    ids = {"perturbation_ids": torch.full((9,), 1), "cell_type_ids": torch.full((9,), 0)}
    log_p = prior(codes=sequences, **ids).logits.log_softmax(-1).gather(2, sequences.unsqueeze(-1)).sum((1, 2))
    return prior, log_p.detach().double().exp().numpy()


def agrees(codes, probabilities):
    assert codes.shape[1] == 2
    observed = np.bincount((codes[:, 0] * 3 + codes[:, 1]).numpy(), minlength=9)
    return stats.chisquare(observed, probabilities / probabilities.sum() * len(codes)).pvalue > 1e-4


class TestProbabilities:
    n = 6_000

    def ids(self, perturbation=1):
        return {
            "perturbation_ids": torch.full((self.n,), perturbation),
            "cell_type_ids": torch.zeros(self.n, dtype=torch.long),
        }

    def test_sample_codes_and_generate_follow_the_model(self, toy):
        prior, probabilities = toy
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert probabilities.max() > 2 / 9  # a toy that uniform draws would not pass
        codes = prior.sample_codes(**self.ids(), generator=torch.Generator().manual_seed(0))
        assert agrees(codes, probabilities)
        assert not agrees(prior.sample_codes(**self.ids(0)), probabilities)
        torch.manual_seed(0)
        assert agrees(prior.generate(**self.ids()), probabilities)
        assert agrees(prior.generate(**self.ids(), use_cache=False), probabilities)

    def test_beam_search_finds_the_most_probable(self, toy):
        prior, probabilities = toy
        ids = {"perturbation_ids": torch.tensor([1, 1]), "cell_type_ids": torch.tensor([0, 0])}
        best = prior.generate(**ids, num_beams=3, do_sample=False)
        most = int(probabilities.argmax())
        assert best.tolist() == [[most // 3, most % 3]] * 2
        assert prior.generate(**ids, repetition_penalty=1.5).max() < 3  # looks up the logit of every id, BOS too

    @pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), "hot"])
    def test_a_temperature_that_is_none_is_refused(self, toy, temperature):
        with pytest.raises(EvaeError, match="give a number above 0"):
            toy[0].sample_codes(**self.ids(), temperature=temperature)

    @pytest.mark.parametrize("one", [np.float32(1), np.int64(1)])
    def test_a_temperature_may_be_a_number_of_numpy(self, toy, one):
        drawn = [
            toy[0].sample_codes(**self.ids(), temperature=t, generator=CellStreams(0, range(self.n))) for t in (1, one)
        ]
        assert torch.equal(*drawn)

    def test_the_configured_temperature_is_taken(self, toy):
        prior, _ = toy
        asked = prior.sample_codes(**self.ids(), temperature=0.5, generator=CellStreams(0, range(self.n)))
        prior.config.sampling_temperature = 0.5
        try:
            assert torch.equal(prior.sample_codes(**self.ids(), generator=CellStreams(0, range(self.n))), asked)
        finally:
            prior.config.sampling_temperature = 1.0

    def test_temperature(self, toy):
        prior, _ = toy
        cold = prior.sample_codes(**self.ids(), temperature=1e-4)
        greedy = prior.generate(**self.ids(), do_sample=False)
        assert torch.equal(cold, greedy)
        hot = prior.sample_codes(**self.ids(), temperature=1e6, generator=torch.Generator().manual_seed(0))
        assert agrees(hot, np.full(9, 1 / 9))

    def test_large_vocabulary_is_not_truncated(self, tiny_prior):
        """transformers' default keeps the 50 likeliest tokens; all 512 codes must stay within reach."""
        prior = tiny_prior(tokenizer={"fsq_levels": [8, 8, 8], "n_latents": 1})
        with torch.no_grad():
            prior.lm_head.weight.zero_()
        torch.manual_seed(0)
        codes = prior.generate(perturbation_ids=torch.zeros(8_000, dtype=torch.long))
        assert codes.unique().numel() == 512


class TestGenerate:
    def test_exactly_one_code_sequence_a_cell(self, tiny_prior):
        prior = tiny_prior()
        for codes in (
            prior.generate(**CONDITIONS),
            prior.generate(torch.full((3, 1), 15), **CONDITIONS),
            prior.sample_codes(**CONDITIONS),
        ):
            assert codes.shape == (3, 4)
            assert codes.dtype == torch.int64
            assert codes.min() >= 0
            assert codes.max() < 15
        assert prior.generate().shape == prior.sample_codes().shape == (1, 4)
        assert prior.sample_codes(n_cells=5).shape == (5, 4)

    def test_num_return_sequences_repeats_conditions_in_order(self, tiny_prior):
        prior = tiny_prior()
        greedy = prior.generate(**CONDITIONS, do_sample=False)
        assert len(greedy.unique(dim=0)) == 3  # the conditions are told apart
        for cell, codes in enumerate(greedy):
            alone = {name: ids[cell : cell + 1] for name, ids in CONDITIONS.items()}
            assert torch.equal(prior.generate(**alone, do_sample=False)[0], codes)
        # so cold that it is greedy, but drawn: every condition's cells stand together
        codes = prior.generate(**CONDITIONS, num_return_sequences=3, temperature=1e-4)
        assert torch.equal(codes, greedy.repeat_interleave(3, dim=0))

    def test_cache_changes_nothing(self, tiny_prior):
        prior = tiny_prior()
        with_cache, without = (prior.generate(**CONDITIONS, use_cache=use, do_sample=False) for use in (True, False))
        assert torch.equal(with_cache, without)

    def test_continues_a_prefix(self, tiny_prior):
        prior = tiny_prior()
        greedy = prior.generate(**CONDITIONS, do_sample=False)
        prefix = torch.cat([torch.full((3, 1), 15), greedy[:, :2]], dim=1)
        assert torch.equal(prior.generate(prefix, **CONDITIONS, do_sample=False), greedy)

    def test_dictionary_output(self, tiny_prior):
        output = tiny_prior().generate(**CONDITIONS, return_dict_in_generate=True, output_scores=True)
        assert output.sequences.shape == (3, 4)
        assert len(output.scores) == 4

    @pytest.mark.parametrize("option", [{"max_new_tokens": 5}, {"max_length": 6}, {"max_new_tokens": 50}])
    def test_too_long_raises(self, option, tiny_prior):
        with pytest.raises(EvaeError, match="a cell has 4 codes"):
            tiny_prior().generate(**CONDITIONS, **option)

    def test_shorter_is_allowed(self, tiny_prior):
        assert tiny_prior().generate(**CONDITIONS, max_new_tokens=2).shape == (3, 2)
        assert tiny_prior().generate(**CONDITIONS, max_length=4).shape == (3, 3)

    def test_settings_survive_loading_and_nothing_is_printed(self, tiny_prior, tmp_path, capfd, caplog):
        from transformers.utils import logging

        logging.enable_propagation()
        tiny_prior().save_pretrained(tmp_path)
        prior = EvaeARForCausalLM.from_pretrained(tmp_path)
        capfd.readouterr(), caplog.clear()
        for settings in (prior.generation_config, tiny_prior().generation_config):
            assert settings.do_sample is True
            assert settings.top_k == 0
            assert settings.top_p == 1.0
            assert settings.eos_token_id is None
            assert settings.bos_token_id == 15
            assert settings.max_new_tokens == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prior.generate(**CONDITIONS, num_return_sequences=2)
            prior.sample_cells(**CONDITIONS, library_size=torch.full((3,), 60.0))
        logging.disable_propagation()
        assert not caplog.records
        assert capfd.readouterr() == ("", "")


class TestSampleCells:
    def test_the_generator_decides(self, tiny_prior):
        for head in ("ce-quantile", "nb"):
            prior = tiny_prior(tokenizer={"head": head})
            library = torch.full((3,), 60.0)
            draw = []
            for seed in (1, 1, 2):
                torch.manual_seed(100 + len(draw))  # the global state must not matter
                generator = torch.Generator().manual_seed(seed)
                draw.append(prior.sample_cells(**CONDITIONS, library_size=library, generator=generator))
            assert draw[0].shape == (3, 30)
            assert torch.equal(draw[0], draw[1])
            assert not torch.equal(draw[0], draw[2])

    def test_counts_are_those_of_the_codes_drawn(self, tiny_prior):
        prior = tiny_prior(tokenizer={"head": "mse"})  # its sample is its mean
        library = torch.tensor([30.0, 60.0, 120.0])
        cells = prior.sample_cells(**CONDITIONS, library_size=library, generator=torch.Generator().manual_seed(3))
        codes = prior.sample_codes(**CONDITIONS, generator=torch.Generator().manual_seed(3))
        assert torch.equal(cells, prior.tokenizer.mean_counts(codes, library))

    def test_library_size_is_needed_and_followed(self, tiny_prior):
        with pytest.raises(EvaeError, match="give library_size"):
            tiny_prior().sample_cells(**CONDITIONS)
        prior = tiny_prior(tokenizer={"head": "nb"})
        torch.nn.init.constant_(prior.tokenizer.head.log_dispersion, 20.0)
        library = torch.tensor([100.0, 1000.0, 10_000.0])
        drawn = prior.sample_cells(library_size=library).sum(1)
        torch.testing.assert_close(drawn, library, rtol=0.5, atol=0)
