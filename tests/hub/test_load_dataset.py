"""Dataset folders and datasets on the Hub, read by `datasets` itself: all rows, named labels, exact resume."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, load_dataset
from datasets.distributed import split_dataset_by_node
from huggingface_hub import HfApi

from evae.data.format import Dataset

REPO = "evae/rows"


@pytest.fixture(params=["folder", "hub"])
def source(request: pytest.FixtureRequest, screen_dataset: Path) -> str:
    if request.param == "folder":
        return str(screen_dataset)
    request.getfixturevalue("hub")
    api = HfApi(token="hf_writer")
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=screen_dataset)
    return REPO


def test_datasets_reads_all_rows(source, screen_dataset, decoded, tmp_path):
    info = Dataset.open(screen_dataset).info
    plain = load_dataset(source, split="train", cache_dir=str(tmp_path / "cache"))
    streamed = load_dataset(source, split="train", streaming=True)
    assert len(plain) == info.n_cells["train"]
    rows = list(streamed)
    assert rows == list(plain)
    for name, known in (("perturbation", info.perturbations), ("cell_type", info.cell_types)):
        for found in (plain, streamed):
            assert isinstance(found.features[name], ClassLabel)
            assert found.features[name].names == list(known)
    for row in rows:  # unformatted: datasets 5.2.0 cuts zero bytes off under the formats numpy and torch
        indices, counts = decoded(screen_dataset, row)
        assert (np.diff(indices) > 0).all()
        assert len(indices) == len(counts)
    for found in (plain, streamed):
        row = next(iter(found.with_format("torch")))
        assert isinstance(row["perturbation"], torch.Tensor)
        assert int(row["perturbation"]) == rows[0]["perturbation"]

    for found in (plain, streamed):
        shares = [list(split_dataset_by_node(found, rank, 2)) for rank in range(2)]
        assert all(shares)
        assert sorted(row["cell_id"] for share in shares for row in share) == sorted(row["cell_id"] for row in rows)

    for done in (1, 70, len(rows) - 1):
        stopped = load_dataset(source, split="train", streaming=True)
        for _ in zip(range(done), stopped, strict=False):
            pass
        resumed = load_dataset(source, split="train", streaming=True)
        resumed.load_state_dict(stopped.state_dict())
        assert list(resumed) == rows[done:]


def test_a_stateful_loader_resumes_in_the_middle(screen_dataset):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader():
        rows = load_dataset(str(screen_dataset), split="train", streaming=True)
        return StatefulDataLoader(rows.select_columns(["cell_id", "perturbation"]), batch_size=7)

    stopped = iter(first := loader())
    for _ in range(3):
        next(stopped)
    state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [batch["cell_id"] for batch in resumed] == [batch["cell_id"] for batch in stopped] != []


def test_polars_reads_the_shards(screen_dataset, decoded):
    polars = pytest.importorskip("polars", reason="polars comes with the extra eval")
    info = Dataset.open(screen_dataset).info
    cells = polars.scan_parquet(screen_dataset / "data" / "train-*.parquet")
    sizes = dict(cells.group_by("perturbation").len().collect().iter_rows())
    expected = dict.fromkeys(info.perturbations, 0)
    for row in info.statistics["cell_counts"]["train"].values():
        for name, n in row.items():
            expected[name] += n
    assert {info.perturbations[i]: n for i, n in sizes.items()} == {name: n for name, n in expected.items() if n}
    row = cells.head(1).collect().row(0, named=True)
    genes, counts = decoded(screen_dataset, row)
    assert len(genes) == len(counts)
    assert counts.sum() <= row["library_size"]


def test_duckdb_reads_the_shards(screen_dataset, decoded):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is in the extra dev")
    info = Dataset.open(screen_dataset).info
    shards, names = screen_dataset / "data" / "train-*.parquet", screen_dataset / "perturbations.parquet"
    query = f"""
        select name, count(*) from '{shards}' cells
        join (select row_number() over () - 1 as id, name from '{names}') on cells.perturbation = id group by name
    """
    expected = Counter()
    for row in info.statistics["cell_counts"]["train"].values():
        expected.update(row)
    assert dict(duckdb.sql(query).fetchall()) == {name: n for name, n in expected.items() if n}
    columns = ("genes", "counts", "high")
    (row,) = duckdb.sql(f"select {', '.join(columns)} from '{shards}' limit 1").fetchall()
    genes, counts = decoded(screen_dataset, dict(zip(columns, row, strict=True)))
    assert len(genes) == len(counts) > 0
