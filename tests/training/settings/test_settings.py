"""Settings: what is read, and that nothing wrong is accepted."""

from pathlib import Path

import pytest

from evae.models.configuration_evae import EvaeConfig
from evae.models.configuration_evae_prior import EvaeARConfig
from evae.models.contract_evae import EvaeError
from evae.training.prior import FROM_DATASET as PRIOR_GIVEN
from evae.training.settings import KINDS, PriorSettings, Settings, check_model_settings, load_settings
from evae.training.tokenizer import FROM_DATASET as TOKENIZER_GIVEN

CONFIGS = Path(__file__).resolve().parents[3] / "scripts" / "configs"


def write(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_file_and_overrides(tmp_path):
    path = write(tmp_path, "max_steps: 10\nlearning_rate: 1e-3\nmodel:\n  n_latents: 8\n")
    settings = load_settings("tokenizer", path, ["max_steps=20", "model.fsq_levels=[5, 3]", "output_dir=a=b"])
    assert (settings.max_steps, settings.learning_rate, settings.output_dir) == (20, 1e-3, "a=b")
    assert settings.model == {"n_latents": 8, "fsq_levels": [5, 3]}
    assert isinstance(load_settings("prior"), PriorSettings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rte=1", "Did you mean 'learning_rate'"),
        ("max_steps=ten", "max_steps is 'ten'; give an integer"),
        ("max_steps=1.5", "give an integer"),
        ("batch_size=true", "give an integer"),
        ("resume=1", "give true or false"),
        ("dataset=5", "give text"),
        ("learning_rate=fast", "give a number"),
        ("learning_rate=.nan", "above 0"),
        ("model=3", "give key: value pairs"),
        ("max_steps=0", "at least 1"),
        ("calibration_cells=1", "at least 2"),
        ("ema_decay=1", "ema_decay"),
        ("weight_decay=-1", "0 or more"),
        ("report_to=tensorbord", "tensorboard"),
        ("mixed_precision=fp16", "bf16"),
        ("tokenizer=x", "unknown setting 'tokenizer' for the tokenizer"),
        ("nothing", "write key=value"),
        ("dataset=[1", "no YAML"),
    ],
)
def test_bad_override(override, message):
    with pytest.raises(EvaeError, match=message.replace("(", r"\(")) as caught:
        load_settings("tokenizer", None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- 1\n", "model: 3\n", "a: [\n"])
def test_bad_file(tmp_path, text):
    with pytest.raises(EvaeError, match="fix the file"):
        load_settings("tokenizer", write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(EvaeError, match="does not exist"):
        load_settings("prior", tmp_path / "none.yaml")


def test_max_steps_by_hand_puts_aside_the_presets_epochs(tmp_path):
    path = write(tmp_path, "max_steps: 1200\nmax_epochs: 12\n")
    assert load_settings("prior", path).max_epochs == 12
    assert load_settings("prior", path, ["max_steps=800"]).max_epochs == 0
    assert load_settings("prior", path, ["max_steps=800", "max_epochs=3"]).max_epochs == 3


def test_epochs_hold_the_steps_of_a_small_set_only():
    settings = PriorSettings(max_steps=1200, max_epochs=12, batch_size=128, warmup_steps=100, eval_every=200)
    held = settings.suited_to(2764, ranks=1)
    assert (held.max_steps, held.warmup_steps) == (260, 100)
    assert settings.suited_to(1000, ranks=1).warmup_steps == 47  # of 94 steps
    assert settings.suited_to(2764, ranks=2).max_steps == 130
    assert settings.suited_to(17_000, ranks=1) == settings


def test_a_small_set_is_shown_thinned_too_and_its_copies_count_in_a_pass():
    settings = PriorSettings(max_steps=1200, max_epochs=1, batch_size=100, warmup_steps=100, thinned_copies=-1)
    assert settings.follow_cells
    small = settings.suited_to(9_999, ranks=1)
    assert (small.thinned_copies, small.max_steps) == (5, 600)
    large = settings.suited_to(10_000, ranks=1)
    assert (large.thinned_copies, large.max_steps, large.warmup_steps) == (0, 100, 50)
    by_hand = PriorSettings(max_steps=1200, max_epochs=1, batch_size=100, thinned_copies=2)
    assert by_hand.suited_to(1_000, ranks=1).thinned_copies == 2
    assert not PriorSettings(thinned_copies=2).follow_cells
    with pytest.raises(EvaeError, match="thinned_copies is -2; give 0 or more, or -1"):
        PriorSettings(thinned_copies=-2)


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(EvaeError, match="resume and overwrite"):
        Settings(resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("model", "config", "given", "message"),
    [
        ({"n_latent": 8}, EvaeConfig, TOKENIZER_GIVEN, "Did you mean 'n_latents'"),
        ({"n_genes": 8}, EvaeConfig, TOKENIZER_GIVEN, "taken from the dataset"),
        ({"n_latents": "many"}, EvaeConfig, TOKENIZER_GIVEN, "give an integer"),
        ({"hiden_size": 8}, EvaeARConfig, PRIOR_GIVEN, "Did you mean 'hidden_size'"),
        ({"dropout": "no"}, EvaeARConfig, PRIOR_GIVEN, "give a number"),
    ],
)
def test_bad_model_setting(model, config, given, message):
    with pytest.raises(EvaeError, match=message):
        check_model_settings(model, config, given)


def test_model_numbers_in_text_are_converted():
    assert check_model_settings({"kl_weight": "1e-6"}, EvaeConfig) == {"kl_weight": 1e-6}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_build_their_configuration(path):
    kind = path.stem.split("_")[1]
    settings = load_settings(kind, path)
    assert isinstance(settings, KINDS[kind])
    config, given = (EvaeConfig, TOKENIZER_GIVEN) if kind == "tokenizer" else (EvaeARConfig, PRIOR_GIVEN)
    config(**check_model_settings(settings.model, config, given))


def test_paper_presets_are_the_published_values():
    tokenizer = load_settings("tokenizer", CONFIGS / "paper_tokenizer.yaml")
    prior = load_settings("prior", CONFIGS / "paper_prior.yaml")
    fields = ("max_steps", "batch_size", "learning_rate", "warmup_steps", "max_grad_norm")
    assert [getattr(tokenizer, f) for f in fields] == [75_000, 128, 6e-4, 2_500, 5.0]
    assert [getattr(prior, f) for f in fields] == [75_000, 128, 2e-4, 3_000, 1.0]
    assert tokenizer.weight_decay == 1e-3
    config = EvaeConfig(**tokenizer.model)
    shape = (config.hidden_size, config.num_attention_heads, config.intermediate_size, config.n_latents)
    assert shape == (256, 8, 1024, 64)
    assert (config.encoder_layers, config.decoder_layers, config.codebook_size) == (4, 4, 512)
    assert config.decoder_self_attention
    assert config.dropout == 0.1
    prior_config = EvaeARConfig(**prior.model)
    assert (prior_config.hidden_size, prior_config.num_hidden_layers) == (384, 6)
    assert (prior_config.num_attention_heads, prior_config.intermediate_size) == (8, 1536)


def test_a_bare_no_is_text_where_text_is_wanted():
    assert load_settings("prior", None, ["mixed_precision=no"]).mixed_precision == "no"
