"""`evae study`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evae.study import read_study, run_study


def study(
    file: Annotated[Path, typer.Argument(help="YAML file of the study.", metavar="STUDY.yaml")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value...", help="Keys of the file, such as dataset=DIR.")
    ] = None,
) -> None:
    """Compare tokenizers, heads and priors: train every combination and evaluate all on the same held-out cells.

    Writes study.md (means and standard deviations over seeds, beside baselines), study.csv and plots into
    output_dir. What is trained or evaluated already is used again, so a stopped study goes on. Several GPUs:
    torchrun -m evae.cli study STUDY.yaml, or accelerate launch likewise.

    Example: evae study scripts/studies/papalexi.yaml dataset=data/papalexi output_dir=runs/papalexi
    """
    out = run_study(read_study(file, settings or []))
    if os.environ.get("RANK", "0") == "0":
        Console(highlight=False, soft_wrap=True).print(f"all numbers: {out / 'study.md'}", style="bold", markup=False)
