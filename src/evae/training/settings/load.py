"""Settings from a YAML file and `key=value` words."""

import dataclasses
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evae.models.contract_evae import EvaeError, near_matches
from evae.training.settings.settings import PriorSettings, Settings, TokenizerSettings

KINDS: dict[str, type[Settings]] = {"tokenizer": TokenizerSettings, "prior": PriorSettings}


def load_settings(
    kind: str, config_path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()
) -> Settings:
    """Read settings from a YAML file and `key=value` overrides.

    Args:
        kind: "tokenizer" or "prior".
        config_path: a YAML file of settings; none keeps the defaults.
        overrides: "key=value" or "model.key=value"; values are read as YAML and win over the file. `max_steps` among
            them puts aside the file's `max_epochs`.

    Raises:
        EvaeError: a file that is missing or is no YAML mapping, an unknown key, a value of the wrong type.
    """
    values = _read_yaml(Path(config_path)) if config_path is not None else {}
    values["model"] = dict(values.get("model") or {})
    named = read_overrides(overrides, values["model"])
    values |= named
    if "max_steps" in named and "max_epochs" not in named:
        values.pop("max_epochs", None)  # so many steps are asked for
    cls = KINDS[kind]
    check_names(values, [f.name for f in dataclasses.fields(cls)], f"the {kind}")
    return cls(**values)


def read_overrides(overrides: Sequence[str], model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Setting -> value of `key=value` words; those of `model.key=value` stand under `model`, with those given.

    Raises:
        EvaeError: a word without the sign, or a value that is no YAML.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise EvaeError(f"'{override}' is no setting; write key=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise EvaeError(f"the value of '{override}' is no YAML; put it in quotes.") from None
        if key.startswith("model."):
            values["model"] = {**values.get("model", model or {}), key.removeprefix("model."): value}
        else:
            values[key] = value
    return values


def check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `EvaeError` for a setting that is not among those known; `what` they are settings of."""
    for key in names:
        if key not in known:
            raise EvaeError(f"unknown setting '{key}' for {what}. {near_matches(str(key), known)}")


def described(cls: type[Settings]) -> dict[str, str]:
    """Name -> what a setting is, from the comment beside it."""
    lines = "".join(inspect.getsource(c) for c in reversed(cls.__mro__) if issubclass(c, Settings)).splitlines()
    found = (re.match(r"    (\w+): .*?  # (.*)", line) for line in lines)
    said = {match[1]: match[2] for match in found if match}
    return {field.name: said.get(field.name, "") for field in dataclasses.fields(cls)}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise EvaeError(f"the configuration {path} does not exist; give an existing YAML file.")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise EvaeError(f"{path} is no valid YAML{line}; fix the file.") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not isinstance(values.get("model") or {}, dict):
        raise EvaeError(f"{path} must hold `key: value` lines (and `model:` such lines below it); fix the file.")
    return values
