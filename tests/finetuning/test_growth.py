"""A grown prior: what it knew keeps its ids, rows and predictions; new names begin as unknown ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evae.data.format import DatasetInfo
from evae.data.streaming.onto import Onto
from evae.finetuning.growth import grown_prior, grown_processor, vocabulary_of
from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeConfig, EvaeProcessor
from evae.models.contract_evae import EvaeError
from evae.models.treatments_evae import readings
from evae.training.codes import EncodedCells
from evae.training.conditions import check_learnable
from evae.training.controls import known_effects
from evae.training.library import extended


@pytest.fixture
def prior():
    torch.manual_seed(0)
    tokenizer = EvaeConfig(
        n_genes=10, hidden_size=8, num_attention_heads=2, intermediate_size=8, n_latents=3, fsq_levels=[4, 4],
        encoder_layers=1, decoder_layers=1,
    )  # fmt: skip
    config = EvaeARConfig(
        tokenizer_config=tokenizer, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1,
        n_perturbations=3, n_cell_types=2, source_cells=1, condition_on_effect=True, n_effects=3, control_id=0,
    )  # fmt: skip
    prior = EvaeARForCausalLM(config).eval()
    with torch.no_grad():
        for weights in prior.parameters():
            weights.copy_(torch.randn_like(weights) / 4)
    table = torch.randn(3, 3, prior.condition.effect.width)
    table[0, 2] = torch.nan
    prior.condition.effect.set_table(table)
    return prior


def processor(perturbations, cell_types):
    return EvaeProcessor([f"G{i}" for i in range(10)], None, perturbations, cell_types, control="ctrl")


def logits(prior, perturbation, cell_type, effect):
    torch.manual_seed(1)
    return prior(
        codes=torch.randint(0, 16, (1, 3)), perturbation_ids=torch.tensor([perturbation]),
        cell_type_ids=torch.tensor([cell_type]), library_size=torch.tensor([50.0]), effect=effect,
        source_latents=torch.randn(1, 1, 3, 2), source_library_size=torch.tensor([[40.0]]),
    ).logits  # fmt: skip


@torch.no_grad()
def test_old_names_are_predicted_as_before_and_new_ones_as_unknown(prior):
    grown = grown_prior(prior, processor(["ctrl", "A", "B", "C", "D"], ["T", "U", "V"]))
    assert (grown.config.n_perturbations, grown.config.n_cell_types, grown.config.n_effects) == (5, 3, 5)
    effect = torch.randn(1, prior.condition.effect.width)
    for old in range(3):
        torch.testing.assert_close(logits(grown, old, 1, effect), logits(prior, old, 1, effect), rtol=0, atol=0)
    for new in (3, 4, 5):  # 5 is the null's id now, 3 was
        torch.testing.assert_close(logits(grown, new, 2, effect), logits(prior, 3, 2, effect), rtol=0, atol=0)
    before, after = prior.condition.effect.effects(), grown.condition.effect.effects()
    torch.testing.assert_close(after[:2, :3], before[:2], equal_nan=True)
    torch.testing.assert_close(after[2:, :3], before[2:].expand(2, -1, -1), equal_nan=True)  # V, and all cell types
    assert after[:, 3:].isnan().all()


@torch.no_grad()
def test_new_effects_fill_what_was_unknown_and_leave_the_rest(prior):
    effect = prior.condition.effect
    before, scale = effect.effects(), effect.scale.clone()
    new = torch.full_like(before, 7.0)
    new[0, 1] = torch.nan
    effect.add_to_table(new)
    known = ~before.isnan()
    assert torch.equal(effect.effects()[known], before[known])
    assert (effect.effects()[0, 2] == 7).all()
    assert torch.equal(effect.scale, scale)


def test_a_prior_without_nulls_begins_new_names_at_the_mean(prior):
    prior.config.condition_dropout = 0.0
    grown = grown_prior(prior, processor(["ctrl", "A", "B", "C"], ["T", "U"]))
    rows = prior.condition.perturbation.weight
    torch.testing.assert_close(grown.condition.perturbation.weight[3], rows[:-1].mean(0))


class Info:
    perturbations = ["ctrl", "A", "B", "B+C", "D"]  # noqa: RUF012
    cell_types = ["T", "U", "V"]  # noqa: RUF012
    statistics = {"cell_counts": {"train": {"U": {"D": 3, "A": 0}, "V": {"ctrl": 1}}}}  # noqa: RUF012


def test_the_processor_keeps_its_ids_and_adds_the_parts_of_new_combinations():
    former = processor(["ctrl", "A", "B", "A+B"], ["T"])
    former.perturbation_units, former.training_pairs = ["ctrl", "A", "B"], {"T": ["A", "ctrl"]}
    former.calibration = {"pairs": 12}
    grown = grown_processor(former, Info)
    assert grown.calibration is None  # of other weights
    assert grown.perturbation_ids(["A", "B"]).tolist() == former.perturbation_ids(["A", "B"]).tolist()
    assert grown.known_units() == ["ctrl", "A", "B", "C", "D"]
    np.testing.assert_array_equal(grown.perturbation_ids(["B+C"]), [[2, 3]])
    assert grown.training_pairs == {"T": ["A", "ctrl"], "U": ["D"], "V": ["ctrl"]}
    assert former.known_units() == ["ctrl", "A", "B"]  # the checkpoint's stays


def test_features_of_new_perturbations_cannot_be_made_up(prior):
    prior.config.n_perturbation_features = 2
    with pytest.raises(EvaeError, match="m knows perturbations by feature vectors, and has none of 'C'"):
        vocabulary_of(prior, processor(["ctrl", "A", "B", "C"], ["T"]), "m")


def test_library_sizes_of_old_names_stay_and_new_ones_are_on_the_same_scale():
    former = {
        "mean": 0.1, "perturbations": {"A": 0.2}, "cell_types": {"T": 0.3}, "lowest": 5.0, "highest": 6.0,
        "best": "predicted",
    }  # fmt: skip
    new = {
        "mean": 0.4, "perturbations": {"A": 9.0, "B": -0.1}, "cell_types": {"T": 9.0, "U": 0.0}, "lowest": 4.0,
        "highest": 5.5, "best": "controls",
    }  # fmt: skip
    found = extended(former, new)
    assert found["perturbations"]["A"] == 0.2
    assert found["mean"] + found["perturbations"]["B"] == pytest.approx(new["mean"] + new["perturbations"]["B"])
    assert (found["cell_types"], found["best"]) == ({"T": 0.3, "U": 0.0}, "predicted")
    assert (found["lowest"], found["highest"]) == (4.0, 6.0)
    assert extended(None, new) == new


def test_cells_of_one_type_are_told_their_own_effect_where_no_other_type_has_one():
    rng = np.random.default_rng(0)
    n = 400
    cells = EncodedCells(
        codes=np.zeros((n, 1), dtype=np.uint16), perturbation_ids=np.repeat([0, 1], n // 2).astype(np.int32),
        cell_type_ids=np.zeros(n, dtype=np.int32), library_size=np.ones(n, dtype=np.float32),
        latents=(rng.normal(size=(n, 1, 2)) + np.repeat([0, 3], n // 2)[:, None, None]).astype(np.float32),
    )  # fmt: skip
    table, told = known_effects(cells, 2, 2, 0, seed=0)
    assert np.isnan(table[0, 1]).all()
    table, told = known_effects(cells, 2, 2, 0, seed=0, own=True)
    np.testing.assert_allclose(table[0, 1], table[-1, 1])
    np.testing.assert_allclose(table[0, 1], 3, atol=0.3)
    np.testing.assert_allclose(told[0, 1], table[0, 1])


def doses(*labels):
    """Treatments of labels such as `A 1 uM`."""
    return {label: list(readings(label))[-1] for label in labels}


@torch.no_grad()
def test_new_doses_agents_and_kinds_grow_and_old_treatments_are_predicted_as_before():
    torch.manual_seed(0)
    former = EvaeProcessor(
        [f"G{i}" for i in range(10)], None, ["ctrl", "A 1 uM", "S interference"], ["T"], ["ctrl", "A", "S"],
        control="ctrl", treatments=[t.to_dict() for t in doses("A 1 uM", "S interference").values()],
    )  # fmt: skip
    tokenizer = EvaeConfig(n_genes=10, hidden_size=8, num_attention_heads=2, intermediate_size=8, n_latents=3)
    config = EvaeARConfig(
        tokenizer_config=tokenizer, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1,
        n_perturbations=3, n_cell_types=1, perturbation_kinds=["interference"], dose_unit="uM", dose_range=[1.0, 1.0],
    )  # fmt: skip
    prior = EvaeARForCausalLM(config).eval()
    statistics = {"cell_counts": {"train": {"T": {"A 10 uM": 5, "S activation": 5}}}}
    labels = ["ctrl", "A 1 uM", "S interference", "A 10 uM", "B 2 uM", "S activation"]
    new = DatasetInfo([], [], ["ctrl", *labels[3:]], ["T"], "ctrl", statistics, {}, {}, doses(*labels[3:]))
    info = Onto(former, "the checkpoint").grown(new)
    assert info.perturbations == labels
    check_learnable(info, {*former.known_units(), "B"}, "+", ["interference"])
    with pytest.raises(EvaeError, match=r"without a training cell .* 1 \(S interference\)"):
        check_learnable(info, {*former.known_units(), "B"}, "+")
    plain = EvaeProcessor(former.genes, None, ["ctrl"], ["T"], control="ctrl")
    assert not Onto(plain, "one without doses").grown(new).treatments  # then labels are names as any other
    grown_names = grown_processor(former, info)
    assert grown_names.perturbation_units == ["ctrl", "A", "S", "B"]
    grown = grown_prior(prior, grown_names)
    assert grown.config.perturbation_kinds == ["interference", "activation"]
    old = ["A 1 uM", "S interference", "ctrl"]
    table, before = grown.condition.perturbation, prior.condition.perturbation
    expected = before(3, former.perturbation_ids(old), former.treatments_of(old))
    torch.testing.assert_close(table(3, grown_names.perturbation_ids(old), grown_names.treatments_of(old)), expected)
    with pytest.raises(EvaeError, match="knows doses in uM, but there is 'C 1 ng/mL'"):
        grown_processor(former, replace(info, treatments=doses("C 1 ng/mL")))
    with pytest.raises(EvaeError, match="the checkpoint knows no times, but there is 'A 1 uM 6 h'"):
        grown_processor(former, replace(info, treatments=doses("A 1 uM 6 h")))
