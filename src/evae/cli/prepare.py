"""`evae prepare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.loader import DatasetInfo

PerturbationKey = Annotated[str, typer.Option(help="obs column that names the perturbation.")]
CellTypeKey = Annotated[str, typer.Option(help="obs column that names the cell type (or line, or batch).")]
SourceLayer = Annotated[str | None, typer.Option(help="Layer of raw counts, or 'raw'; X if left out.")]


def prepare(
    files: Annotated[list[Path], typer.Argument(help="h5ad files of raw counts.", metavar="FILE.h5ad")],
    out: Annotated[Path, typer.Option(help="Dataset folder to make.")],
    control: Annotated[str, typer.Option(help="Label of unperturbed cells in the perturbation column.")],
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: CellTypeKey = "cell_type",
    split: Annotated[
        str | None,
        typer.Option(help="What to hold out for testing: a JSON file, or random:0.1. Nothing if left out."),
    ] = None,
    genes: Annotated[str, typer.Option(help="all, hvg:2000, or a panel file with one gene a line.")] = "all",
    layer: SourceLayer = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle, the validation cells and a random split.")] = 0,
    min_coverage: Annotated[float, typer.Option(help="Least share of the panel every file must have.")] = 0.8,
    chunk_size: Annotated[int, typer.Option(help="Cells read at once; lower it to save memory.")] = 8192,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same.")] = 1,
    aliases: Annotated[
        Path | None,
        typer.Option(help="Table of other gene names, tab-separated: symbol, alias_symbol, prev_symbol (as HGNC's)."),
    ] = None,
) -> None:
    """Turn h5ad files of raw counts into a dataset folder.

    The folder holds Parquet shards that HuggingFace datasets streams, with the gene panel, the vocabularies,
    the split and the library sizes. A split file reads {"cell_type": ["rep_3"], "pert": ["STAT1", "JAK2"]}:
    cells of these cell types with these perturbations are held out. A run that was killed goes on where it stopped
    when it is started again.

    Example: evae prepare screen.h5ad --control non-targeting --split split.json --out data/screen
    """
    folder = prepare_dataset(
        list(files),
        out,
        perturbation_key=perturbation_key,
        cell_type_key=cell_type_key,
        control=control,
        split=split,
        genes=genes,
        layer=layer,
        seed=seed,
        chunk_size=chunk_size,
        n_workers=workers,
        aliases=aliases,
        min_coverage=min_coverage,
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(DatasetInfo.load(folder).summary(), markup=False)
    console.print(f"dataset folder: {folder}", style="bold", markup=False)
