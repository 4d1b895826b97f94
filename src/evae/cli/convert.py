"""`evae convert`: a run of the authors' own training becomes a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import check_folder, need_file, need_folder
from evae.cli.options import Overwrite
from evae.cli.terminal import quiet_transformers, say

MARKER = "preprocessor_config.json"


def convert(
    run: Annotated[Path, typer.Argument(help="Run folder: config.yaml and checkpoints.", metavar="RUN")],
    genes: Annotated[
        Path, typer.Option(help="h5ad file that the run was trained on, or JSON or text that names its genes in order.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Run folder of a prior's VAE, if it is not where config.yaml says.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Feature vectors by name (npz, csv, tsv, parquet), if the prior knows such.")
    ] = None,
    perturbation_key: Annotated[
        str | None, typer.Option(help="obs column of the perturbation; that of config.yaml if left out.")
    ] = None,
    cell_type_key: Annotated[
        str | None, typer.Option(help="obs column of the cell type; cell_type if left out.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="Name of the control; that of config.yaml if left out.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a run of the authors' code (sanjukta7/sc-evae) into a model folder that computes the same.

    A run holds no names: genes come from --genes, perturbations and cell types from the labels of the h5ad file,
    or from JSON such as {"genes": [...], "perturbations": [...], "cell_types": [...]}.

    Example: evae convert runs/prior --genes replogle.h5ad --perturbation-key gene --out models/prior
    """
    need_folder(run)
    for file in (genes, *([features] if features is not None else [])):
        need_file(file)
    check_folder(out, MARKER, overwrite)
    from evae.conversion import convert as convert_run

    quiet_transformers()
    done = convert_run(
        run, genes, out, tokenizer=tokenizer, features=features, perturbation_key=perturbation_key,
        cell_type_key=cell_type_key, control=control,
    )  # fmt: skip
    for names, reason in done.left_out.items():
        say(f"left out: {names}: {reason}", style="yellow")
    say(done.told, style="dim")
    say(f"{done.n_tensors:,} tensors of {done.source} became {type(done.model).__name__}: {out}", style="bold")
