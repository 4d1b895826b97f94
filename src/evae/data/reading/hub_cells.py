"""Cells of a Hub dataset in the layout of Tahoe-100M, streamed by `datasets` without a copy of it.

    expression_data  one row a cell: lists `genes` (token ids) and `expressions`, both with a marker as first element,
                     whose expression is negative; drug, sample, cell_line_id, plate, BARCODE_SUB_LIB_ID, ...
    gene_metadata    token_id, gene_symbol, ensembl_id
    sample_metadata  sample, drug, drugname_drugconc such as "[('Dabrafenib', 0.05, 'uM')]"; the control is DMSO_TF

The wanted cells alone are kept (see `spool`), file by file, so that a stream that broke off goes on with the next file.
The dose of a sample becomes `dose_value` and `dose_unit`.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from evae.common.files import atomic_write
from evae.common.hub import explain_hub_errors
from evae.common.progress import Bar
from evae.data.reading.spool import CELL_ID, GENES, LISTS, MANIFEST, finish
from evae.models.contract_evae import EvaeError, look_up, near_matches

CELLS, GENE_TABLE, SAMPLE_TABLE = "expression_data", "gene_metadata", "sample_metadata"
BARCODE = "BARCODE_SUB_LIB_ID"
LAYOUT = "the layout of Tahoe-100M (configurations expression_data, gene_metadata, sample_metadata)"
BATCH = 2_048  # cells
LISTS_THERE = ("genes", "expressions")


def fetch_cells(
    repo: str, where: Mapping[str, Sequence[str]], folder: Path, bar: Bar, named: Mapping[str, str | None] | None = None
) -> Path:
    """Stream the wanted cells of a dataset into a folder; what an earlier call left there is not fetched again.

    Args:
        repo: id of a Hub dataset.
        where: values of columns of the cells or of their samples.
        folder: where folders of such cells lie.
        bar: shows how far it is.
        named: values that some column of the samples must have, before anything long begins, as {"drug": "DMSO_TF"}.

    Returns:
        The folder of these cells, which `FileCounts` opens.

    Raises:
        EvaeError: another layout, no such column or value, or the Hub cannot be reached.
    """
    from datasets import get_dataset_config_names, load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from huggingface_hub import HfApi

    with explain_hub_errors(repo, "dataset"):
        commit = str(HfApi().dataset_info(repo).sha)
        try:
            found = get_dataset_config_names(repo, revision=commit)
        except EmptyDatasetError:
            found = ["no data"]
        if not {CELLS, GENE_TABLE, SAMPLE_TABLE} <= set(found):
            raise EvaeError(f"'{repo}' is not in {LAYOUT}; it has {', '.join(found)}. Fetch it, and name its files.")
        key = hashlib.sha256(json.dumps([repo, commit, sorted(where.items())]).encode()).hexdigest()[:16]
        target = folder / f"stream-{key}"
        if (target / MANIFEST).is_file():
            return target
        samples = _samples(repo, commit)
        for column, value in (named or {}).items():
            if value is not None and column in samples:
                look_up([value], sorted(map(str, samples[column].unique())), f"value of column '{column}'")
        builder = load_dataset_builder(repo, CELLS, revision=commit)
        files = [str(file) for split in builder.config.data_files.values() for file in split]
        reader = _Reader(_genes(repo, commit, target), samples, where)
        advance = bar.start("streaming cells", len(files))
        for i, file in enumerate(files):
            reader.keep(file, target / f"cells-{i:05d}.arrow")
            advance(1)
    notes = [f"{repo}: {reader.unknown:,} entries of genes that {GENE_TABLE} lacks are left out"]
    finish(target, f"{repo} ({commit[:7]})", notes if reader.unknown else [])
    return target


class _Reader:
    """Turns files of the stream into Arrow files of the wanted cells."""

    def __init__(self, genes: pd.DataFrame, samples: pd.DataFrame, where: Mapping[str, Sequence[str]]):
        self.place = np.full(int(genes["token_id"].max()) + 1, -1, dtype=np.int64)
        self.place[genes["token_id"]] = np.arange(len(genes))
        self.samples, self.where, self.unknown = samples, dict(where), 0
        self.filters: list[tuple[str, str, Any]] | None = None  # told by the columns of the first file

    def keep(self, file: str, target: Path) -> None:
        """Write the wanted cells of one file, unless they are there."""
        if target.is_file():
            return
        with atomic_write(target) as temporary:
            batches = self._batches(file)
            first = next(batches, None)
            if first is None:
                schema = pa.schema([(name, pa.list_(pa.int32())) for name in LISTS])
                pa.ipc.new_file(str(temporary), schema).close()
                return
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.ipc.new_file(str(temporary), first.schema, options=options) as out:
                out.write_batch(first)
                for batch in batches:
                    out.write_batch(batch)

    def _batches(self, file: str) -> Iterator[pa.RecordBatch]:
        from datasets import load_dataset

        stream = load_dataset("parquet", data_files=[file], split="train", streaming=True, filters=self.filters or None)
        columns = list(stream.features)
        needed = ("genes", "expressions", "sample", *(column for column, *_ in self.filters or ()))
        lacking = [name for name in needed if name not in columns]
        if lacking:
            raise EvaeError(f"{file} has no column {lacking[0]}; it is not in {LAYOUT}.")
        if self.filters is None:
            self.filters = self._filters(columns)
            if self.filters:
                yield from self._batches(file)
                return
        for table in stream.with_format("arrow").iter(batch_size=BATCH):
            if table.num_rows:
                yield self._cells(table.combine_chunks())

    def _filters(self, columns: list[str]) -> list[tuple[str, str, Any]]:
        """What Parquet itself can leave out; a value of the samples is one of the samples that have it."""
        filters: list[tuple[str, str, Any]] = []
        for column, values in self.where.items():
            if column in columns:
                filters.append((column, "in", list(values)))
            elif column in self.samples:
                known = sorted(map(str, self.samples[column].unique()))
                look_up(values, known, f"value of column '{column}'")
                rows = self.samples[self.samples[column].astype(str).isin(values)]
                filters.append(("sample", "in", rows["sample"].tolist()))
            else:
                raise EvaeError(f"there is no column '{column}'. {near_matches(column, [*columns, *self.samples])}")
        return filters

    def _cells(self, table: pa.Table) -> pa.RecordBatch:
        """Places and counts without the marker, and the labels as text."""
        lists = [pa.array([], pa.int32()) if not c.num_chunks else c.chunk(0) for c in map(table.column, LISTS_THERE)]
        lengths = lists[0].value_lengths().to_numpy(zero_copy_only=False)
        tokens, values = (column.flatten().to_numpy(zero_copy_only=False) for column in lists)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        marker = np.zeros(len(values), dtype=bool)
        first = starts[:-1][lengths > 0]
        marker[first] = values[first] < 0
        known = (tokens >= 0) & (tokens < len(self.place))
        place = np.where(known, self.place[np.where(known, tokens, 0)], -1)
        kept = ~marker & (place >= 0)
        self.unknown += int((~marker & (place < 0)).sum())
        ends = np.concatenate([[0], np.cumsum(kept)])[starts].astype(np.int32)
        columns = {
            "genes": pa.ListArray.from_arrays(ends, place[kept].astype(np.int32)),
            "counts": pa.ListArray.from_arrays(ends, values[kept].astype(np.float32)),
        }
        for name in table.column_names:
            if name not in LISTS_THERE:
                columns[CELL_ID if name == BARCODE else name] = pa.array(table[name].to_pandas().astype("string"))
        doses = self.samples.set_index("sample").reindex(table["sample"].to_pylist())
        for name in ("dose_value", "dose_unit"):
            columns[name] = pa.array(doses[name].astype("string").to_numpy(), pa.string())
        if CELL_ID not in columns:
            raise EvaeError(f"the cells have no names ({BARCODE}); they are not in {LAYOUT}.")
        return pa.RecordBatch.from_pydict(columns)


def _table(repo: str, commit: str, name: str, needed: tuple[str, ...]) -> pd.DataFrame:
    """A small table of the dataset, streamed."""
    from datasets import load_dataset

    stream = load_dataset(repo, name, split="train", streaming=True, revision=commit)
    parts = list(stream.with_format("arrow").iter(batch_size=100_000))
    table = pa.concat_tables(parts).to_pandas() if parts else pd.DataFrame()
    lacking = [column for column in needed if column not in table]
    if lacking:
        raise EvaeError(f"{name} of '{repo}' has no column {lacking[0]}; it is not in {LAYOUT}.")
    return table


def _genes(repo: str, commit: str, target: Path) -> pd.DataFrame:
    genes = _table(repo, commit, GENE_TABLE, ("token_id", "gene_symbol", "ensembl_id"))
    with atomic_write(target / GENES) as temporary:
        pq.write_table(pa.Table.from_pandas(genes[["gene_symbol", "ensembl_id"]], preserve_index=False), temporary)
    return genes


def _samples(repo: str, commit: str) -> pd.DataFrame:
    """The samples with their doses."""
    samples = _table(repo, commit, SAMPLE_TABLE, ("sample", "drugname_drugconc"))
    doses = [_dose(text) for text in samples["drugname_drugconc"]]
    samples["dose_value"], samples["dose_unit"] = zip(*doses, strict=True)
    return samples


def _dose(text: str) -> tuple[str, str]:
    """Dose and unit of `[('Dabrafenib', 0.05, 'uM')]`; those of several drugs are joined by a plus."""
    try:
        given = [(f"{float(dose):g}", str(unit)) for _, dose, unit in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        raise EvaeError(f"{SAMPLE_TABLE} has a dose {text!r}, which is not as Tahoe-100M writes it.") from None
    return "+".join(dose for dose, _ in given), "+".join(dict.fromkeys(unit for _, unit in given))
