"""`evae push` and `evae push-dataset`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evae.evaluation import model_index
from evae.hub import push_dataset, push_run

RepoId = Annotated[str, typer.Argument(help="Where to, as name/repository.", metavar="REPO_ID")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and list what would go.")]


def push(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a trained model.", metavar="RUN_DIR")],
    repo_id: RepoId,
    private: Private = False,
    dry_run: DryRun = False,
    card: Annotated[
        str | None, typer.Option(help="Whose facts the model card tells, such as replogle-ar; the repository's name.")
    ] = None,
    result: Annotated[
        Path | None, typer.Option(help="Folder that `evae evaluate` wrote: its numbers and plots.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of the training data; of several datasets once for each.")
    ] = None,
) -> None:
    """Publish a trained model on the Hub.

    One commit holds weights, processor, code, model card, settings and, with --result, the numbers. Nothing
    goes unless the weights load again and generate cells.

    Example: evae push runs/prior evae/replogle-ar --result predicted_held_out_evaluation
    """
    files, commit = push_run(
        run_dir, repo_id, private=private, dry_run=dry_run, card=card, result=result, dataset_id=dataset
    )
    if result is not None:
        _say_numbers(result / "result.json" if result.is_dir() else result)
    _say(files, commit, repo_id)


def push_dataset_folder(
    folder: Annotated[Path, typer.Argument(help="Folder that `evae prepare` made.", metavar="DIR")],
    repo_id: RepoId,
    private: Private = False,
    dry_run: DryRun = False,
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="Of the data, as the Hub names it, such as cc-by-4.0.")
    ] = "unknown",
) -> None:
    """Publish a dataset folder on the Hub, where HuggingFace datasets streams it.

    Example: evae push-dataset data/screen evae/replogle --licence cc-by-4.0
    """
    files, commit = push_dataset(folder, repo_id, private=private, dry_run=dry_run, licence=licence)
    _say(files, commit, repo_id)


def _say_numbers(result: Path) -> None:
    """What the model card's `model-index` says, and the Hub shows beside the card."""
    console = Console(highlight=False, soft_wrap=True)
    (entry,) = model_index(result, "", "", "")
    for metric in (metric for part in entry["results"] for metric in part["metrics"]):
        console.print(f"{metric['value']:>14.4g}  {metric['name']}", markup=False)


def _say(files: list[tuple[str, int]], commit: str | None, repo_id: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for path, size in files:
        console.print(f"{size:>14,}  {path}", markup=False)
    total = f"{len(files)} files, {sum(size for _, size in files):,} bytes"
    if commit is None:
        console.print(f"{total} would go to {repo_id}; nothing was sent", style="bold", markup=False)
    else:
        console.print(f"{total} went to {repo_id} in one commit: {commit}", style="bold", markup=False)
