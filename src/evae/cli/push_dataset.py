"""`evae push-dataset`: a dataset folder goes to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import need_folder
from evae.cli.options import DryRun, Private, RepoId
from evae.cli.push import say_pushed


def push_dataset(
    folder: Annotated[Path, typer.Argument(help="Folder that `evae prepare` made.", metavar="DIR")],
    repo_id: RepoId,
    private: Private = False,
    dry_run: DryRun = False,
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="Of the data, as the Hub names it, such as cc-by-4.0.")
    ] = "unknown",
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="Write eval.yaml, by which the Hub makes a leaderboard; it must know the framework evae.",
        ),
    ] = False,
) -> None:
    """Publish a dataset folder on the Hub, where HuggingFace datasets streams it.

    Example: evae push-dataset data/screen evae/replogle --licence cc-by-4.0
    """
    need_folder(folder)
    from evae.hub import push_dataset as upload

    files, commit = upload(folder, repo_id, private=private, dry_run=dry_run, licence=licence, as_benchmark=benchmark)
    say_pushed(files, commit, repo_id)
