"""The presets in scripts/configs: from a name such as "tiny" to a file, in a checkout or a wheel."""

from pathlib import Path

from evae.models.contract_evae import EvaeError, near_matches

# The wheel carries scripts/configs as evae/configs (see pyproject.toml).
_PLACES = (Path(__file__).parents[4] / "scripts" / "configs", Path(__file__).parents[2] / "configs")


def configs_folder() -> Path:
    """Where the presets lie."""
    found = next((place for place in _PLACES if place.is_dir()), None)
    if found is None:
        raise EvaeError("this installation of evae lacks its presets; install it again, or give a YAML file.")
    return found


def config_path(name_or_file: str, stage: str) -> Path:
    """The YAML file of a preset.

    Args:
        name_or_file: "tiny", "base", "paper", or a YAML file of one's own.
        stage: "tokenizer" or "prior".

    Raises:
        EvaeError: neither a preset nor a file.
    """
    if Path(name_or_file).suffix in (".yaml", ".yml"):
        return Path(name_or_file)
    path = configs_folder() / f"{name_or_file}_{stage}.yaml"
    if not path.is_file():
        names = [p.stem.removesuffix(f"_{stage}") for p in sorted(configs_folder().glob(f"*_{stage}.yaml"))]
        raise EvaeError(
            f"there is no preset '{name_or_file}' for the {stage}; give a YAML file or a preset. "
            f"{near_matches(name_or_file, names)}"
        )
    return path


def stored_splits() -> list[Path]:
    """The hold-outs of public data sets that `evae prepare --split auto` recognises by their labels."""
    return sorted((configs_folder() / "splits").glob("*.json"))
