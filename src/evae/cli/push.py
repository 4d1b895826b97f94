"""`evae push`: a trained model goes to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import need_cells, need_folder
from evae.cli.options import DryRun, Private, RepoId
from evae.cli.terminal import quiet_transformers, say
from evae.common.messages import number_of
from evae.inference.example import is_example
from evae.models.contract_evae import EvaeError


def push(
    run_dir: Annotated[
        Path, typer.Argument(help="Folder of a trained model; with --space also example.", metavar="RUN_DIR")
    ],
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
    space: Annotated[bool, typer.Option("--space", help="A Space instead: the app with this model in it.")] = False,
    controls: Annotated[
        Path | None, typer.Option(help="With --space: file of control cells that it offers, at most 2,000 of them.")
    ] = None,
    save_card: Annotated[
        Path | None, typer.Option(help="Write the model card to this file too, to read it before it goes.")
    ] = None,
) -> None:
    """Publish a trained model on the Hub, or the app with it.

    One commit holds weights, processor, code, model card, settings and, with --result, the numbers. Nothing
    goes unless the weights load again and generate cells. With --space the app goes, as `evae app` serves it here.

    Example: evae push runs/prior evae/replogle-ar --result predicted_held_out_evaluation

    Example: evae push runs/prior evae/replogle-app --space --controls cells.h5ad
    """
    if space:
        if card or result or dataset or save_card:
            raise EvaeError("--space has no card of numbers; leave --card, --result, --dataset and --save-card out.")
    elif controls is not None:
        raise EvaeError("--controls goes with --space alone.")
    if not (space and is_example(run_dir)):
        need_folder(run_dir)
    if controls is not None:
        need_cells(controls)
    from evae.hub import push_run, push_space

    quiet_transformers()
    if space:
        files, commit = push_space(run_dir, repo_id, controls=controls, private=private, dry_run=dry_run)
        own = [size for path, size in files if path.startswith("evae/")]
        shown = [(path, size) for path, size in files if not path.startswith("evae/")]
        say_pushed([*shown, (f"evae/, the package, {number_of(len(own), 'file')}", sum(own))], commit, repo_id)
        return
    files, commit = push_run(
        run_dir, repo_id, private=private, dry_run=dry_run, card=card, result=result, dataset_id=dataset,
        save_card=save_card,
    )  # fmt: skip
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
    total = f"{number_of(len(files), 'file')}, {number_of(sum(size for _, size in files), 'byte')}"
    if commit is None:
        say(f"{total} would go to {repo_id}; nothing was sent", style="bold")
    else:
        say(f"{total} went to {repo_id} in one commit: {commit}", style="bold")
