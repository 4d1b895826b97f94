"""The model card of every intended checkpoint: valid for the Hub, and its numbers are the published ones or none."""

import re
import shlex

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

import evae
from evae.hub.model_card import NOT_MEASURED, NOT_PUBLISHED, Described, card_names, model_card, what_it_reads
from evae.training.settings import config_path, load_settings

CONFIGS = {
    config.model_type: config
    for config in (evae.EvaeConfig, evae.EvaeARConfig, evae.EvaeMDLMConfig, evae.EvaeFlowConfig)
}

PUBLISHED = {  # from the paper's table: card -> metric -> value of the same kind, of scLDM
    "replogle-tokenizer": {"Enrichment AUC ↑": ("0.758", "about 0.80")},
    "replogle-ar": {"W2 ↓": ("7.87", "11.29"), "MMD² ↓": ("0.0087", "0.20")},
    "parse1m-tokenizer": {
        "Enrichment AUC ↑": ("0.792", "about 0.80"),
        "Selectivity AUC ↑": ("0.750", NOT_PUBLISHED),
    },
    "parse1m-ar": {"MMD² ↓": ("0.0041", "0.027"), "FD ↓": ("1.84", "18.14")},
    "parse1m-flow": {"W2 ↓": ("11.89", "12.46")},
}


def table(text: str) -> dict[str, list[str]]:
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if re.match(r"\| [^|]+ [↓↑] ", line)]
    return {row[0]: row[1:] for row in rows}


def test_there_is_one_for_every_intended_checkpoint():
    models = ("tokenizer", "ar", "mdlm", "flow")
    assert card_names() == [f"{data}-{model}" for data in ("replogle", "parse1m") for model in models]


@pytest.mark.parametrize("name", card_names())
def test_card_is_valid_and_complete(name):
    text = model_card(f"evae/{name}", name, commits={f"evae/{name.split('-')[0]}": None})
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.library_name == "evae"
    assert card.data.pipeline_tag in ("feature-extraction", "other")
    assert card.data.datasets == [f"evae/{name.split('-')[0]}"]
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    wanted = ["Use", "Intended use", "Limits", "Training data", "Training", "Evaluation", "Licence and citation"]
    assert headings == wanted
    assert "$" not in text
    assert text.count(f'"evae/{name}"') == 3  # with the package, and model and processor without it
    assert "trust_remote_code=True" in text
    assert "evae train tokenizer" in text if name.endswith("tokenizer") else "evae train prior" in text
    assert "10.64898/2026.06.15.732063" in text
    assert "Bhattacharya, Sanjukta and Gensbigler, Christian" in text


@pytest.mark.parametrize("name", card_names())
def test_numbers_are_published_or_called_missing(name):
    rows = table(model_card(f"evae/{name}", name))
    tokenizer = name.endswith("tokenizer")
    assert set(rows) == ({"Enrichment AUC ↑", "Selectivity AUC ↑"} if tokenizer else {"W2 ↓", "MMD² ↓", "FD ↓"})
    for metric, (own, same_kind, scldm) in rows.items():
        assert own == NOT_MEASURED
        published = PUBLISHED.get(name, {}).get(metric)
        assert same_kind == (published[0] if published else NOT_PUBLISHED)
        if published:
            assert scldm == published[1]


@pytest.mark.parametrize("name", card_names())
def test_recipe_is_one_that_the_command_line_takes(name):
    """Settings that exist, for a tokenizer that this prior can stand on."""
    block = re.findall(r"```bash\n(.*?)```", model_card(f"evae/{name}", name), flags=re.DOTALL)[0]
    lines = [shlex.split(line) for line in block.splitlines()]
    trainings = [words[2:] for words in lines if words[:2] == ["evae", "train"]]
    loaded = {}
    for stage, _, preset, *overrides in trainings:
        settings = load_settings(stage, config_path(preset, stage), overrides)
        kind = settings.model_type if stage == "prior" else "evae"
        loaded[stage] = CONFIGS[kind](**settings.model, **({"tokenizer_config": loaded["tokenizer"]} if loaded else {}))
    assert list(loaded) == (["tokenizer"] if name.endswith("tokenizer") else ["tokenizer", "prior"])
    others = ["prepare", "predict", "evaluate"] if "prior" in loaded else ["prepare"]
    assert [words[1] for words in lines if words[1] != "train"] == others


