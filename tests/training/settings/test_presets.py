"""The presets load, and every setting in them exists."""

import pytest
import yaml

import evae
from evae.models import EvaeARConfig, EvaeConfig
from evae.training.settings import check_model_settings, config_path, configs_folder, load_settings, stored_splits

NAMES = {path.stem.rsplit("_", 1)[0] for path in configs_folder().glob("*.yaml")}


def test_presets_of_the_readme_exist():
    assert {"tiny", "small", "base", "paper"} <= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize(("stage", "config"), [("tokenizer", EvaeConfig), ("prior", EvaeARConfig)])
def test_presets_load(name, stage, config):
    settings = load_settings(stage, config_path(name, stage))
    fields = check_model_settings(settings.model, config)
    assert config(**fields).hidden_size == settings.model["hidden_size"]


def test_base_has_the_coders_and_the_bottleneck_that_won_its_study():
    study = yaml.safe_load((configs_folder().parent / "studies" / "base.yaml").read_text())
    won = study["tokenizer"]["model"] | {k[6:]: v for k, v in study["tokenizers"]["perceptrons"].items()}
    base = load_settings("tokenizer", config_path("base", "tokenizer")).model
    sizes = {"hidden_size", "num_attention_heads", "intermediate_size", "encoder_layers", "decoder_layers"}
    assert {k: v for k, v in base.items() if k not in sizes | {"head"}} == {k: won[k] for k in won if k not in sizes}


def test_a_file_of_ones_own_is_taken_as_it_is(tmp_path):
    assert config_path(str(tmp_path / "my.yaml"), "prior") == tmp_path / "my.yaml"


def test_unknown_preset_names_near_ones():
    with pytest.raises(evae.EvaeError, match=r"no preset 'tyny' for the prior.*'tiny'"):
        config_path("tyny", "prior")


def test_stored_splits_are_shipped():
    assert configs_folder() / "splits" / "papalexi_thp1.json" in stored_splits()
