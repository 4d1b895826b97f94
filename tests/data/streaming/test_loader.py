import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch

import evae.data.streaming.loader as module
from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.loader import CellLoader, DatasetInfo, resolve_dataset
from evae.data.streaming.split_anndata import read_split
from evae.models.contract_evae import EvaeError


@pytest.fixture
def small_windows(monkeypatch):
    """Several windows an epoch even in a small folder."""
    monkeypatch.setattr(module, "WINDOW_ROWS", 200)


def _signatures(batch) -> list[tuple]:
    """One hashable description of every cell of a batch."""
    columns = (batch["gene_ids"], batch["counts"], batch["perturbation_ids"], batch["cell_type_ids"])
    cells = []
    for genes, counts, perturbation, cell_type in zip(*(c.numpy() for c in columns), strict=True):
        kept = counts > 0
        cells.append((int(perturbation), int(cell_type), genes[kept].tobytes(), counts[kept].tobytes()))
    return cells


def _sequence(loader, limit=None) -> list[list[tuple]]:
    batches = []
    for batch in loader:
        batches.append(_signatures(batch))
        if limit is not None and len(batches) == limit:
            break
    return batches


def _flat(batches) -> list[tuple]:
    return [cell for batch in batches for cell in batch]


def _stored(folder, split) -> list[tuple]:
    """The cells of a split in stored order, described as `_signatures` does."""
    cells = read_split(folder, split)
    X = cells.X.sorted_indices()
    labels = zip(cells.obs["perturbation"].cat.codes, cells.obs["cell_type"].cat.codes, strict=True)
    return [
        (int(p), int(t), row.indices.astype(np.int32).tobytes(), row.data.astype(np.float32).tobytes())
        for (p, t), row in zip(labels, X, strict=True)
    ]


