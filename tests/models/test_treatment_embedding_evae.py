"""Priors that read kind, dose and time of a treatment, and the batch; those without are as they were."""

import pytest
import torch

from evae.models.contract_evae import EvaeError
from evae.models.treatment_embedding_evae import smooth

NAN = float("nan")
READS = {"perturbation_kinds": ["interference", "activation"], "dose_unit": "uM", "dose_range": [0.1, 10.0]}
READS |= {"time_range": [6.0, 24.0], "condition_on_batch": True, "n_batches": 2, "control_id": 0}
KINDS = pytest.mark.parametrize("kind", ["ar", "mdlm", "flow"])


def told(*rows: tuple[float, float, float]) -> torch.Tensor:
    """Treatments (cells, 1, 3) of kind, dose and hours."""
    return torch.tensor(rows).unsqueeze(1)


@torch.no_grad()
def vectors(prior, ids: list[int], treatments: torch.Tensor) -> torch.Tensor:
    return prior.condition.perturbation(len(ids), torch.tensor(ids), treatments)


def test_a_prior_without_treatments_has_no_weights_for_them(tiny_prior):
    assert not [name for name in tiny_prior().state_dict() if "treatment" in name or "batch" in name]
    with pytest.raises(EvaeError, match="without doses, times and kinds; give no treatments"):
        vectors(tiny_prior(), [1], told((NAN, 1.0, NAN)))
    with pytest.raises(EvaeError, match="without condition_on_batch"):
        tiny_prior().sample(n_cells=1, batch_ids=torch.tensor([0]))


def test_doses_times_and_kinds_are_told_apart_and_nothing_said_is_the_agent_alone(tiny_prior):
    prior = tiny_prior(**READS)
    cases = [(NAN, 1.0, NAN), (NAN, 1.1, NAN), (NAN, 10.0, NAN), (NAN, 1.0, 6.0), (NAN, 1.0, 24.0)]
    cases += [(0.0, NAN, NAN), (1.0, NAN, NAN), (NAN, NAN, NAN)]
    found = vectors(prior, [1] * len(cases), told(*cases))
    gaps = torch.cdist(found, found)
    assert (gaps[~torch.eye(len(cases), dtype=torch.bool)] > 1e-4).all()
    assert gaps[0, 1] < gaps[0, 2]  # near doses are near
    torch.testing.assert_close(found[-1], prior.condition.perturbation.weight[1])
    drugs = vectors(prior, [1, 1, 2, 2], told(*[(NAN, 0.1, NAN), (NAN, 10.0, NAN)] * 2))
    assert not torch.allclose(drugs[1] - drugs[0], drugs[3] - drugs[2], atol=1e-4)  # curves of their own


def test_beyond_the_doses_of_training_the_features_stay(tiny_prior):
    prior = tiny_prior(**READS)
    found = vectors(prior, [1] * 4, told((NAN, 10.0, 24.0), (NAN, 500.0, 99.0), (NAN, 0.1, 6.0), (NAN, 1e-9, 0.5)))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[3])
    torch.testing.assert_close(smooth(torch.tensor([0.1, 1.0, 10.0]), [0.1, 10.0])[:, 1], torch.tensor([-1.0, 0, 1]))


def test_a_combination_is_the_sum_of_its_treatments(tiny_prior):
    prior = tiny_prior(**READS)
    parts = torch.tensor([[[NAN, 1.0, 6.0], [0.0, NAN, NAN]], [[NAN, 5.0, 6.0], [NAN, NAN, NAN]]])
    with torch.no_grad():
        found = prior.condition.perturbation(2, torch.tensor([[1, 2], [1, -1]]), parts)
    single = vectors(prior, [1, 2, 1], told((NAN, 1.0, 6.0), (0.0, NAN, NAN), (NAN, 5.0, 6.0)))
    torch.testing.assert_close(found, torch.stack([single[0] + single[1], single[2]]))


@KINDS
def test_every_prior_learns_and_draws_with_treatments_and_batches(kind, tiny_prior, tmp_path):
    prior = tiny_prior(kind=kind, condition_dropout=0.2, **READS)
    given = {"perturbation_ids": torch.tensor([1, 2, 0]), "cell_type_ids": torch.tensor([0, 1, 0])}
    given |= {"treatments": told((NAN, 1.0, 6.0), (1.0, NAN, NAN), (NAN,) * 3), "batch_ids": torch.tensor([0, 1, 2])}
    given = {name: values.repeat(8, *[1] * (values.dim() - 1)) for name, values in given.items()}
    for guide in ("control", "perturbation", "all"):
        prior.sample(**given, guidance_scale=2.0, guide=guide)
    seed = {"generator": torch.Generator().manual_seed(0)}
    drawn = prior.sample(**given, **seed)
    prior.save_pretrained(tmp_path)
    loaded = type(prior).from_pretrained(tmp_path).eval()
    again = loaded.sample(**given, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, again)
    prior.train()
    prior.condition.dropout = prior.condition.batch_dropout = 0.0
    tokens = drawn if prior.training_input == "codes" else drawn.detach()
    prior(**{prior.training_input: tokens}, **given, **seed).loss.backward()
    learned = {name: weights.grad for name, weights in prior.named_parameters() if weights.grad is not None}
    for part in ("treatment.kind", "treatment.curves", "treatment.mixture", "treatment.down", "batch.weight"):
        assert any(part in name and bool(grad.abs().sum() > 0) for name, grad in learned.items()), part


@torch.no_grad()
def test_the_batch_changes_cells_an_unknown_one_is_the_null_and_dropout_puts_it_in(tiny_prior):
    prior = tiny_prior(**READS, batch_dropout=1.0)
    given = {"perturbation_ids": torch.tensor([0]), "cell_type_ids": torch.tensor([0]), "treatments": told((NAN,) * 3)}

    def condition(batch: list[int] | None) -> torch.Tensor:
        ids = None if batch is None else torch.tensor(batch)
        return prior.condition(1, **given, library_size=None, batch_ids=ids)

    assert not torch.allclose(condition([0]), condition([1]))
    torch.testing.assert_close(condition([2]), condition(None))
    prior.train()
    prior.condition.dropout = 0.0
    torch.testing.assert_close(condition([0]), condition([1]))


@pytest.mark.parametrize(
    ("treatments", "message"),
    [
        (None, "reads treatments of the shape"),
        (torch.zeros(1, 2, 3), "reads treatments of the shape"),
        (told((7.0, NAN, NAN)), "kind id 7 does not exist"),
    ],
)
def test_treatments_that_do_not_fit(tiny_prior, treatments, message):
    with pytest.raises(EvaeError, match=message):
        vectors(tiny_prior(**READS), [1], treatments)


@pytest.mark.parametrize("span", [[0.0, 1.0], [2.0, 1.0], [1.0]])
def test_ranges_that_are_none(tiny_prior, span):
    with pytest.raises(EvaeError, match="a range of doses or times"):
        tiny_prior(dose_range=span)
