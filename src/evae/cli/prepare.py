"""`evae prepare`: files of cells become a dataset folder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from evae.cli.files import need_cells, need_file
from evae.cli.options import Dask, Layer, names_of
from evae.cli.terminal import join_names, say
from evae.common.cluster import on_dask
from evae.common.progress import watched
from evae.models.contract_evae import EvaeError, split_names

AUTO = "auto"


def prepare(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Dataset folder to make.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files or folders of raw counts: h5ad, Zarr, SOMA, h5mu, loom, 10x ...", metavar="FILE"),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(help="In place of files: a Hub dataset laid out as tahoebio/Tahoe-100M, streamed; see --where."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Label of unperturbed cells; found by its usual names if left out, and said.")
    ] = None,
    perturbation_key: Annotated[
        str | None, typer.Option(help="obs column that names the perturbation; likewise.")
    ] = None,
    cell_type_key: Annotated[
        str | None, typer.Option(help="obs column that names the cell type (or line, or batch); likewise.")
    ] = None,
    batch_key: Annotated[
        str | None,
        typer.Option(help="obs column of the experimental batch (or several: donor,plate): cells are paired within."),
    ] = None,
    dose_key: Annotated[
        str | None, typer.Option(help="obs column of the dose, by which treatments are told apart: DrugA 10 uM.")
    ] = None,
    dose_unit: Annotated[
        str | None, typer.Option(help="Unit of the dose, as nM, or its column; found by its usual name if left out.")
    ] = None,
    time_key: Annotated[str | None, typer.Option(help="obs column of the time after treatment, likewise.")] = None,
    time_unit: Annotated[str | None, typer.Option(help="Its unit, or the column; hours if left out.")] = None,
    kind_key: Annotated[
        str | None,
        typer.Option(help="obs column of the kind, likewise: knock-out, interference, activation, drug, cytokine ..."),
    ] = None,
    parse_labels: Annotated[
        bool, typer.Option("--parse-labels", help="Read dose, time and kind from labels such as DrugA_10uM_24h.")
    ] = False,
    obs: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with labels of the cells by their names, as for files of 10x.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=VALUE: keep only these cells; repeat it, for one column too.", metavar="COLUMN=VALUE"
        ),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            help="Leave out what the checks find, separated by commas: unlabelled, several-guides, few, no-knock-down, "
            "batch-without-control, one-batch, copies."
        ),
    ] = None,
    min_cells: Annotated[int, typer.Option(help="Cells below which a perturbation has too few.", min=1)] = 10,
    guide_key: Annotated[
        str | None, typer.Option(help="obs column of the guides of a cell, or of their number.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="What to hold out for testing: a JSON file, auto, random:0.1, unseen-cell-type:NAME, "
            "unseen-perturbation:0.2 (or names), unseen-dose, unseen-both:NAME:0.2, unseen-each:NAME:0.2, "
            "doubles:0,1,2-seen, donors:COLUMN:NAMES or k-fold:1/5. Nothing if left out."
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
    dask: Dask = None,
    aliases: Annotated[
        Path | None,
        typer.Option(help="Table of other gene names, tab-separated: symbol, alias_symbol, prev_symbol (as HGNC's)."),
    ] = None,
) -> None:
    """Turn files of raw counts into a dataset folder.

    The folder holds Parquet shards that HuggingFace datasets streams, with the gene panel, the vocabularies,
    the split and the library sizes. A split file reads {"cell_type": ["rep_3"], "pert": ["STAT1", "JAK2"]}:
    cells of these cell types with these perturbations are held out. Short names: unseen-cell-type:NK holds out all
    perturbed cells of NK; with an unseen perturbation the combinations that hold it are left out too, and likewise
    whatever else would give the answer away. Doses of one agent are perturbations of their own; unseen-dose:NAME holds
    out the middle one. With --split auto a public file whose labels
    are known gets its own split; of any other file every third perturbation is held out in the cell type that has
    the most perturbed cells. In the end a table says what the checks found; only what --drop names is left out.
    A run that was killed goes on where it stopped when it is started again.

    Example: evae prepare screen.h5ad --control non-targeting --split split.json --out data/screen
    """
    files = files or []
    if bool(files) == bool(hub):
        raise EvaeError("give files of cells, or else --hub.")
    for file in files:
        need_cells(file)
    for table in (aliases, obs):
        if table is not None:
            need_file(table)
    named = hold_out_cell_type is not None or hold_out_perturbations is not None
    if named and split not in (None, AUTO):
        raise EvaeError("give either --split, or --hold-out-cell-type and --hold-out-perturbations.")
    from evae.data.preparing.prepare import prepare_dataset
    from evae.data.preparing.treatments import TreatmentKeys

    keys: dict[str, Any] = {
        "perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "control": control, "layer": layer,
        "obs": obs,
    }  # fmt: skip
    treatments: dict[str, Any] = {
        "dose_key": dose_key, "dose_unit": dose_unit, "time_key": time_key, "time_unit": time_unit,
        "kind_key": kind_key, "parse_labels": parse_labels,
    }  # fmt: skip
    held_out: Any = split
    if hub is not None and (genes == AUTO or named or split == AUTO):
        raise EvaeError("with --hub nothing is known before the cells come; name --split and --genes without auto.")
    if genes == AUTO:
        genes = _automatic_genes(files, layer)
    if named or split == AUTO:
        apart = TreatmentKeys(**treatments)
        held_out = _automatic_split(files, {**keys, "keys": apart}, hold_out_cell_type, hold_out_perturbations or "")
    context.with_resource(on_dask(dask))
    folder = prepare_dataset(
        list(files),
        out,
        **keys,
        **treatments,
        hub=hub,
        batch_key=batch_key,
        where=_conditions(where or []),
        drop=names_of(drop),
        min_cells=min_cells,
        guide_key=guide_key,
        split=held_out,
        genes=genes,
        seed=seed,
        chunk_size=chunk_size,
        aliases=aliases,
        min_coverage=min_coverage,
        progress=watched(),
    )
    _say_prepared(folder)


def _say_prepared(folder: Path) -> None:
    """What the folder holds, what is held out, and what the checks found."""
    from evae.data.format import DatasetInfo
    from evae.data.preparing.card import held_out_in_words
    from evae.data.streaming.leakage import leakage

    info = DatasetInfo.load(folder)
    say(info.summary())
    if "cell_type" in info.split:
        say(f"held out: {join_names(info.split['cell_type'])} x {join_names(info.split['pert'])}")
    elif info.split:
        say(f"held out: {held_out_in_words(info.split)}")
    _show_checks(folder)
    for sentence in leakage(folder):
        say(f"caution: {sentence}")
    say(f"dataset folder: {folder}", style="bold")


def _conditions(given: list[str]) -> dict[str, list[str]]:
    """COLUMN=VALUE; several values of a column are alternatives."""
    conditions: dict[str, list[str]] = {}
    for text in given:
        column, sign, value = text.partition("=")
        if not sign or not column:
            raise EvaeError(f"--where {text!r} is no COLUMN=VALUE, as in --where cell_line=K562.")
        conditions.setdefault(column, []).append(value)
    return conditions


def _show_checks(folder: Path) -> None:
    """What the checks found, as a table of plain lines."""
    rows = [("check", "found", "cells", "--drop", "such as")]
    for check in json.loads((folder / "dataset.json").read_text())["checks"]:
        looked = check["found"] is not None
        numbers = (f"{check['found']:,}", f"{check['cells']:,}") if looked else ("not checked", "")
        done = f"{check['drop']}: left out" if check["dropped"] else check["drop"]
        rows.append((check["what"], *numbers, done, ", ".join(check["names"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, (what, found, cells, drop, names) in enumerate(rows):
        line = f"{what:<{widths[0]}}  {found:>{widths[1]}}  {cells:>{widths[2]}}  {drop:<{widths[3]}}  {names}"
        say(line.rstrip(), style=None if i else "bold")


def _automatic_genes(files: list[Path], layer: str | None) -> str:
    from evae.data.preparing.automatic import choose_genes

    genes, reason = choose_genes(files, layer)
    say(f"genes: {reason}")
    return genes


def _automatic_split(files: list[Path], keys: dict[str, Any], cell_type: str | None, perturbations: str) -> Any:
    """What the options name, else what is known or suits the data; says which."""
    from evae.data.preparing.automatic import choose_split, read_named_labels
    from evae.training.settings import stored_splits

    named, cell_types, names = read_named_labels(files, **keys)
    split, reason = choose_split(
        cell_types,
        names,
        named.control,
        hold_out_cell_type=cell_type,
        hold_out_perturbations=split_names(perturbations, set(names)),
        stored=stored_splits(),
    )
    say(f"to hold out: {reason}")
    return split
