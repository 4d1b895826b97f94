"""Options that several commands share, and the checks of their values that need no library."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from evae.models.contract_evae import EvaeError, near_matches

Model = Annotated[str, typer.Argument(help="Folder of a trained model, or a Hub id.", metavar="MODEL")]
PerturbationKey = Annotated[str, typer.Option(help="obs column that names the perturbation.")]
CellTypeKey = Annotated[str, typer.Option(help="obs column that names the cell type (or line, or batch).")]
Layer = Annotated[str | None, typer.Option(help="Layer of raw counts; X if left out.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one, if left out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Seed = Annotated[int, typer.Option(help="Of everything random; the same seed gives the same result.")]
RepoId = Annotated[str, typer.Argument(help="Where to, as name/repository.", metavar="REPO_ID")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and list what would go.")]

EMBEDDINGS = ("latents", "pooled", "codes")


def names_of(text: str | None) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def check_known(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `EvaeError` unless every name is one of `known`."""
    for name in names:
        if name not in known:
            raise EvaeError(f"there is no {what} '{name}'. {near_matches(name, known)}")


def check_model(path_or_id: str) -> None:
    """Raise `EvaeError` unless a folder has this name, or a model on the Hub could have it."""
    owner, _, name = path_or_id.partition("/")
    if not Path(path_or_id).is_dir() and (not name or "/" in name or owner in ("", ".", "..", "~")):
        raise EvaeError(f"no such model folder: {path_or_id}")
