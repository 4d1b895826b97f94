"""`evae prepare`: h5ad files become a dataset folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evae.cli.files import need_cells, need_file
from evae.cli.options import CellTypeKey, Layer, PerturbationKey
from evae.cli.terminal import join_names, say, watched
from evae.models.contract_evae import EvaeError, split_names

AUTO = "auto"


def prepare(
    files: Annotated[list[Path], typer.Argument(help="h5ad files of raw counts.", metavar="FILE.h5ad")],
    out: Annotated[Path, typer.Option(help="Dataset folder to make.")],
    control: Annotated[str, typer.Option(help="Label of unperturbed cells in the perturbation column.")],
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: CellTypeKey = "cell_type",
    batch_key: Annotated[
        str | None, typer.Option(help="obs column of the experimental batch: priors pair cells within batches.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="What to hold out for testing: a JSON file, auto, random:0.1, unseen-cell-type:NAME, "
            "unseen-perturbation:0.2 (or names), unseen-both:NAME:0.2, doubles:0,1,2-seen, donors:COLUMN:NAMES or "
            "k-fold:1/5. Nothing if left out."
        ),
    ] = None,
    hold_out_cell_type: Annotated[
        str | None, typer.Option(help="In place of --split: the cell type to hold out; a third of its perturbations.")
    ] = None,
    hold_out_perturbations: Annotated[
        str | None, typer.Option(help="In place of --split: the perturbations to hold out, separated by commas.")
    ] = None,
    genes: Annotated[
        str,
        typer.Option(
            help="all, hvg:2000, a file with one gene a line, a dataset folder, or auto: all, of many the best 1,000."
        ),
    ] = "all",
    layer: Layer = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle, the validation cells and what a split draws.")] = 0,
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
    cells of these cell types with these perturbations are held out. Short names: unseen-cell-type:NK holds out all
    perturbed cells of NK; with an unseen perturbation the combinations that hold it are left out too, and likewise
    whatever else would give the answer away. With --split auto a public file whose labels
    are known gets its own split; of any other file every third perturbation is held out in the cell type that has
    the most perturbed cells. A run that was killed goes on where it stopped when it is started again.

    Example: evae prepare screen.h5ad --control non-targeting --split split.json --out data/screen
    """
    for file in files:
        need_cells(file)
    if aliases is not None:
        need_file(aliases)
    named = hold_out_cell_type is not None or hold_out_perturbations is not None
    if named and split not in (None, AUTO):
        raise EvaeError("give either --split, or --hold-out-cell-type and --hold-out-perturbations.")
    from evae.data.format import DatasetInfo
    from evae.data.preparing.card import held_out_in_words
    from evae.data.preparing.prepare import prepare_dataset
    from evae.data.streaming.leakage import leakage

    keys: dict[str, Any] = {
        "perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "control": control, "layer": layer,
    }  # fmt: skip
    held_out: Any = split
    if genes == AUTO:
        genes = _automatic_genes(files, keys)
    if named or split == AUTO:
        held_out = _automatic_split(files, keys, hold_out_cell_type, hold_out_perturbations or "")
    folder = prepare_dataset(
        list(files),
        out,
        **keys,
        batch_key=batch_key,
        split=held_out,
        genes=genes,
        seed=seed,
        chunk_size=chunk_size,
        n_workers=workers,
        aliases=aliases,
        min_coverage=min_coverage,
        progress=watched(),
    )
    info = DatasetInfo.load(folder)
    say(info.summary())
    if "cell_type" in info.split:
        say(f"held out: {join_names(info.split['cell_type'])} x {join_names(info.split['pert'])}")
    elif info.split:
        say(f"held out: {held_out_in_words(info.split)}")
    for sentence in leakage(folder):
        say(f"caution: {sentence}")
    say(f"dataset folder: {folder}", style="bold")


def _automatic_genes(files: list[Path], keys: dict[str, Any]) -> str:
    from evae.data.preparing.automatic import choose_genes

    genes, reason = choose_genes(files, keys["layer"])
    say(f"genes: {reason}")
    return genes


def _automatic_split(files: list[Path], keys: dict[str, Any], cell_type: str | None, perturbations: str) -> Any:
    """What the options name, else what is known or suits the data; says which."""
    from evae.data.preparing.automatic import choose_split, read_labels
    from evae.training.settings import stored_splits

    cell_types = read_labels(files, keys["cell_type_key"], keys["layer"])
    names = read_labels(files, keys["perturbation_key"], keys["layer"])
    split, reason = choose_split(
        cell_types,
        names,
        keys["control"],
        hold_out_cell_type=cell_type,
        hold_out_perturbations=split_names(perturbations, set(names)),
        stored=stored_splits(),
    )
    say(f"to hold out: {reason}")
    return split