def test_numbers_are_what_the_hub_reads(tmp_path):
    """Of the model alone, and only those that are defined."""
    row = {"group": "robust", "level": "pooled", "system": "model", "metric": "fd", "value": 1.25}
    others = [row | {"system": "control copy", "value": 9.0}, row | {"metric": "w2", "value": None}]
    text = model_card("evae/replogle-ar", "replogle-ar", result={"summary": [row, *others]})
    (tmp_path / "README.md").write_text(text)
    front = metadata_load(tmp_path / "README.md")
    name, (found,) = model_index_to_eval_results(front["model-index"])
    assert (name, found.dataset_type, found.dataset_config) == ("replogle-ar", "own", "robust")
    assert (found.metric_type, found.metric_name, found.metric_value) == ("fd", "FD (robust)", 1.25)
    assert "model-index" not in ModelCard(model_card("evae/replogle-ar", "replogle-ar")).content


def test_a_tokenizer_on_the_hub_is_the_base_model():
    described = Described("evae_ar", "Small.", load_settings_of("me/tokenizer"))
    card = ModelCard(model_card("me/prior", described=described)).data
    assert card.base_model == "me/tokenizer"
    described = Described("evae_ar", "Small.", load_settings_of("tokenizer"))
    assert ModelCard(model_card("me/prior", described=described)).data.base_model is None


def load_settings_of(tokenizer):
    numbers = {"max_steps": 1, "batch_size": 1, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}
    return {**numbers, "seed": 0, "dataset": "screen", "tokenizer": tokenizer}


def test_card_without_facts_needs_no_invention(trained_prior):
    with pytest.raises(ValueError, match="needs a checkpoint"):
        model_card("someone/model")
    with pytest.raises(evae.EvaeError, match="there is no model card 'replogle'"):
        model_card("someone/model", "replogle")


@pytest.mark.parametrize("stage", ["prior", "tokenizer"])
def test_snippets_run(stage, trained_prior, trained_tokenizer, controls, screen):
    """On a model of one's own, as a user would paste them; the second with the package's classes."""
    folder = trained_prior if stage == "prior" else trained_tokenizer
    text = model_card("evae/replogle-ar", "replogle-ar" if stage == "prior" else "replogle-tokenizer")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        code = snippet.replace('"evae/replogle-ar", trust_remote_code=True', f'"{folder}"')
        code = code.replace('"evae/replogle-ar"', f'"{folder}"').replace("500", "5")
        names = {"controls": controls, "cells": screen[:8].copy()}
        exec(compile(code, "card", "exec"), names)
    counts = names["counts"] if stage == "prior" else names["codes"]
    assert len(counts) == (len(controls) if stage == "prior" else 8)


def test_a_prior_says_what_it_reads_and_which_guidance_was_chosen():
    small = evae.EvaeConfig(n_genes=10)
    sources = {"source_cells": 1, "condition_on_effect": True, "guidance_scale": 1.25}
    config = evae.EvaeARConfig(small, guidance_curve={"1": 0.02, "1.25": 0.015}, **sources)
    described = Described(config.model_type, "SIZE.", None, what_it_reads(config), any_cell_type=True)
    text = model_card("me/mine", described=described)
    assert "one control cell for every cell that it writes" in text
    assert "mean effect in other cell types" in text
    assert "default guidance scale is 1.25, chosen on validation cells" in text
    assert "0.02 with 1, 0.015 with 1.25" in text
    assert "Cell types that it never saw are predicted" in text
    plain = what_it_reads(evae.EvaeARConfig(small))
    assert plain == "It reads the name of the perturbation and that of the cell type. The default guidance scale is 1."
    assert what_it_reads(small) == ""
