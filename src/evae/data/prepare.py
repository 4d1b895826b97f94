"""From h5ad files of raw counts to a dataset folder of Parquet shards, in constant memory.

Every file is read twice in blocks of cells: once to check the counts and to measure them, once to write them
(`hvg:N` reads them twice more before). What grows with the number of cells are about 40 bytes a cell of
labels, totals and the shuffle. The folder is built as `OUT.partial` and renamed when it is whole.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from evae.data.card import dataset_card
from evae.data.describe import Cells, Totals, describe, describe_source, sha256
from evae.data.genes import Panel, match_panel, parse_genes
from evae.data.h5ad_reader import H5adCounts
from evae.data.hvg import highly_variable_scores
from evae.data.progress import Bar, progress_bar
from evae.data.shards import RowPlan, ShardWriter, cell_features, plan_rows
from evae.data.splits import Split, read_split
from evae.models.contract_evae import EvaeError, near_matches


def prepare_dataset(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    perturbation_key: str,
    cell_type_key: str,
    control: str,
    split: str | Path | dict[str, Any] | None = None,
    genes: str | Path = "all",
    layer: str | None = None,
    seed: int = 0,
    chunk_size: int = 8192,
    min_coverage: float = 0.8,
    progress: bool = True,
) -> Path:
    """Convert h5ad files of raw counts into a dataset folder.

    Args:
        files: one file or several; of several the genes that all of them measure are kept.
        out: the folder to make; must not exist, or be empty.
        perturbation_key, cell_type_key: the obs columns with the labels.
        control: the label of unperturbed cells in the column `perturbation_key`.
        split: what to hold out as `test` (see `evae.data.splits`): a JSON file or its content, "random:0.1",
            or None.
        genes: "all", "hvg:2000" (found on training cells) or a panel file (text, or JSON with key `genes`).
        layer: where the counts are: None for X, "raw", or the name of a layer.
        seed: of the shuffle, the validation cells and a random split.
        chunk_size: cells read at once.
        min_coverage: the least share of the panel that every file must measure.
        progress: show a progress bar.

    Returns:
        The path of the folder. Cells without counts over the panel are dropped; dataset.json says how many.

    Raises:
        EvaeError: bad input; nothing is left behind.
    """
    paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise EvaeError("no h5ad file was given.")
    with ExitStack() as stack:
        folder = stack.enter_context(_partial_folder(Path(out)))
        scratch = folder / "scratch"
        scratch.mkdir()
        bar = stack.enter_context(progress_bar(progress))
        sources = []
        for path in paths:
            sources.append(H5adCounts(path, layer, scratch))
            stack.callback(sources[-1].close)
        cells = _read_labels(sources, perturbation_key, cell_type_key, control)
        rule = read_split(
            split,
            cell_type_key=cell_type_key,
            perturbation_key=perturbation_key,
            cell_types=cells.cell_types,
            perturbations=cells.perturbations,
            control=control,
        )
        held_out = rule.held_out(cells.cell_type, cells.perturbation, cells.cell_types, cells.perturbations, seed)
        _check_split(rule, held_out)
        n_variable, wanted = parse_genes(genes)
        panel = match_panel(sources, wanted, min_coverage)
        if n_variable is not None:
            panel = _most_variable(sources, panel, n_variable, ~held_out, chunk_size, bar)
        totals = _measure(sources, panel, chunk_size, bar)
        plan = plan_rows(totals.panel > 0, held_out, seed, 6.0 * float(totals.expressed.mean()))
        meta = describe(cells, panel, totals, plan, control)
        meta["seed"], meta["sources"] = seed, [describe_source(s, panel, i) for i, s in enumerate(sources)]
        meta["perturbation_key"], meta["cell_type_key"] = perturbation_key, cell_type_key
        _write_cells(folder, scratch, sources, panel, cells, totals, plan, meta, chunk_size, bar)
        shutil.rmtree(scratch)
        _write_rest(folder, Path(out).name, cells, panel, plan, meta, rule)
    return Path(out)


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """`OUT.partial`, renamed to OUT at the end, removed on failure; a killed run's is replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaeError(f"{out} exists and is not empty; choose another folder or remove it first.")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_labels(sources: list[H5adCounts], perturbation_key: str, cell_type_key: str, control: str) -> Cells:
    columns = {}
    for key in (perturbation_key, cell_type_key):
        per_file = [s.labels(key) for s in sources]
        names = sorted({n for _, own in per_file for n in own})
        if key == perturbation_key:
            if control not in names:
                raise EvaeError(
                    f"no cell has the control label '{control}' in obs column '{key}'. {near_matches(control, names)}"
                )
            names = [control, *(n for n in names if n != control)]
        index = {n: i for i, n in enumerate(names)}
        recoded = [np.array([index[n] for n in own], dtype=np.int32)[codes] for codes, own in per_file]
        columns[key] = np.concatenate(recoded), names
    perturbation, cell_type = columns[perturbation_key], columns[cell_type_key]
    return Cells(perturbation[0], cell_type[0], perturbation[1], cell_type[1])


