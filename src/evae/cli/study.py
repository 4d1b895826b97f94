"""`evae study`: a cross product of models, trained and compared."""

import os
from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import need_file
from evae.cli.terminal import quiet_transformers, say


def study(
    file: Annotated[Path, typer.Argument(help="YAML file of the study.", metavar="STUDY.yaml")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value...", help="Keys of the file, such as dataset=DIR, seeds=[0]."),
    ] = None,
) -> None:
    """Compare tokenizers, heads and priors: train every combination and evaluate all on the same held-out cells.

    Writes study.md (means and standard deviations over seeds, beside baselines; over several splits also wins, and
    paired tests), study.csv, pairs.csv, tests.csv and plots into output_dir. A file with splits names h5ad files under
    prepare, and a dataset is made of each split. What is trained or evaluated already is used again, so a stopped
    study goes on. Several GPUs: torchrun -m evae.cli study STUDY.yaml, or accelerate launch likewise.

    Example: evae study scripts/studies/papalexi.yaml dataset=data/papalexi output_dir=runs/papalexi
    """
    need_file(file)
    from evae.study import read_study, run_study

    quiet_transformers()
    out = run_study(read_study(file, settings or []))
    if os.environ.get("RANK", "0") == "0":
        say(f"all numbers: {out / 'study.md'}", style="bold")
