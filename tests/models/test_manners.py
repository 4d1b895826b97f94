"""Manners that every model of transformers has: outputs as tuples, a configuration that knows its text part."""

import pytest
import torch

from evae.models import EvaeConfig

INPUTS = {
    "ar": {"codes": torch.zeros(2, 4, dtype=torch.long)},
    "mdlm": {"codes": torch.zeros(2, 4, dtype=torch.long), "time": torch.ones(2)},
    "flow": {"latents": torch.zeros(2, 4, 3), "time": torch.ones(2), "noise": torch.ones(2, 4, 3)},
}
CONDITIONS = {
    "perturbation_ids": torch.tensor([0, 1]), "cell_type_ids": torch.tensor([0, 1]),
    "library_size": torch.tensor([40.0, 60.0]),
}  # fmt: skip


def check_tuple(model, **inputs):
    inputs["generator"] = torch.Generator().manual_seed(0)
    as_dict = model(**inputs).to_tuple()
    inputs["generator"] = torch.Generator().manual_seed(0)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(as_dict) > 1
    torch.testing.assert_close(as_tuple[0], as_dict[0])


def test_the_tokenizer_gives_a_tuple_where_it_is_asked_for(tiny_tokenizer, cells):
    check_tuple(tiny_tokenizer(), counts=cells)


@pytest.mark.parametrize("kind", INPUTS)
def test_a_prior_gives_a_tuple_where_it_is_asked_for(kind, tiny_prior):
    check_tuple(tiny_prior(kind=kind), **INPUTS[kind], **CONDITIONS)


def test_scores_do_not_depend_on_how_outputs_are_given(tiny_prior):
    prior = tiny_prior()
    expected = prior.score(INPUTS["ar"]["codes"], **CONDITIONS)
    prior.config.return_dict = False
    torch.testing.assert_close(prior.score(INPUTS["ar"]["codes"], **CONDITIONS), expected)


def test_the_decoder_of_a_tokenizer_is_no_configuration():
    config = EvaeConfig(n_genes=3, decoder="mlp")
    assert config.get_text_config() is config
    assert config.get_text_config(decoder=True) is config
