"""The settings of a training: flat, typed fields, and the presets in scripts/configs that fill them.

Enters: a preset or YAML file and `key=value` words. Leaves: checked `TokenizerSettings` or `PriorSettings`.
May import: the input contract.
"""

from evae.training.settings.presets import config_path, configs_folder, stored_splits
from evae.training.settings.settings import (
    KINDS,
    PriorSettings,
    Settings,
    TokenizerSettings,
    check_model_settings,
    described,
    load_settings,
    model_fields,
)

__all__ = [
    "KINDS",
    "PriorSettings",
    "Settings",
    "TokenizerSettings",
    "check_model_settings",
    "config_path",
    "configs_folder",
    "described",
    "load_settings",
    "model_fields",
    "stored_splits",
]