def _check_split(rule: Split, held_out: np.ndarray) -> None:
    if rule.to_dict() and not held_out.any():
        raise EvaeError("the split holds out no cell: its cell types and perturbations never occur together.")


def _panel_blocks(
    sources: list[H5adCounts], panel: Panel, chunk_size: int
) -> Iterator[tuple[H5adCounts, int, int, sp.csr_matrix, np.ndarray]]:
    """Blocks: file, row in the file, row over all files, counts over the panel, totals over all genes."""
    offset = 0
    for source, position in zip(sources, panel.positions, strict=True):
        column = np.full(len(source.genes), -1, dtype=np.int64)
        column[position] = np.arange(len(position))
        for start, block in source.blocks(chunk_size):
            full = np.asarray(block.sum(1)).ravel()
            new = column[block.indices]
            inside = new >= 0
            ends = np.concatenate([[0], np.cumsum(inside)])[block.indptr]
            counts = sp.csr_matrix((block.data[inside], new[inside], ends), shape=(block.shape[0], len(position)))
            counts.sort_indices()
            yield source, start, offset + start, counts, full
        offset += source.n_cells


def _most_variable(
    sources: list[H5adCounts], panel: Panel, n_variable: int, training: np.ndarray, chunk_size: int, bar: Bar
) -> Panel:
    n_genes = len(panel.genes)
    if n_variable > n_genes:
        raise EvaeError(f"hvg:{n_variable} asks for more genes than the {n_genes:,} that there are.")
    advance = bar.start("finding variable genes", 2 * len(training))

    def blocks() -> Iterator[sp.csr_matrix]:
        for _, _, first, counts, _ in _panel_blocks(sources, panel, chunk_size):
            yield counts[np.flatnonzero(training[first : first + counts.shape[0]])]
            advance(counts.shape[0])

    scores = highly_variable_scores(blocks, n_genes)
    return panel.take(np.sort(np.argsort(-scores, kind="stable")[:n_variable]))


def _measure(sources: list[H5adCounts], panel: Panel, chunk_size: int, bar: Bar) -> Totals:
    n = sum(s.n_cells for s in sources)
    totals = Totals(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int32), 0)
    advance = bar.start("checking counts", n)
    for _, _, first, counts, full in _panel_blocks(sources, panel, chunk_size):
        rows = slice(first, first + counts.shape[0])
        totals.panel[rows] = np.asarray(counts.sum(1)).ravel()
        totals.full[rows] = full
        totals.expressed[rows] = np.diff(counts.indptr)
        totals.max_count = max(totals.max_count, int(counts.data.max(initial=0)))
        advance(counts.shape[0])
    if not (totals.panel > 0).any():
        raise EvaeError("no cell has a single count over the gene panel; check the layer and the panel.")
    return totals


def _write_cells(
    folder: Path,
    scratch: Path,
    sources: list[H5adCounts],
    panel: Panel,
    cells: Cells,
    totals: Totals,
    plan: RowPlan,
    meta: dict[str, Any],
    chunk_size: int,
    bar: Bar,
) -> None:
    features = cell_features(cells.perturbations, cells.cell_types)
    dtypes = np.dtype(meta["gene_dtype"]), np.dtype(meta["count_dtype"])
    writer = ShardWriter(folder, scratch, plan, features, *dtypes, panel.genes)
    advance = bar.start("writing cells", 2 * len(plan.split))
    try:
        for source, row, first, counts, full in _panel_blocks(sources, panel, chunk_size):
            rows = slice(first, first + counts.shape[0])
            columns = {
                "perturbation": cells.perturbation[rows],
                "cell_type": cells.cell_type[rows],
                "library_size": full,
                "cell_id": source.cell_ids(row, row + counts.shape[0]),
            }
            writer.add(first, counts, columns)
            advance(counts.shape[0])
        writer.finish(advance)
    finally:
        writer.close()


def _write_rest(
    folder: Path, title: str, cells: Cells, panel: Panel, plan: RowPlan, meta: dict[str, Any], rule: Split
) -> None:
    """The vocabularies, the split, the statistics and the card."""
    genes = pa.table({"symbol": panel.genes, "ensembl_id": panel.ensembl_ids})
    pq.write_table(genes, folder / "genes.parquet")
    pq.write_table(pa.table({"name": cells.perturbations}), folder / "perturbations.parquet")
    pq.write_table(pa.table({"name": cells.cell_types}), folder / "cell_types.parquet")
    meta["shards"] = [{"path": path, "rows": rows, "sha256": sha256(folder / path)} for path, rows in plan.shards]
    split = rule.to_dict()
    (folder / "split.json").write_text(json.dumps(split, indent=1))
    (folder / "dataset.json").write_text(json.dumps(meta, indent=1))
    sizes = (len(panel.genes), len(cells.perturbations), len(cells.cell_types))
    (folder / "README.md").write_text(dataset_card(title, meta, split, sizes))
