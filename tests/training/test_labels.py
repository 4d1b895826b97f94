"""A tokenizer that uses labels: trained on the labels of training cells, and asked by name."""

import json

import numpy as np
import pytest
import torch

import evae
from evae.models import EvaeModel
from evae.models.contract_evae import EvaeError
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

TOLD = ["model.decoder_conditions=both", "model.classification_weight=0.5", "model.regression_weight=1.0"]


@pytest.fixture(scope="module")
def features(screen, tmp_path_factory):
    """Vectors of all perturbations but the last and the control."""
    names = [p for p in screen.obs["perturbation"].cat.categories if p != "control"][:-1]
    path = tmp_path_factory.mktemp("features") / "features.csv"
    rows = np.random.default_rng(0).normal(size=(len(names), 6))
    lines = [",".join([name, *map(str, row)]) for name, row in zip(names, rows, strict=True)]
    path.write_text("name,a,b,c,d,e,f\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(screen_dataset, small_settings, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("told") / "tokenizer"
    places = [f"dataset={screen_dataset}", f"output_dir={out}", f"perturbation_features={features}"]
    return train_tokenizer(load_settings("tokenizer", None, [*small_settings["tokenizer"], *places, *TOLD]))


def test_heads_and_conditions_are_trained_saved_and_loaded(trained, features, screen):
    model = EvaeModel.from_pretrained(trained)
    names = model.config.perturbation_names
    assert sorted(names) == sorted(screen.obs["perturbation"].cat.categories)
    given = {line.split(",")[0] for line in features.read_text().splitlines()[1:]}
    assert {name for name, row in zip(names, model.auxiliary.targets, strict=True) if row.any()} == given
    assert (model.conditions.perturbation.weight.abs().sum(1) > 0).all()
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "validation_loss" in line][-1]
    assert last["validation_loss"] > last["validation_reconstruction_loss"] + 0.5  # the heads' loss counts


def test_cells_are_drawn_for_their_labels(trained, screen):
    pipe = evae.pipeline(trained, device="cpu")
    for table in pipe.checkpoint.model.conditions.children():
        torch.nn.init.normal_(table.weight)
    cells = screen[:40].copy()
    renamed = cells.copy()
    renamed.obs = renamed.obs.rename(columns={"perturbation": "gene", "cell_type": "kind"})
    found = pipe.reconstruct(cells, progress=False)
    same = pipe.reconstruct(renamed, perturbation_key="gene", cell_type_key="kind", progress=False)
    np.testing.assert_array_equal(found.X.toarray(), same.X.toarray())
    other = cells.copy()
    other.obs["perturbation"] = "control"
    assert (pipe.reconstruct(other, progress=False).X != found.X).nnz
    with pytest.raises(EvaeError, match="no obs column 'perturbation'; name theirs as perturbation_key"):
        pipe.reconstruct(renamed, progress=False)
    other.obs["cell_type"] = "neuron"
    with pytest.raises(EvaeError, match="no cell of its training is labelled 'neuron'"):
        pipe.reconstruct(other, progress=False)


def test_a_prior_over_it_predicts_what_training_saw(
    trained, screen, screen_dataset, small_settings, features, tmp_path
):
    places = [f"dataset={screen_dataset}", f"tokenizer={trained}", f"output_dir={tmp_path / 'prior'}"]
    places += [f"perturbation_features={features}"]
    pipe = evae.pipeline(train_prior(load_settings("prior", None, [*small_settings["prior"], *places])), device="cpu")
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    held_out = next(p for p in screen.obs["perturbation"].cat.categories if p != "control")
    predicted = pipe.predict(controls, held_out, n_cells=6, progress=False)  # the pair was never seen, both labels were
    assert predicted.X.sum() > 0
    table = features.read_text().replace(held_out, "NEW1")
    features.with_name("more.csv").write_text(table)
    places[-1] = f"perturbation_features={features.with_name('more.csv')}"
    places[2] = f"output_dir={tmp_path / 'more'}"
    pipe = evae.pipeline(train_prior(load_settings("prior", None, [*small_settings["prior"], *places])), device="cpu")
    with pytest.raises(
        EvaeError, match="told the perturbation of a cell, and no cell of its training is labelled 'NEW1'"
    ):
        pipe.predict(controls, "NEW1", n_cells=6, progress=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.regression_weight=1.0"], "set perturbation_features"),
        (["perturbation_features={features}"], "with model.regression_weight above 0 only"),
        (["model.perturbation_names=[a]"], "taken from the dataset"),
    ],
)
def test_settings_that_do_not_fit(screen_dataset, small_settings, features, tmp_path, settings, said):
    values = [text.format(features=features) for text in settings]
    values += [f"dataset={screen_dataset}", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(EvaeError, match=said):
        train_tokenizer(load_settings("tokenizer", None, [*small_settings["tokenizer"], *values]))
    assert not (tmp_path / "run").exists()
