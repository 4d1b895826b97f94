"""Options that several commands share, and the checks of their values that need no library."""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from evae.inference.example import CONTROLS, FOLDER, is_example
from evae.models.contract_evae import EvaeError, near_matches

Model = Annotated[str, typer.Argument(help="Folder of a trained model, a Hub id, or example.", metavar="MODEL")]
PerturbationKey = Annotated[str, typer.Option(help="obs column that names the perturbation.")]
CellTypeKey = Annotated[str, typer.Option(help="obs column that names the cell type (or line, or batch).")]
OptionalCellTypeKey = Annotated[
    str, typer.Option(help="obs column that names the cell type (or line, or batch); '' takes all cells as one type.")
]
Layer = Annotated[
    str | None, typer.Option(help="Layer of raw counts, raw, or auto: whichever holds them. X if left out.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one, if left out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Seed = Annotated[int, typer.Option(help="Of everything random; the same seed gives the same result.")]
RepoId = Annotated[str, typer.Argument(help="Where to, as name/repository.", metavar="REPO_ID")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and list what would go.")]

Dask = Annotated[
    str | None,
    typer.Option(help="Spread the work: local:4 starts 4 processes, tcp://HOST:8786 takes the workers of Dask there."),
]

EMBEDDINGS = ("latents", "pooled", "codes")
# Arguments in Python -> options of another name.
OTHER_NAMES = {
    "num_steps": "steps",
    "n_permutations": "permutations",
    "n_shuffles": "shuffles",
    "n_components": "components",
    "controls": "control",
    "positives": "positive",
}


def in_options(message: str, command: Any) -> str:
    """A message that names arguments of Python, with the options of a command in their places.

    Args:
        message: names arguments as `cell_type_key`, `control=...`, `scale="counts"` or `cell_type_key=None`; a name
            without an underscore counts only with the sign. What stands in quotes is left as it is.
        command: the click command.
    """
    options = {p.name: p.opts[0] for p in command.params if p.opts[0].startswith("--")}
    options |= {n: options[o] for n, o in OTHER_NAMES.items() if o in options and n not in options}
    for name, option in options.items():
        value = r"(None|True|\.\.\.|\"[^\"]*\"|\w[\w.]*\w|\w)"
        message = re.sub(rf"(?<![\w'\"/.-]){name}={value}", partial(_spelled, option), message)
        if "_" in name:
            message = re.sub(rf"(?<![\w'\"/.-]){name}(?![\w'\"/=-]|\.\w)", option, message)
    return message


def _spelled(option: str, found: re.Match[str]) -> str:
    value = found[1]
    if value in ("True", "..."):
        return option
    return f"{option} ''" if value == "None" else option + " " + value.strip('"')


def names_of(text: str | None) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Numbers above 0 separated by commas; None where nothing is given.

    Raises:
        EvaeError: another text; `option` is its name.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in names_of(text))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise EvaeError(f"{option} is '{text}'; give numbers above 0 separated by commas, as 0.5,1,10.")
    return found


def check_known(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `EvaeError` unless every name is one of `known`."""
    for name in names:
        if name not in known:
            raise EvaeError(f"there is no {what} '{name}'. {near_matches(name, known)}")


def example_controls_of(model: str, controls: Path | None) -> Path | None:
    """The control cells that were named; those that come with the example model if none were."""
    return FOLDER / CONTROLS if controls is None and is_example(model) else controls


def check_model(path_or_id: str) -> None:
    """Raise `EvaeError` unless a folder has this name, or a model on the Hub could have it, or it is the example."""
    owner, _, name = path_or_id.partition("/")
    if (
        not is_example(path_or_id)
        and not Path(path_or_id).is_dir()
        and (not name or "/" in name or owner in ("", ".", "..", "~"))
    ):
        raise EvaeError(f"no such model folder: {path_or_id}")