def _plain_batch(cells, rows: np.ndarray) -> dict[str, np.ndarray]:
    """A sparse batch of these rows, made cell by cell."""
    width = max(8, -(-int(np.diff(cells.X.indptr)[rows].max()) // 8) * 8)
    genes, counts = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        begin, end = cells.X.indptr[row : row + 2]
        genes[i, : end - begin], counts[i, : end - begin] = cells.X.indices[begin:end], cells.X.data[begin:end]
    names = ("perturbation", "cell_type")
    labels = {f"{name}_ids": cells.obs[name].cat.codes.to_numpy(np.int64)[rows] for name in names}
    return {"gene_ids": genes, "counts": counts, "library_size": counts.sum(1), **labels}


@pytest.mark.parametrize("world_size", [1, 4])
def test_batches_are_what_a_plain_loop_makes(folder, small_windows, world_size):
    """Bit for bit."""
    cells = read_split(folder, "train")
    loader = CellLoader(folder, batch_size=24, epochs=1, rank=world_size - 1, world_size=world_size, prefetch=0)
    for batch in loader:
        plain = _plain_batch(cells, loader.rows_of(1))
        assert {name: column.numpy().tobytes() for name, column in batch.items()} == {
            name: column.tobytes() for name, column in plain.items()
        }
        assert all(batch[name].dtype == torch.from_numpy(column).dtype for name, column in plain.items())


def test_a_sparse_batch_is_what_the_cells_are(folder):
    cells = read_split(folder, "train")
    start = 0
    for batch in CellLoader(folder, batch_size=100, shuffle=False, epochs=1, drop_last=False):
        n, width = batch["counts"].shape
        own = cells[start : start + n]
        expressed = np.diff(own.X.indptr)
        assert width % 8 == 0
        assert width - 8 < expressed.max() <= width
        assert {k: str(v.dtype) for k, v in batch.items()} == {
            "gene_ids": "torch.int32", "counts": "torch.float32", "library_size": "torch.float32",
            "perturbation_ids": "torch.int64", "cell_type_ids": "torch.int64",
        }  # fmt: skip
        dense = np.zeros(own.shape)
        np.add.at(dense, (np.arange(n)[:, None], batch["gene_ids"].numpy()), batch["counts"].numpy())
        np.testing.assert_array_equal(dense, own.X.toarray())
        np.testing.assert_array_equal((batch["counts"] > 0).sum(1), expressed)
        assert not batch["gene_ids"][batch["counts"] == 0].any()
        np.testing.assert_array_equal(batch["library_size"], own.obs["library_size"])
        np.testing.assert_array_equal(batch["perturbation_ids"], own.obs["perturbation"].cat.codes)
        np.testing.assert_array_equal(batch["cell_type_ids"], own.obs["cell_type"].cat.codes)
        start += n
    assert start == cells.n_obs


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 11])  # 8 shards
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_cover_every_cell_once_an_epoch(folder, small_windows, world_size, shuffle):
    options = {
        "batch_size": 16,
        "world_size": world_size,
        "epochs": 1,
        "shuffle": shuffle,
        "drop_last": False,
    }
    ranks = [_flat(_sequence(CellLoader(folder, rank=r, **options))) for r in range(world_size)]
    assert sorted(c for rank in ranks for c in rank) == sorted(_stored(folder, "train"))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_dropping_the_last_batch_gives_every_rank_the_same_number(folder, small_windows, world_size):
    loaders = [CellLoader(folder, batch_size=50, rank=r, world_size=world_size, epochs=2) for r in range(world_size)]
    ranks = [_sequence(loader) for loader in loaders]
    n_train = DatasetInfo.load(folder).n_cells["train"]
    assert {len(r) for r in ranks} == {2 * (n_train // world_size // 50)}
    assert {len(b) for r in ranks for b in r} == {50}
    assert loaders[0].batches_per_epoch == n_train // world_size // 50
    epoch = [c for r in ranks for c in _flat(r[: len(r) // 2])]
    assert len(set(epoch)) == len(epoch)


def test_epochs_differ_and_seeds_differ_and_repeat(folder):
    batches = _sequence(CellLoader(folder, batch_size=128, epochs=2, drop_last=False))
    half = len(batches) // 2
    first, second = _flat(batches[:half]), _flat(batches[half:])
    assert first != second
    assert sorted(first) == sorted(second)
    assert first != _stored(folder, "train")
    assert _sequence(CellLoader(folder, batch_size=128, epochs=2, drop_last=False)) == batches
    assert _sequence(CellLoader(folder, batch_size=128, epochs=2, drop_last=False, seed=1)) != batches


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 3}, {"drop_last": False}, {"shuffle": False}])
def test_resume_is_exact_after_every_batch(folder, small_windows, options, prefetch):
    """The state taken after any batch, mid window or at an epoch's end, whatever had been prefetched."""
    options = {"batch_size": 64, "epochs": 2, "prefetch": prefetch, **options}
    whole = _sequence(CellLoader(folder, **options))
    loader = CellLoader(folder, **options)
    states = [loader.state_dict()] + [loader.state_dict() for _ in loader]
    assert len(states) == len(whole) + 1
    for done, state in enumerate(states):
        resumed = CellLoader(folder, **options)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert _sequence(resumed) == whole[done:]


def test_resume_of_an_endless_loader_across_epochs(folder, small_windows):
    whole = _sequence(CellLoader(folder, batch_size=64), limit=80)
    loader = CellLoader(folder, batch_size=64)
    parts: list = []
    while len(parts) < 80:
        parts += _sequence(loader, limit=min(7, 80 - len(parts)))
        state = loader.state_dict()
        loader = CellLoader(folder, batch_size=64)
        loader.load_state_dict(state)
    assert parts == whole


def test_a_broken_off_loop_goes_on_and_a_finished_one_starts_over(folder):
    loader = CellLoader(folder, batch_size=64, epochs=1)
    whole = _sequence(loader)
    assert _sequence(loader) == whole
    assert _sequence(loader, limit=3) + _sequence(loader) == whole
    _sequence(loader, limit=3)
    loader.reset()
    assert _sequence(loader) == whole


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 1}, "seed"), ({"batch_size": 32}, "global_batch"), ({"world_size": 2}, "global_batch"),
     ({"shuffle": False}, "lanes"), ({"world_size": 16, "batch_size": 4}, "lanes")],
)  # fmt: skip
def test_a_state_of_another_order_is_refused(folder, change, name):
    state = CellLoader(folder, batch_size=64).state_dict()
    with pytest.raises(EvaeError, match=f"cannot resume the data: {name} was"):
        CellLoader(folder, **({"batch_size": 64} | change)).load_state_dict(state)


