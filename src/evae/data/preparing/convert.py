"""The steps of a conversion, one block of cells after the other.

Every block leaves a file, so a conversion that was killed does only what is missing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from evae.common.files import atomic_write, write_json
from evae.common.progress import Bar
from evae.data.preparing.describe import CellLabels, Totals
from evae.data.preparing.genes import Panel
from evae.data.preparing.hvg import Sums, block_sums, scores_of_sums
from evae.data.preparing.kept_blocks import Block, all_blocks, kept_counts, let_go, row_totals
from evae.data.preparing.shards import RowPlan, gather_shard, scatter_rows
from evae.data.preparing.splits import Split
from evae.data.preparing.workers import Run
from evae.data.reading.file_counts import FileCounts
from evae.data.rows import cell_features, shard_schema, stored_cells
from evae.models.contract_evae import EvaeError

SCATTERED = 1 << 23  # counts that are sorted by shard at once


@dataclass(frozen=True)
class Conversion:
    """A conversion of files into a dataset folder: all that its steps share.

    Attributes:
        sources: the files.
        labels: of the cells of all files.
        kept: which cells are wanted, (cells,) bool.
        held_out: which of them become the split `test`, (cells,) bool.
        split: the rule behind `held_out`.
        panel: the genes to keep.
        keys: perturbation_key, cell_type_key, control and seed, as dataset.json holds them.
        chunk_size: cells read at once.
        folder: where the dataset is built.
        run: does the work on blocks, in this process or in several.
        bar: shows how far it is.
    """

    sources: list[FileCounts]
    labels: CellLabels
    kept: np.ndarray
    held_out: np.ndarray
    split: Split
    panel: Panel
    keys: dict[str, Any]
    chunk_size: int
    folder: Path
    run: Run
    bar: Bar

    @cached_property
    def blocks(self) -> list[Block]:
        """All cells of all files, block by block."""
        return all_blocks(self.sources, self.chunk_size)

    @property
    def scratch(self) -> Path:
        """Where the steps keep the results of their blocks."""
        return self.folder / "scratch"

    def position(self, block: Block) -> np.ndarray:
        """Where the genes of the panel stand in the file of a block, (panel,)."""
        return self.panel.positions[block.source]


@dataclass(frozen=True)
class BlockRows:
    """How the cells of neighbouring blocks become rows of shards.

    Attributes:
        blocks: the cells, all of one file.
        position: of the panel's genes in the file, (panel,).
        schema: of the shards.
        perturbation, cell_type, batch: codes of the labels, (cells,).
        shard: where each cell goes, -1 for cells to drop, (cells,).
        place: of each cell within its split, (cells,).
        path: the file to write.
    """

    blocks: list[Block]
    position: np.ndarray
    schema: pa.Schema
    perturbation: np.ndarray
    cell_type: np.ndarray
    batch: np.ndarray | None
    shard: np.ndarray
    place: np.ndarray
    path: Path


def with_variable_genes(conversion: Conversion, n_variable: int) -> Conversion:
    """The conversion with the `n_variable` genes of its panel that vary most among the training cells.

    Raises:
        EvaeError: the panel has fewer genes.
    """
    panel, path = conversion.panel, conversion.scratch / "panel.json"
    if n_variable > len(panel.genes):
        raise EvaeError(f"hvg:{n_variable} asks for more genes than the {len(panel.genes):,} that there are.")
    if path.is_file():  # found by a run that was killed later
        index = {gene: i for i, gene in enumerate(panel.genes)}
        chosen = np.array([index[gene] for gene in json.loads(path.read_text())])
    else:
        chosen = np.sort(np.argsort(-_variability(conversion), kind="stable")[:n_variable])
        write_json(path, panel.take(chosen).genes)
    return replace(conversion, panel=panel.take(chosen))


def _variability(conversion: Conversion) -> np.ndarray:
    """How much each gene of the panel varies among the training cells, (panel,)."""
    training = conversion.kept & ~conversion.held_out
    advance = conversion.bar.start("finding variable genes", 2 * len(training))

    def sums(limit: np.ndarray | None) -> Iterator[Sums]:
        tasks = ((b, conversion.position(b), training[b.rows], limit) for b in conversion.blocks)
        for block, found in zip(conversion.blocks, conversion.run(_sums, tasks), strict=True):
            advance(block.stop - block.start)
            yield found

    return scores_of_sums(sums)


def _sums(
    sources: list[FileCounts], block: Block, position: np.ndarray, training: np.ndarray, limit: np.ndarray | None
) -> Sums:
    return block_sums(kept_counts(sources, block).over(position).matrix[np.flatnonzero(training)], limit)


def measure(conversion: Conversion) -> Totals:
    """Check the counts of all cells and add them up."""
    blocks, folder = conversion.blocks, conversion.scratch / "measured"
    n = blocks[-1].rows.stop
    totals = Totals.empty(n)
    advance = conversion.bar.start("checking counts", n)
    missing = [b for b in blocks if not b.file(folder).is_file()]
    done = conversion.run(_measure, ((b, conversion.position(b), b.file(folder)) for b in missing))
    ready = {b.number for b in blocks} - {b.number for b in missing}
    for block in blocks:
        if block.number not in ready:
            next(done)
        found = pq.read_table(block.file(folder))
        for name in ("panel", "full", "expressed", "name"):
            getattr(totals, name)[block.rows] = found[name].to_numpy()
        totals.max_count = max(totals.max_count, int(found["largest"][0].as_py()))
        advance(found.num_rows)
    if not (totals.panel > 0).any():
        raise EvaeError("no cell has a single count over the gene panel; check the layer and the panel.")
    return totals


def _measure(sources: list[FileCounts], block: Block, position: np.ndarray, path: Path) -> None:
    whole = kept_counts(sources, block)
    counts, names = whole.over(position), sources[block.source].cell_ids(block.start, block.stop)
    columns = {
        "panel": whole.full if counts is whole else row_totals(counts),
        "full": whole.full,
        "expressed": np.diff(counts.indptr).astype(np.int32),
        "name": pd.util.hash_array(names.astype(object), categorize=False),
        "largest": np.full(len(whole.full), int(counts.data.max(initial=0))),
    }
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def write_cells(conversion: Conversion, totals: Totals, plan: RowPlan, meta: dict[str, Any]) -> None:
    """Write the shards: sort the cells of some blocks by shard, then bring the rows of every shard together.

    Args:
        conversion: what is converted.
        totals: of all cells.
        plan: where every cell goes.
        meta: the content of dataset.json.
    """
    labels = conversion.labels
    genes = conversion.panel.genes
    features = cell_features(genes, labels.perturbations, labels.cell_types, labels.batches)
    schema = shard_schema(features, genes)
    files = _scatter_blocks(conversion, totals, plan, schema)
    shards = [(i, n, conversion.folder / name) for i, (name, n) in enumerate(plan.shards)]
    left = [(i, n, path) for i, n, path in shards if not path.is_file()]
    n_left, n_all = (sum(n for _, n, _ in some) for some in (left, shards))
    advance = conversion.bar.start("ordering shards", n_all, n_all - n_left)
    gathered = conversion.run(_gather, ((files, i, schema, meta["row_group_rows"], path) for i, _, path in left))
    for (_, n, path), found in zip(left, gathered, strict=True):
        assert found == n, f"{path} holds {found} cells, not {n}"
        advance(n)


def _scatter_blocks(conversion: Conversion, totals: Totals, plan: RowPlan, schema: pa.Schema) -> list[Path]:
    """Sort the cells of neighbouring blocks by shard; returns the files."""
    folder, labels = conversion.scratch / "scattered", conversion.labels
    runs = _runs(conversion.blocks, totals.expressed)
    files = [folder / f"{i:06d}" for i in range(len(runs))]
    missing = [(run, file) for run, file in zip(runs, files, strict=True) if not file.is_file()]
    sizes = [run[-1].rows.stop - run[0].first for run, _ in missing]
    advance = conversion.bar.start("writing cells", len(plan.split), len(plan.split) - sum(sizes))
    shard = np.where(plan.split >= 0, plan.shard, -1)
    tasks = (
        BlockRows(
            blocks=run,
            position=conversion.position(run[0]),
            schema=schema,
            perturbation=labels.perturbation[rows],
            cell_type=labels.cell_type[rows],
            batch=None if labels.batch is None else labels.batch[rows],
            shard=shard[rows],
            place=plan.place[rows],
            path=file,
        )
        for run, file in missing
        for rows in [slice(run[0].first, run[-1].rows.stop)]
    )
    for size, _ in zip(sizes, conversion.run(_scatter, ((task,) for task in tasks)), strict=True):
        advance(size)
    return files


def _runs(blocks: list[Block], expressed: np.ndarray) -> list[list[Block]]:
    """Neighbouring blocks of one file, of at most `SCATTERED` counts together: fewer files for every shard to look in.

    Args:
        blocks: all cells.
        expressed: genes of every cell over the panel, (cells,).
    """
    runs: list[list[Block]] = []
    held = 0
    for block in blocks:
        own = int(expressed[block.rows].sum())
        if runs and runs[-1][0].source == block.source and held + own <= SCATTERED:
            runs[-1].append(block)
            held += own
        else:
            runs.append([block])
            held = own
    return runs


def _scatter(sources: list[FileCounts], to: BlockRows) -> None:
    rows = pa.Table.from_batches([_rows(sources, block, to) for block in to.blocks]).combine_chunks().to_batches()[0]
    scatter_rows(rows, to.shard, to.place, to.path)
    for block in to.blocks:
        let_go(sources, block)


def _rows(sources: list[FileCounts], block: Block, to: BlockRows) -> pa.RecordBatch:
    counts = kept_counts(sources, block).over(to.position)
    first = block.first - to.blocks[0].first
    own = slice(first, first + block.stop - block.start)
    columns = [to.perturbation[own], to.cell_type[own], counts.full]
    columns += [sources[block.source].cell_ids(block.start, block.stop), *([] if to.batch is None else [to.batch[own]])]
    return pa.record_batch(
        [
            *stored_cells(counts.indices, counts.data, counts.indptr),
            *(pa.array(values, type=f.type) for values, f in zip(columns, list(to.schema)[3:], strict=True)),
        ],
        schema=to.schema,
    )


def _gather(
    sources: list[FileCounts], files: list[Path], shard: int, schema: pa.Schema, group_rows: int, target: Path
) -> int:
    return gather_shard(files, shard, schema, group_rows, target)
