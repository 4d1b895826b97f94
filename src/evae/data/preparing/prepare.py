"""h5ad files of raw counts become a dataset folder of Parquet shards, in constant memory.

Every file is read and checked once, block by block, and what was read is kept in the scratch folder in the narrowest
types (`kept_blocks`), for the check of knock-downs, the variable genes, the totals and the shards. Several blocks and
shards are worked on at once, a thread a core. The folder is built as `OUT.partial` and renamed when it is whole.

Memory holds a block of cells or a shard for every thread, and of every cell its labels, totals and place: about 60
bytes, at times 300. Peaks of `evae prepare` on two cores (`scripts/benchmark_prepare.py`):

  1,000,000 cells x  2,000 genes    841 MB    CSR, 11 % expressed
     25,000 cells x 20,000 genes    274 MB    dense, 2 GB in memory
    250,000 cells x 20,000 genes    350 MB    dense, 20 GB in memory
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evae.common.digests import file_digest, file_stamp
from evae.common.files import write_json, write_text
from evae.common.logs import logger
from evae.common.progress import progress_bar
from evae.data.format import FORMAT_VERSION, TREATMENTS, treatment_table
from evae.data.preparing.card import dataset_card
from evae.data.preparing.convert import Conversion, measure, with_variable_genes, write_cells
from evae.data.preparing.describe import CellLabels, describe, describe_source
from evae.data.preparing.entry_checks import COPIES, Asked, Check, check_entry
from evae.data.preparing.genes import match_panel, parse_genes
from evae.data.preparing.labelling import attach_labels, chosen, join_columns, read_labels, with_values
from evae.data.preparing.remarks import FEW, check_given_once, copied_cells, remarks
from evae.data.preparing.shards import RowPlan, plan_rows
from evae.data.preparing.splits import Split, parse_split
from evae.data.preparing.treatments import TreatmentKeys
from evae.data.preparing.work_folder import work_folder
from evae.data.preparing.workers import open_sources, runner
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.hub_cells import fetch_cells
from evae.models.contract_evae import EvaeError

LOG = logger(__name__)


def prepare_dataset(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    hub: str | None = None,
    perturbation_key: str | None = None,
    cell_type_key: str | None = None,
    control: str | None = None,
    batch_key: str | None = None,
    obs: str | Path | None = None,
    drop: Sequence[str] = (),
    min_cells: int = FEW,
    guide_key: str | None = None,
    dose_key: str | None = None,
    dose_unit: str | None = None,
    time_key: str | None = None,
    time_unit: str | None = None,
    kind_key: str | None = None,
    parse_labels: bool = False,
    split: str | Path | dict[str, Any] | None = None,
    genes: str | Path = "all",
    layer: str | None = None,
    seed: int = 0,
    chunk_size: int = 8192,
    aliases: str | Path | None = None,
    cell_types: Sequence[str] | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    min_coverage: float = 0.8,
    progress: bool = True,
) -> Path:
    """Convert h5ad files of raw counts into a dataset folder.

    Args:
        files: one file or several, of any format that `evae.data.reading.formats` lists; of several the genes that
            all of them measure are kept.
        out: the folder to make; must not exist, or be empty.
        hub: in place of files (an empty list): id of a Hub dataset in the layout of Tahoe-100M, whose wanted cells are
            streamed (see `evae.data.reading.hub_cells`).
        perturbation_key, cell_type_key: the obs columns with the labels; found by their usual names if None (see
            `evae.data.preparing.conventions`).
        batch_key: the obs column that names the experimental batch (plate, lane, donor), or several with commas; None
            for none. Cells are paired within batches.
        control: the label of unperturbed cells in the column `perturbation_key`; found likewise if None.
        obs: a table with more columns of the cells, by their names, for files without labels, as those of 10x.
        drop: what to leave out of what the checks find (see `evae.data.preparing.entry_checks`).
        min_cells: with fewer cells, controls aside, a perturbation has too few.
        guide_key: the obs column of a cell's guides, or of their number.
        dose_key, time_key, kind_key: obs columns by which treatments with one agent are told apart (see
            `evae.data.preparing.treatments`): "DrugA" becomes "DrugA 10 uM 24 h".
        dose_unit, time_unit: their units, or the obs columns that hold them. By default the usual columns where there
            are such, and hours.
        parse_labels: read dose, time and kind from labels such as DrugA_10uM_24h instead.
        split: what to hold out as `test` (see `evae.data.preparing.splits`): a JSON file or its content, "random:0.1",
            a short name such as "unseen-cell-type:NK" (see `evae.data.preparing.regimes`), or None.
        genes: "all", "hvg:2000" (found on training cells) or a panel file (text, or JSON with key `genes`).
        layer: where the counts are: None for X, "raw", the name of a layer, or "auto" for whichever holds them.
        seed: of the shuffle, the validation cells and what a split draws.
        chunk_size: cells read at once.
        aliases: other names of genes (see `evae.data.preparing.genes.read_aliases`).
        cell_types: one for each file, instead of the obs column `cell_type_key`, which then only names them.
        where: keep the cells with this value, or one of these, in each of these obs columns; others are left out.
        min_coverage: the least share of the panel that every file must measure.
        progress: show a progress bar.

    Returns:
        The path of the folder. Cells without counts over the panel are dropped; dataset.json says how many.

    Raises:
        EvaeError: bad input; nothing is left behind. After anything else, a kill or a full disk, the same call
            goes on where it stopped.
    """
    paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
    if bool(paths) == bool(hub) or chunk_size < 1:
        raise EvaeError("give at least one file, or else a Hub dataset, and a chunk size of at least 1.")
    check_given_once(paths)
    wanted = {key: [value] if isinstance(value, str) else list(value) for key, value in (where or {}).items()}
    out = Path(out)
    with ExitStack() as stack:
        work = stack.enter_context(work_folder(out))
        bar = stack.enter_context(progress_bar(progress))
        if hub is not None:
            work.keep = True
            told = {perturbation_key or "drug": control}
            paths, work.keep = [fetch_cells(hub, wanted, work.opened, bar, told)], False
        sources = open_sources(paths, layer, work.opened)
        for source in sources:
            stack.callback(source.close)
        treatment_keys = TreatmentKeys(dose_key, dose_unit, time_key, time_unit, kind_key, parse_labels)
        named = attach_labels(sources, obs, perturbation_key, cell_type_key, control, treatment_keys)
        perturbation_key, cell_type_key, control = named.perturbation_key, named.cell_type_key, named.control
        _say([*(note for source in sources for note in source.notes), *named.notes])
        if batch_key:
            join_columns(sources, batch_key)
        asked = Asked(named, batch_key, cell_types, tuple(drop), min_cells, guide_key)
        run = runner(sources, layer, work.opened)
        kept, labels, checks = check_entry(sources, asked, chosen(sources, wanted), chunk_size, run, bar)
        rule = parse_split(
            split,
            cell_type_key=cell_type_key,
            perturbation_key=perturbation_key,
            cell_types=labels.cell_types,
            perturbations=labels.perturbations,
            control=control,
            cells=labels.table(kept),
            seed=seed,
            treatments=labels.treatments,
        )
        kept, held_out = _divide(rule, labels, kept, sources, seed, control)
        if rule.left_out:  # a perturbation that is left out everywhere is no part of the vocabulary
            labels = read_labels(sources, named, cell_types, kept, batch_key)
        n_variable, named_genes = parse_genes(genes)
        panel = match_panel(sources, named_genes, min_coverage, aliases)
        keys = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "control": control, "seed": seed}
        keys |= {"batch_key": batch_key} if batch_key else {}
        keys |= treatment_keys.used
        job = {
            "evae_version": version("evae"), "format": FORMAT_VERSION, "layer": layer, **keys,
            "files": [file_stamp(p) for p in paths],
            "cell_types": cell_types and list(cell_types),
            "where": wanted, "split": rule.to_dict(),
            "genes": panel.genes, "variable": n_variable, "chunk_size": chunk_size,
            "obs": obs and file_stamp(Path(obs)), "drop": sorted(drop), "min_cells": min_cells, "guide_key": guide_key,
        }  # fmt: skip
        work.begin(job)
        conversion = Conversion(sources, labels, kept, held_out, rule, panel, keys, chunk_size, work.path, run, bar)
        _convert(conversion, out.name, n_variable, checks, COPIES in drop)
    return out


def _say(notes: Iterable[str]) -> None:
    for sentence in notes:
        LOG.warning(f"note: {sentence}")


def _convert(
    conversion: Conversion, title: str, n_variable: int | None, checks: list[Check], drop_copies: bool
) -> None:
    """Fill the folder; every step skips what it finds done."""
    if n_variable is not None:
        conversion = with_variable_genes(conversion, n_variable)
    panel, kept = conversion.panel, conversion.kept
    totals = measure(conversion)
    seed, control = conversion.keys["seed"], conversion.keys["control"]
    row_bytes = 6.0 * float(totals.expressed.mean())
    filled = kept & (totals.panel > 0)
    again, copies = copied_cells(conversion.sources, totals, filled)
    checks = [
        *checks,
        Check(COPIES, "cells that stand more than once", int(again.sum()), int(again.sum()), drop_copies),
    ]
    filled &= ~(again & drop_copies)
    plan = plan_rows(filled, conversion.held_out, seed, row_bytes, conversion.labels.perturbation)
    meta = describe(conversion.labels, panel, totals, plan, control) | conversion.keys
    meta["dropped_cells"] -= int((~kept).sum())  # those were not asked for
    meta["sources"] = [describe_source(s, panel, i) for i, s in enumerate(conversion.sources)]
    meta["remarks"] = remarks(conversion.labels, meta, control, "" if drop_copies else copies)
    meta["checks"] = [asdict(check) for check in checks]
    _say(meta["remarks"])
    write_cells(conversion, totals, plan, meta)
    _write_rest(conversion, title, plan, meta)
    shutil.rmtree(conversion.scratch)


def _divide(
    rule: Split, labels: CellLabels, kept: np.ndarray, sources: list[FileCounts], seed: int, control: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which cells are kept and which of these are held out, (cells,) bool each."""
    codes = (labels.cell_type, labels.perturbation, labels.cell_types, labels.perturbations)
    if rule.key:
        perturbed = labels.perturbation != labels.perturbations.index(control)
        held_out = kept & with_values(sources, rule.key, rule.values) & perturbed
    else:
        held_out = kept & rule.held_out(*codes, seed)
        kept = kept & ~rule.dropped(*codes)
    if rule.to_dict() and not held_out.any():
        raise EvaeError("the split holds out no cell: its cell types and perturbations never occur together.")
    return kept, held_out


def _write_rest(conversion: Conversion, title: str, plan: RowPlan, meta: dict[str, Any]) -> None:
    """The vocabularies, the split, the statistics and the card."""
    folder, panel, labels = conversion.folder, conversion.panel, conversion.labels
    genes = pa.table({"symbol": panel.genes, "ensembl_id": panel.ensembl_ids})
    pq.write_table(genes, folder / "genes.parquet")
    pq.write_table(pa.table({"name": labels.perturbations}), folder / "perturbations.parquet")
    pq.write_table(pa.table({"name": labels.cell_types}), folder / "cell_types.parquet")
    if labels.treatments:
        pq.write_table(treatment_table(labels.treatments), folder / TREATMENTS)
    meta["shards"] = [{"path": path, "rows": rows, "sha256": file_digest(folder / path)} for path, rows in plan.shards]
    split = conversion.split.to_dict()
    write_json(folder / "split.json", split)
    write_json(folder / "dataset.json", meta)
    sizes = (len(panel.genes), len(labels.perturbations), len(labels.cell_types), len(labels.treatments))
    write_text(folder / "README.md", dataset_card(title, meta, split, sizes))
