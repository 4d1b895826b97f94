"""Datasets of format 1, whose rows hold gene indices and counts of fixed widths, give what those of today give."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from evae.data.streaming.leakage import leakage
from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.data.streaming.split_anndata import read_split
from evae.data.streaming.stream import CellStream


@pytest.fixture(scope="module")
def first_format(folder, decoded, tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("first") / "folder"
    shutil.copytree(folder, copy)
    meta = json.loads((copy / "dataset.json").read_text())
    for shard in copy.glob("data/*.parquet"):
        table = pq.read_table(shard)
        cells = [decoded(folder, cell) for cell in table.select(["genes", "counts", "high"]).to_pylist()]
        known = json.loads(table.schema.metadata[b"huggingface"])
        del known["info"]["features"]["high"]
        known["info"]["features"]["genes"]["id"] = known["info"]["features"]["genes"]["id"].removeprefix("steps over ")
        for i, (name, dtype) in enumerate((("genes", meta["gene_dtype"]), ("counts", meta["count_dtype"]))):
            column = pa.array([cell[i].astype(dtype).tobytes() for cell in cells], pa.binary())
            table = table.set_column(i, name, column)
        table = table.drop_columns("high")
        table = table.replace_schema_metadata(table.schema.metadata | {b"huggingface": json.dumps(known)})
        pq.write_table(table, shard, row_group_size=meta["row_group_rows"], compression="zstd")
    (copy / "dataset.json").write_text(json.dumps(meta | {"format_version": 1}))
    assert DatasetInfo.load(folder).statistics["format_version"] == 2
    return copy


def _same(ours, theirs) -> int:
    n = 0
    for own, other in zip(ours, theirs, strict=True):
        assert {name: column.numpy().tobytes() for name, column in own.items()} == {
            name: column.numpy().tobytes() for name, column in other.items()
        }
        n += 1
    return n


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_batches_are_the_same_bit_for_bit(folder, first_format, epochs):
    options = {"batch_size": 24, "epochs": epochs, "seed": 3}
    assert _same(CellLoader(folder, **options), CellLoader(first_format, **options)) > 10 * epochs


def test_a_stream_gives_the_same_batches(folder, first_format):
    rows = [load_dataset(str(place), split="train", streaming=True) for place in (folder, first_format)]
    for panel in (folder, first_format):
        assert _same(*(CellStream(cells, panel, 24, epochs=1) for cells in rows)) > 10


def test_the_cells_in_memory_are_the_same(folder, first_format):
    ours, theirs = (read_split(place, "test") for place in (folder, first_format))
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    assert leakage(folder) == leakage(first_format)
