"""A training that is only looked at: its settings in full, checked against the dataset and the run folder."""

from pathlib import Path
from typing import Any

from evae.common.logs import logger
from evae.data.streaming.mixture import Sources
from evae.models.configuration_evae import EvaeConfig
from evae.models.contract_evae import EvaeError, near_matches
from evae.training import prior as prior_stage
from evae.training import tokenizer as tokenizer_stage
from evae.training.batches import batch_names
from evae.training.conditions import perturbation_vocabulary
from evae.training.labels import table_of
from evae.training.loop.setup import make_accelerator
from evae.training.resume.run_folder import RunFolder
from evae.training.settings import PriorSettings, Settings, check_model_settings, model_fields

LOG = logger(__name__)


def dry_run(settings: Settings) -> dict[str, Any]:
    """Check what can be checked before a training, and train nothing.

    Args:
        settings: of a tokenizer or of a prior. A prior's tokenizer may not be there yet; then it is not checked.

    Returns:
        All settings as plain values, those of the model with their defaults.

    Raises:
        EvaeError: what the training would refuse at its start.
    """
    accelerator = make_accelerator(settings)
    RunFolder(settings, accelerator.num_processes)
    is_prior = isinstance(settings, PriorSettings)
    config, given = _prior(settings) if is_prior else _tokenizer(settings, accelerator.num_processes)
    model = {name: getattr(config, name) for name in model_fields(type(config)) if name not in given}
    return settings.to_dict() | {"model": model}


def _tokenizer(settings: Any, processes: int) -> tuple[Any, tuple[str, ...]]:
    """The configuration, and the fields of it that are no settings."""
    fields = check_model_settings(settings.model, EvaeConfig, tokenizer_stage.FROM_DATASET)
    sources = Sources(settings.datasets, settings.dataset_weights)
    sources.training_batches(settings.batch_size, settings.seed, 0, processes)
    config = tokenizer_stage.build_config(sources.info, fields, table_of(settings, fields))
    return config, tokenizer_stage.FROM_DATASET


def _prior(settings: Any) -> tuple[Any, tuple[str, ...]]:
    """Likewise."""
    settings.require("tokenizer")
    if settings.model_type not in prior_stage.PRIORS:
        known = list(prior_stage.PRIORS)
        raise EvaeError(f"unknown model_type '{settings.model_type}'. {near_matches(settings.model_type, known)}")
    config_class, model_class = prior_stage.PRIORS[settings.model_type]
    fields = check_model_settings(settings.model, config_class, prior_stage.FROM_DATASET)
    sources = Sources(settings.datasets, settings.dataset_weights)
    info, batches = sources.info, batch_names(sources) if fields.get("condition_on_batch") else None
    vocabulary = perturbation_vocabulary(info, settings.perturbation_features, settings.combination_sign)
    if settings.tokenizer == prior_stage.NO_TOKENIZER:
        tokenizer: Any = prior_stage.counts_as_latents(info, model_class).config
    elif (Path(settings.tokenizer) / "config.json").is_file():
        tokenizer = prior_stage.load_tokenizer(settings.tokenizer, info).config
    else:
        LOG.warning(f"not checked: the tokenizer '{settings.tokenizer}', no folder of a finished run")
        kind = "fsq" if model_class.training_input == "codes" else "gaussian"
        tokenizer = tokenizer_stage.build_config(info, {"quantizer": kind})
    processor = tokenizer_stage.make_processor(info, vocabulary.units, settings.combination_sign, batches)
    config = prior_stage.build_config(config_class, tokenizer, vocabulary, processor, info, fields)
    return config, prior_stage.FROM_DATASET
