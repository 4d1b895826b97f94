"""Labels in a tokenizer: auxiliary heads against their formulas, and a decoder that is told conditions."""

import pytest
import torch
import torch.nn.functional as F

from evae.models import EvaeModel
from evae.models.contract_evae import EvaeError

NAMES = {"perturbation_names": ["control", "A", "B"], "cell_type_names": ["T cell", "B cell"]}
HEADS = {"classification_weight": 0.5, "regression_weight": 2.0, "n_features": 5, **NAMES}
IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2])


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "gaussian"])
def test_auxiliary_heads_add_their_losses(tiny_tokenizer, cells, quantizer):
    model = tiny_tokenizer(quantizer=quantizer, kl_weight=0.0, **HEADS)
    model.auxiliary.targets[1:] = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))  # control has none
    output = model(cells, perturbation_ids=IDS)
    pooled, heads = model.embed(cells, kind="pooled"), model.auxiliary
    distances = [
        1 - F.cosine_similarity(heads.regressor(cell), heads.targets[i], dim=0)
        for cell, i in zip(pooled, IDS, strict=True)
        if i
    ]
    expected = 0.5 * F.cross_entropy(heads.classifier(pooled), IDS) + 2 * torch.stack(distances).mean()
    torch.testing.assert_close(output.auxiliary_loss, expected.detach())
    torch.testing.assert_close(output.loss, model(cells).loss + expected)


def test_they_teach_the_encoder_alone(tiny_tokenizer, cells):
    model = tiny_tokenizer(**HEADS).train()
    model.auxiliary.targets.normal_()
    gradient = torch.autograd.grad(
        model(cells, perturbation_ids=IDS).loss - model(cells, perturbation_ids=IDS).reconstruction_loss,
        model.encoder.latent_tokens,
        retain_graph=True,
    )[0]
    assert gradient.abs().max() > 0
    with pytest.raises(EvaeError, match="auxiliary head; give perturbation_ids"):
        model(cells)


TOLD = {
    "perturbation": ({"perturbation_ids": IDS}, "perturbation_ids"),
    "cell-type": ({"cell_type_ids": IDS % 2}, "cell_type_ids"),
    "both": ({"perturbation_ids": IDS, "cell_type_ids": IDS % 2}, "perturbation_ids"),
}


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("decoder", ["attention", "mlp"])
def test_a_decoder_that_is_told_labels(tiny_tokenizer, cells, decoder, told, tmp_path):
    labels, first = TOLD[told]
    model = tiny_tokenizer(decoder=decoder, decoder_conditions=told, condition_on_library=True, **NAMES)
    codes, library = model.encode(cells), cells.sum(1)
    codes[:] = codes[:1]
    at_start = model.mean_counts(codes, torch.full_like(library, 60.0), **labels)
    torch.testing.assert_close(at_start, at_start[:1].expand_as(at_start))  # no label says anything yet
    for table in model.conditions.children():
        torch.nn.init.normal_(table.weight)
    model.save_pretrained(tmp_path)
    model = EvaeModel.from_pretrained(tmp_path)
    means = model.mean_counts(codes, torch.full_like(library, 60.0), **labels)
    torch.testing.assert_close(means[1], means[3])  # of the same labels
    assert (means[0] - means[1]).abs().max() > 1e-3
    for call in (lambda: model.decode(codes, library), lambda: model(cells)):
        with pytest.raises(EvaeError, match=f"give {first}"):
            call()


def test_a_prior_hands_the_labels_to_the_decoder(tiny_prior):
    prior = tiny_prior(tokenizer={"decoder_conditions": "cell-type", "head": "mse", **NAMES})
    torch.nn.init.normal_(prior.tokenizer.conditions.cell_type.weight, std=3.0)
    asked = {"perturbation_ids": torch.zeros(4, dtype=torch.long), "library_size": torch.full((4,), 60.0)}
    drawn = [
        prior.sample_cells(**asked, decoder_cell_type_ids=torch.full((4,), i), generator=torch.manual_seed(0))
        for i in (0, 1)
    ]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    with pytest.raises(EvaeError, match="told the cell type"):
        prior.sample_cells(**asked)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decoder_conditions": "batch"}, "decoder_conditions 'batch' does not exist"),
        ({"decoder_conditions": "perturbation"}, "needs perturbation_names"),
        ({"classification_weight": 1.0}, "need perturbation_names"),
        ({"regression_weight": 1.0, **NAMES}, "set perturbation_features"),
        ({"classification_weight": -1.0}, "classification_weight is -1.0"),
        ({"count_embedding": "embedding"}, "needs count_input: bins"),
        ({"count_embedding": "sinusoidal", "encoder": "mlp"}, "needs encoder: attention"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_tokenizer, fields, said):
    with pytest.raises(EvaeError, match=said):
        tiny_tokenizer(**fields)
