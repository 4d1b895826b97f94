"""The steps of a conversion, block of cells by block of cells; each leaves files by which a killed run goes on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from evae.common.files import atomic_write, write_json
from evae.common.progress import Bar
from evae.data.preparing.describe import Cells, Totals
from evae.data.preparing.genes import Panel
from evae.data.preparing.hvg import Sums, block_sums, scores_of_sums
from evae.data.preparing.shards import RowPlan, gather_shard, scatter_rows
from evae.data.preparing.workers import Run
from evae.data.reading.h5ad import H5adCounts
from evae.data.reading.panel import over_panel
from evae.data.rows import binary_rows, cell_features, shard_schema
from evae.models.contract_evae import EvaeError


@dataclass(frozen=True)
class Block:
    """A run of cells of one file: start..stop there, first.. over all files."""

    number: int
    source: int
    start: int
    stop: int
    first: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.stop - self.start)

    def file(self, folder: Path) -> Path:
        """Where this block's result of a step lies."""
        return folder / f"{self.number:06d}"


def all_blocks(sources: list[H5adCounts], chunk_size: int) -> list[Block]:
    blocks: list[Block] = []
    first = 0
    for i, source in enumerate(sources):
        blocks += [
            Block(len(blocks) + n, i, *ends, first + ends[0]) for n, ends in enumerate(source.ranges(chunk_size))
        ]
        first += source.n_cells
    return blocks


def panel_counts(source: H5adCounts, position: np.ndarray, block: Block) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts over the panel (cells, panel) CSR int64, and totals over all genes (cells,) int64."""
    counts = source.block(block.start, block.stop)
    column = np.full(source.n_genes, -1, dtype=np.int64)
    column[position] = np.arange(len(position))
    return over_panel(counts, column, len(position)), np.asarray(counts.sum(1)).ravel()


def most_variable(
    run: Run, blocks: list[Block], panel: Panel, n_variable: int, training: np.ndarray, bar: Bar
) -> Panel:
    """The sub-panel of the `n_variable` most variable genes of the training cells."""
    n_genes = len(panel.genes)
    if n_variable > n_genes:
        raise EvaeError(f"hvg:{n_variable} asks for more genes than the {n_genes:,} that there are.")
    advance = bar.start("finding variable genes", 2 * len(training))

    def sums(limit: np.ndarray | None) -> Iterator[Sums]:
        tasks = ((b, panel.positions[b.source], training[b.rows], limit) for b in blocks)
        for block, found in zip(blocks, run(_sums, tasks), strict=True):
            advance(block.stop - block.start)
            yield found

    scores = scores_of_sums(sums)
    return panel.take(np.sort(np.argsort(-scores, kind="stable")[:n_variable]))


def _sums(
    sources: list[H5adCounts], block: Block, position: np.ndarray, training: np.ndarray, limit: np.ndarray | None
) -> Sums:
    counts, _ = panel_counts(sources[block.source], position, block)
    return block_sums(counts[np.flatnonzero(training)], limit)


def measure(run: Run, blocks: list[Block], panel: Panel, folder: Path, bar: Bar) -> Totals:
    """Check the counts of all cells and add them up."""
    n = blocks[-1].rows.stop
    totals = Totals(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int32), 0)
    advance = bar.start("checking counts", n)
    missing = [b for b in blocks if not b.file(folder).is_file()]
    done = run(_measure, ((b, panel.positions[b.source], b.file(folder)) for b in missing))
    ready = {b.number for b in blocks} - {b.number for b in missing}
    for block in blocks:
        if block.number not in ready:
            next(done)
        found = pq.read_table(block.file(folder))
        for name in ("panel", "full", "expressed"):
            getattr(totals, name)[block.rows] = found[name].to_numpy()
        totals.max_count = max(totals.max_count, int(found["largest"][0].as_py()))
        advance(found.num_rows)
    if not (totals.panel > 0).any():
        raise EvaeError("no cell has a single count over the gene panel; check the layer and the panel.")
    return totals


def _measure(sources: list[H5adCounts], block: Block, position: np.ndarray, path: Path) -> None:
    counts, full = panel_counts(sources[block.source], position, block)
    columns = {
        "panel": np.asarray(counts.sum(1)).ravel(),
        "full": full,
        "expressed": np.diff(counts.indptr).astype(np.int32),
        "largest": np.full(len(full), counts.data.max(initial=0)),
    }
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def write_cells(
    run: Run,
    blocks: list[Block],
    panel: Panel,
    cells: Cells,
    plan: RowPlan,
    meta: dict[str, Any],
    folder: Path,
    scratch: Path,
    bar: Bar,
) -> None:
    """The shards: every block scattered by shard, then every shard gathered."""
    schema = shard_schema(cell_features(cells.perturbations, cells.cell_types), panel.genes)
    dtypes = np.dtype(meta["gene_dtype"]), np.dtype(meta["count_dtype"])
    advance = bar.start("writing cells", len(plan.split))
    missing = [b for b in blocks if not b.file(scratch).is_file()]
    advance(len(plan.split) - sum(b.stop - b.start for b in missing))
    shard = np.where(plan.split >= 0, plan.shard, -1)
    tasks = (
        (b, panel.positions[b.source], schema, dtypes, cells.perturbation[b.rows], cells.cell_type[b.rows],
         shard[b.rows], plan.place[b.rows], b.file(scratch))
        for b in missing
    )  # fmt: skip
    for block, _ in zip(missing, run(_scatter, tasks), strict=True):
        advance(block.stop - block.start)
    advance = bar.start("ordering shards", sum(n for _, n in plan.shards))
    files = [b.file(scratch) for b in blocks]
    left = [(i, n, folder / name) for i, (name, n) in enumerate(plan.shards) if not (folder / name).is_file()]
    advance(sum(n for _, n in plan.shards) - sum(n for _, n, _ in left))
    gathered = run(_gather, ((files, i, schema, meta["row_group_rows"], path) for i, _, path in left))
    for (_, n, path), found in zip(left, gathered, strict=True):
        assert found == n, f"{path} holds {found} cells, not {n}"
        advance(n)


def _scatter(
    sources: list[H5adCounts],
    block: Block,
    position: np.ndarray,
    schema: pa.Schema,
    dtypes: tuple[np.dtype, np.dtype],
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    shard: np.ndarray,
    place: np.ndarray,
    path: Path,
) -> None:
    source = sources[block.source]
    counts, full = panel_counts(source, position, block)
    columns = (perturbation, cell_type, full, source.cell_ids(block.start, block.stop))
    rows = pa.record_batch(
        [
            binary_rows(counts.indices.astype(dtypes[0]), counts.indptr),
            binary_rows(counts.data.astype(dtypes[1]), counts.indptr),
            *(pa.array(values, type=f.type) for values, f in zip(columns, list(schema)[2:], strict=True)),
        ],
        schema=schema,
    )
    scatter_rows(rows, shard, place, path)


def _gather(
    sources: list[H5adCounts], files: list[Path], shard: int, schema: pa.Schema, group_rows: int, target: Path
) -> int:
    return gather_shard(files, shard, schema, group_rows, target)


def remembered_panel(path: Path, panel: Panel) -> Panel | None:
    """The sub-panel that a killed run had found already."""
    if not path.is_file():
        return None
    index = {gene: i for i, gene in enumerate(panel.genes)}
    return panel.take(np.array([index[gene] for gene in json.loads(path.read_text())]))


def remember_panel(path: Path, panel: Panel) -> None:
    write_json(path, panel.genes)
