"""Bad data met while streaming: the error names the file, and the row where there is one."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evae.data.preparing.prepare import prepare_dataset
from evae.data.rows import RowFormat
from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.models.contract_evae import EvaeError


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("damage", ["missing", "cut", "zeroed"])
def test_a_damaged_shard_is_named(folder, tmp_path, damage, prefetch):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = sorted(copy.glob("data/train-*"))[3]
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    else:
        shard.write_bytes(content[:200] + bytes(2000) + content[2200:])
    with pytest.raises(EvaeError, match=shard.name):
        list(CellLoader(copy, epochs=1, prefetch=prefetch))


@pytest.mark.parametrize(("name", "kind"), [("genes", "gene index"), ("perturbations", "perturbation")])
def test_rows_that_the_vocabularies_do_not_cover_are_named(folder, tmp_path, name, kind):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for shard in copy.glob("data/*"):  # as made before shards said which panel they count in
        pq.write_table(pq.read_table(shard).replace_schema_metadata(None), shard, row_group_size=40)
    pq.write_table(pq.read_table(copy / f"{name}.parquet").slice(0, 3), copy / f"{name}.parquet")
    meta = json.loads((copy / "dataset.json").read_text()) | {"row_group_rows": 40}
    (copy / "dataset.json").write_text(json.dumps(meta))
    with pytest.raises(EvaeError) as caught:
        list(CellLoader(copy, epochs=1))
    found = re.search(rf"row (\d+) of (\S+) has the {kind} (\d+), outside 0 to 2", str(caught.value))
    table = pq.read_table(found[2]).slice(int(found[1]), 1)
    genes = RowFormat.of(DatasetInfo.load(copy)).cells(table).indices()
    assert int(found[3]) in (genes if name == "genes" else table["perturbation"].to_numpy())


@pytest.mark.parametrize("window_rows", [64, 8192])
def test_a_shard_of_fewer_rows_than_stated_is_named(folder, tmp_path, monkeypatch, window_rows):
    """Also where a window holds the first rows only, which are there."""
    monkeypatch.setattr("evae.data.streaming.loader.WINDOW_ROWS", window_rows)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shard = copy / "data" / "train-00002-of-00008.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, len(table) - 5), shard)
    stated = rf"row group 0 of \S+{shard.name} has {len(table) - 5} rows, not {len(table)};"
    with pytest.raises(EvaeError, match=stated):
        list(CellLoader(copy, batch_size=16, epochs=1))


@pytest.mark.parametrize("value", [0, 255])
def test_a_count_that_cannot_be_is_named_with_its_row(folder, tmp_path, value):
    """A count of zero, or one above the largest that dataset.json states."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert DatasetInfo.load(copy).statistics["max_count"] < 255
    shard = copy / "data" / "train-00002-of-00008.parquet"
    table = pq.read_table(shard)
    counts = table["counts"].to_pylist()
    counts[17] = counts[17][:1] + bytes([value]) + counts[17][2:]
    pq.write_table(table.set_column(1, table.schema.field("counts"), pa.array(counts, pa.binary())), shard)
    with pytest.raises(EvaeError, match=rf"row 17 of .*{shard.name} has the count {value}, outside 1 to"):
        list(CellLoader(copy, epochs=1))


def test_a_row_without_a_count_for_each_gene_is_named(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shard = copy / "data" / "train-00002-of-00008.parquet"
    table = pq.read_table(shard)
    counts = table["counts"].to_pylist()
    counts[23] = counts[23][:-1]
    pq.write_table(table.set_column(1, table.schema.field("counts"), pa.array(counts, pa.binary())), shard)
    with pytest.raises(EvaeError, match=rf"row 23 of .*{shard.name} has not one count for each gene"):
        list(CellLoader(copy, epochs=1))


@pytest.mark.parametrize(
    ("column", "damage", "says"),
    [
        ("high", lambda _: np.array([5_000, 1], "<u4").tobytes(), "damaged high numbers"),
        ("high", lambda _: np.array([0, 1 << 20], "<u4").tobytes(), "damaged high numbers"),
        ("high", lambda _: np.array([0], "<u4").tobytes(), "damaged high numbers"),
        ("genes", lambda genes: genes[:2] + bytes(1) + genes[3:], "genes that are not in the panel's order"),
    ],
)
def test_bytes_that_mean_no_cell_are_named_with_their_row(folder, tmp_path, column, damage, says):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shard = copy / "data" / "train-00002-of-00008.parquet"
    table = pq.read_table(shard)
    values = table[column].to_pylist()
    values[17] = damage(values[17])
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column), pa.array(values, pa.binary())), shard)
    with pytest.raises(EvaeError, match=rf"row 17 of .*{shard.name} has {says}"):
        list(CellLoader(copy, epochs=1))


def test_a_shard_over_another_panel_is_named(folder, simulated, keys, tmp_path):
    """Same number of genes in another order: no index is out of range, only the shard knows."""
    simulated[:, ::-1].write_h5ad(tmp_path / "reversed.h5ad")
    other = prepare_dataset(tmp_path / "reversed.h5ad", tmp_path / "other", **keys)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copy(other / "data" / "train-00005-of-00008.parquet", copy / "data")
    with pytest.raises(EvaeError, match=r"train-00005-of-00008\.parquet holds cells over another gene panel"):
        list(CellLoader(copy, epochs=1))
