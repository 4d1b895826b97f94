"""`evae push`: a trained model goes to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import need_folder
from evae.cli.options import DryRun, Private, RepoId
from evae.cli.terminal import quiet_transformers, say


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
    need_folder(run_dir)
    from evae.hub import push_run

    quiet_transformers()
    files, commit = push_run(
        run_dir, repo_id, private=private, dry_run=dry_run, card=card, result=result, dataset_id=dataset
    )
    if result is not None:
        _say_numbers(result / "result.json" if result.is_dir() else result)
    say_pushed(files, commit, repo_id)


def _say_numbers(result: Path) -> None:
    """What the model card's `model-index` says, and the Hub shows beside the card."""
    from evae.evaluation import model_index

    (entry,) = model_index(result, "", "", "")
    for metric in (metric for part in entry["results"] for metric in part["metrics"]):
        say(f"{metric['value']:>14.4g}  {metric['name']}")


def say_pushed(files: list[tuple[str, int]], commit: str | None, repo_id: str) -> None:
    """The files that went, or after a dry run would go."""
    for path, size in files:
        say(f"{size:>14,}  {path}")
    total = f"{len(files)} files, {sum(size for _, size in files):,} bytes"
    if commit is None:
        say(f"{total} would go to {repo_id}; nothing was sent", style="bold")
    else:
        say(f"{total} went to {repo_id} in one commit: {commit}", style="bold")