@pytest.mark.parametrize("batch_size", [56, 8])
def test_ranks_together_read_what_one_reads_alone(folder, small_windows, batch_size):
    """Batch by batch and in the same order, across the end of an epoch, and resumed with another number of ranks."""

    def ranks(world_size, state=None):
        loaders = [CellLoader(folder, batch_size=batch_size // world_size, rank=r, world_size=world_size)
                   for r in range(world_size)]  # fmt: skip
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        n = loaders[0].batches_per_epoch + 5
        batches = [_sequence(loader, limit=n) for loader in loaders]
        return [_flat(parts) for parts in zip(*batches, strict=True)], loaders[0].state_dict()

    alone, state = ranks(1)
    after, _ = ranks(1, state)
    for world_size in (2, 4, 8):
        assert ranks(world_size)[0] == alone
        assert ranks(world_size, state)[0] == after


def test_a_sorted_file_comes_out_mixed(simulated, keys, tmp_path):
    """The share of controls in batches varies as in fair draws."""
    order = np.argsort(simulated.obs["perturbation"].cat.codes, kind="stable")
    simulated[order].write_h5ad(tmp_path / "sorted.h5ad")
    folder = prepare_dataset(tmp_path / "sorted.h5ad", tmp_path / "out", **keys)
    shares = [float((b["perturbation_ids"] == 0).float().mean()) for b in CellLoader(folder, batch_size=50, epochs=20)]
    n_train = DatasetInfo.load(folder).n_cells["train"]
    p = DatasetInfo.load(folder).statistics["cell_counts"]["train"]
    p = sum(row["control"] for row in p.values()) / n_train
    fair = p * (1 - p) / 50 * (n_train - 50) / (n_train - 1)
    assert 0.75 < np.var(shares) / fair < 1.3  # 560 batches: three standard deviations


def test_fewer_cells_than_a_batch(folder):
    n = DatasetInfo.load(folder).n_cells["validation"]
    with pytest.raises(EvaeError, match=rf"use a batch_size of at most {n}\."):
        CellLoader(folder, "validation", batch_size=4096)
    (batch,) = CellLoader(folder, "validation", batch_size=4096, epochs=1, drop_last=False)
    assert len(batch["counts"]) == n


def test_bad_arguments(folder, h5ad, keys, tmp_path):
    with pytest.raises(EvaeError, match=r"no split 'valid'\. Did you mean 'validation'"):
        CellLoader(folder, "valid")
    with pytest.raises(EvaeError, match="rank < world_size"):
        CellLoader(folder, rank=2, world_size=2)
    whole = prepare_dataset(h5ad, tmp_path / "whole", **keys)
    for read in (CellLoader, read_split):
        with pytest.raises(EvaeError, match=r"'test' of .* holds no cells; prepare it with a split"):
            read(whole, "test")


def test_what_is_no_dataset(folder, tmp_path):
    with pytest.raises(EvaeError, match="no such dataset folder"):
        DatasetInfo.load(tmp_path / "nowhere")
    with pytest.raises(EvaeError, match=r"not a dataset folder \(no dataset\.json\)"):
        DatasetInfo.load(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "genes.parquet").unlink()
    with pytest.raises(EvaeError, match="is incomplete"):
        DatasetInfo.load(tmp_path / "copy")
    shutil.copytree(folder, tmp_path / "newer")
    meta = json.loads((folder / "dataset.json").read_text()) | {"format_version": 99}
    (tmp_path / "newer" / "dataset.json").write_text(json.dumps(meta))
    with pytest.raises(EvaeError, match="has format 99"):
        DatasetInfo.load(tmp_path / "newer")


def test_a_hub_id_that_is_not_there(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("An error happened\nPlease check your connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(EvaeError) as caught:
        resolve_dataset("evae/nothing")
    assert "the Hub cannot be reached, and 'evae/nothing' is neither a local folder" in str(caught.value)
    assert "\n" not in str(caught.value)
