"""Cells out of an `IterableDataset` of HF `datasets`: the right ones, shared among ranks, resumed exactly."""

import copy
import json
from itertools import islice

import anndata as ad
import datasets
import numpy as np
import pytest
from datasets import Value, concatenate_datasets, interleave_datasets, load_dataset

import evae.data.streaming.stream as module
from evae.data import CellLoader, CellStream, Dataset
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.stream_rows import CellReader
from evae.models.contract_evae import EvaeError

KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Several windows an epoch even in a small folder."""
    monkeypatch.setattr(module, "WINDOW_ROWS", 60)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    simulate_perturb_seq(n_cells=400, n_genes=70, n_perturbations=5, n_cell_types=2, seed=3).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def folder(h5ad):
    return prepare_dataset(h5ad, h5ad.parent / "dataset", split="random:0.1", **KEYS)


@pytest.fixture
def cells(folder):
    return load_dataset(str(folder), split="train", streaming=True)


@pytest.fixture(scope="module")
def other(h5ad, folder):
    """Other datasets by name: one over another panel; one over the same, of fewer perturbations and wider counts."""
    cells = ad.read_h5ad(h5ad)
    cells = cells[cells.obs["perturbation"] != Dataset.open(folder).info.perturbations[1]].copy()
    cells.X.data[0] = 300
    cells.write_h5ad(h5ad.parent / "fewer.h5ad")
    panel = h5ad.parent / "genes.txt"
    panel.write_text("\n".join(Dataset.open(folder).info.genes))
    return {
        "another panel": prepare_dataset(h5ad, h5ad.parent / "another", genes="hvg:40", **KEYS),
        "same panel": prepare_dataset(h5ad.parent / "fewer.h5ad", h5ad.parent / "same", genes=str(panel), **KEYS),
    }


def described(batch) -> list[tuple]:
    columns = (batch[name].numpy() for name in ("gene_ids", "counts", "perturbation_ids", "cell_type_ids"))
    return [(int(p), int(t), g[c > 0].tobytes(), c[c > 0].tobytes()) for g, c, p, t in zip(*columns, strict=True)]


def flat(batches) -> list[tuple]:
    return [cell for batch in batches for cell in described(batch)]


def seen(stream):
    """Batches, and the state after each."""
    for batch in stream:
        yield described(batch), stream.state_dict()


def of_type(kind):
    return lambda cell: cell["cell_type"] == kind


def in_memory(cells, wanted=lambda cell: True):
    """The cells from memory: `datasets` sleeps for 5 s whenever Parquet files that it shuffles or interleaves end."""
    rows = [cell for cell in cells if wanted(cell)]
    return datasets.Dataset.from_list(rows, features=cells.features).to_iterable_dataset(num_shards=8)


STREAMS = {
    "plain": lambda cells: cells,
    "filtered": lambda cells: cells.filter(of_type(0)),
    "mapped": lambda cells: cells.map(lambda cell: {"cell_id": "x"}, features=cells.features),
    "mapped in batches": lambda cells: cells.map(
        lambda batch: {"cell_id": [f"{i}!" for i in batch["cell_id"]]},
        batched=True, batch_size=50, features=cells.features,
    ),
    "shuffled": lambda cells: in_memory(cells).shuffle(seed=3, buffer_size=100),
    "shuffled and filtered": lambda cells: in_memory(cells).shuffle(seed=3, buffer_size=40).filter(of_type(0)),
    "taken": lambda cells: cells.skip(30).take(250),
    "interleaved": lambda cells: interleave_datasets(
        [in_memory(cells, of_type(0)), in_memory(cells, of_type(1))], probabilities=[0.7, 0.3], seed=1
    ),
    "concatenated": lambda cells: concatenate_datasets([cells.filter(of_type(1)), cells.filter(of_type(0))]),
    "with a column less": lambda cells: cells.remove_columns("cell_id").with_format("numpy"),
}  # fmt: skip


@pytest.mark.parametrize("shuffle", [True, False])
def test_all_cells_come_once_an_epoch(folder, cells, shuffle):
    here = flat(CellLoader(folder, batch_size=50, shuffle=False, epochs=1, drop_last=False))
    stream = CellStream(cells, folder, batch_size=50, shuffle=shuffle, epochs=1, drop_last=False)
    there = flat(stream)
    assert sorted(there) == sorted(here)
    assert (there == here) is not shuffle
    assert flat(stream) == there  # a finished one starts over


def test_epochs_and_seeds_differ(folder, cells):
    two = flat(CellStream(cells, folder, batch_size=50, epochs=2, drop_last=False))
    first, second = two[: len(two) // 2], two[len(two) // 2 :]
    assert first != second
    assert sorted(first) == sorted(second)
    assert flat(CellStream(cells, folder, batch_size=50, epochs=1, drop_last=False, seed=1)) != first


def test_datasets_shuffles_anew_in_every_epoch(folder, cells):
    options = {"batch_size": 20, "epochs": 2, "shuffle": False, "drop_last": False}
    two = flat(CellStream(in_memory(cells).shuffle(seed=3, buffer_size=100), folder, **options))
    assert two[: len(two) // 2] != two[len(two) // 2 :]
    assert sorted(two[: len(two) // 2]) == sorted(two[len(two) // 2 :])


def test_the_last_batch_of_an_epoch_is_dropped_or_not(folder, cells):
    n = Dataset.open(folder).info.n_cells["train"]
    assert n % 50
    assert [len(b["counts"]) for b in CellStream(cells, folder, batch_size=50, epochs=2)] == [50] * (n // 50) * 2
    sizes = [len(b["counts"]) for b in CellStream(cells, folder, batch_size=50, epochs=2, drop_last=False)]
    assert sizes == ([50] * (n // 50) + [n % 50]) * 2


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("ranks", [1, 2, 3])  # of 8 shards
def test_a_stop_after_any_batch_changes_nothing(folder, cells, name, ranks):
    made = STREAMS[name](cells)
    options = {"batch_size": 20, "epochs": 2, "rank": ranks - 1, "world_size": ranks}
    stream = CellStream(made, folder, **options)
    states, whole = [stream.state_dict()], []
    for batch in stream:
        whole.append(described(batch))
        states.append(json.dumps(stream.state_dict()))
    assert len(whole) >= 4
    for done in [*range(1, len(states) - 1, 2), len(states) - 1]:  # the last one is the end
        resumed = CellStream(copy.deepcopy(made), folder, prefetch=0, **options)
        resumed.load_state_dict(json.loads(states[done]))
        assert [described(batch) for batch in islice(resumed, 4)] == whole[done : done + 4]


def test_two_streams_of_the_same_cells_do_not_disturb_each_other(folder, cells, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_ROWS", 10)
    made = cells.filter(of_type(0))
    options = {"batch_size": 5, "epochs": 1, "prefetch": 0, "world_size": 3}  # of 8 shards: every third row
    alone = CellStream(made, folder, **options)
    expected = list(seen(alone))
    first, second = CellStream(made, folder, **options), CellStream(made, folder, **options)
    one, two = seen(first), seen(second)
    begun = list(islice(one, 5))
    assert [next(two), *begun, *one] == [expected[0], *expected]
    assert list(two) == expected[1:]


@pytest.mark.parametrize(("name", "again"), [("plain", False), ("shuffled and filtered", True)])
def test_only_a_shuffled_stream_is_read_again_from_the_beginning(folder, cells, name, again, monkeypatch):
    made = STREAMS[name](cells)
    stream = CellStream(made, folder, batch_size=20, epochs=1, prefetch=0)
    later = [state for _, state in seen(stream) if state["window"]["first"]]
    read, whole = [], CellReader.__call__
    monkeypatch.setattr(CellReader, "__call__", lambda *args: read.append(args[2]) or whole(*args))
    for state in later:
        resumed = CellStream(made, folder, batch_size=20, prefetch=0)
        resumed.load_state_dict(state | {"batch": state["batch"] - 1})
        next(iter(resumed))
    assert (0 in read) is again
    assert again or len(read) == len(later)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", ["plain", "shuffled and filtered"])
def test_ranks_share_the_cells(folder, cells, ranks, name):
    made = STREAMS[name](cells)
    options = {"batch_size": 16, "epochs": 1, "drop_last": False}
    shares = [flat(CellStream(made, folder, rank=r, world_size=ranks, **options)) for r in range(ranks)]
    assert all(shares)
    assert sorted(cell for share in shares for cell in share) == sorted(flat(CellStream(made, folder, **options)))


def test_a_single_shard_is_shared_too(folder, cells):
    rows = datasets.Dataset.from_list(list(cells), features=cells.features).to_iterable_dataset()
    assert rows.num_shards == 1
    shares = [flat(CellStream(rows, folder, 16, rank=r, world_size=2, epochs=1, drop_last=False)) for r in range(2)]
    assert [len(share) for share in shares] == [-(-len(list(cells)) // 2), len(list(cells)) // 2]


def test_labels_are_matched_by_name_and_counts_may_be_wider(folder, other):
    mine, theirs = Dataset.open(folder).info, Dataset.open(other["same panel"]).info
    assert (
        theirs.perturbations != mine.perturbations[: len(theirs.perturbations)] or theirs.cell_types != mine.cell_types
    )
    assert theirs.statistics["count_dtype"] != mine.statistics["count_dtype"]
    cells = load_dataset(str(other["same panel"]), split="train", streaming=True)
    options = {"batch_size": 30, "shuffle": False, "epochs": 1, "drop_last": False}
    seen = 0
    for ours, own in zip(CellStream(cells, folder, **options), CellLoader(other["same panel"], **options), strict=True):
        for name in ("gene_ids", "counts", "library_size"):
            np.testing.assert_array_equal(ours[name], own[name])
        for name, here, there in (("perturbation_ids", mine.perturbations, theirs.perturbations),
                                  ("cell_type_ids", mine.cell_types, theirs.cell_types)):  # fmt: skip
            assert [here[i] for i in ours[name]] == [there[i] for i in own[name]]
        seen += len(ours["counts"])
    assert seen == theirs.n_cells["train"]


def test_other_cells_than_before_are_refused(folder, cells):
    cells = in_memory(cells)
    stream = CellStream(cells.shuffle(seed=1), folder, batch_size=30)
    for _ in zip(range(6), stream, strict=False):
        pass
    resumed = CellStream(cells.shuffle(seed=2), folder, batch_size=30)
    resumed.load_state_dict(stream.state_dict())
    with pytest.raises(EvaeError, match="does not give the cells again"):
        next(iter(resumed))


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 8}, {"world_size": 2}, {"shuffle": False}])
def test_a_state_of_another_order_is_refused(folder, cells, change):
    state = CellStream(cells, folder, batch_size=30).state_dict()
    with pytest.raises(EvaeError, match="cannot resume the data"):
        CellStream(cells, folder, **({"batch_size": 30} | change)).load_state_dict(state)


def changed(name, value):
    return lambda cells: cells.map(lambda cell: {name: value(cell[name])}, features=cells.features)


REFUSED = {
    "are a list, not an IterableDataset": lambda cells: list(cells.take(3)),
    "are a Dataset, not an IterableDataset": lambda cells: datasets.Dataset.from_list(list(cells.take(3))),
    "have no column counts;": lambda cells: cells.rename_column("counts", "expression"),
    "have no column counts and no perturbation;": lambda cells: cells.remove_columns(["counts", "perturbation"]),
    "types of the cells' columns are lost": lambda cells: cells.map(lambda cell: cell),
    "column perturbation of the cells must be a ClassLabel": lambda cells: cells.cast_column(
        "perturbation", Value("int64")
    ),
    "column counts of the cells must be binary": lambda cells: cells.cast_column("counts", Value("string")),
    "do not say that they count over the gene panel": lambda cells: cells.cast_column("genes", Value("binary")),
    "fewer cells than batch_size=8": lambda cells: cells.take(5),
    "has the gene index 255, outside 0 to 69": changed("genes", lambda genes: b"\xff" * len(genes)),
    "has the count 0, outside 1 to 255": changed("counts", lambda counts: b"\0" * len(counts)),
    "have no column high;": lambda cells: cells.remove_columns("high"),
    "has not one count for each gene; read and map the cells unformatted": changed("genes", lambda genes: genes[:-1]),
    "has rows without cell_type": changed("cell_type", lambda label: None),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_stream_of_cells_is_refused(folder, cells, message):
    with pytest.raises(EvaeError, match=message):
        next(iter(CellStream(REFUSED[message](cells), folder, batch_size=8, prefetch=0)))


def test_cells_over_another_panel_are_refused(folder, other):
    cells = load_dataset(str(other["another panel"]), split="train", streaming=True)
    with pytest.raises(EvaeError, match=f"do not say that they count over the gene panel of {folder}"):
        CellStream(cells, folder)


def test_labels_that_the_dataset_does_not_have_are_refused(cells, other, folder):
    with pytest.raises(EvaeError, match="unknown perturbation"):
        list(CellStream(cells, other["same panel"], batch_size=8, epochs=1))


def test_a_rank_with_too_few_cells_is_named(folder, cells):
    with pytest.raises(EvaeError, match="the share of rank 1 of the stream holds fewer cells than batch_size=8"):
        next(iter(CellStream(cells.take(12), folder, 8, rank=1, world_size=2, prefetch=0)))
