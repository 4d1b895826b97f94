"""The settings of a training: flat, typed fields, and the presets in scripts/configs that fill them.

Enters: a preset or YAML file and `key=value` words. Leaves: checked `TokenizerSettings` or `PriorSettings`.
May import: the input contract.
"""

from evae.training.settings.load import KINDS, check_names, described, load_settings, read_overrides
from evae.training.settings.presets import config_path, configs_folder, stored_splits
from evae.training.settings.settings import (
    PriorSettings,
    Settings,
    TokenizerSettings,
    check_model_settings,
    copies_for,
    model_fields,
)

__all__ = [
    "KINDS",
    "PriorSettings",
    "Settings",
    "TokenizerSettings",
    "check_model_settings",
    "check_names",
    "config_path",
    "configs_folder",
    "copies_for",
    "described",
    "load_settings",
    "model_fields",
    "read_overrides",
    "stored_splits",
]
