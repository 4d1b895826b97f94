"""Several datasets as one: shares of a batch, translated ids, ranks, resuming, and what does not go together."""

import json

import numpy as np
import pytest
import torch

from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.data.streaming.mixture import Sources
from evae.models.contract_evae import EvaeError


@pytest.fixture(scope="module")
def other(simulated, keys, tmp_path_factory):
    """500 of the cells under other names: a perturbation and a cell type are new, and the vocabularies sort anew."""
    place = tmp_path_factory.mktemp("other")
    cells = simulated[::3].copy()
    second = cells.obs["perturbation"].cat.categories[2]
    cells.obs["perturbation"] = cells.obs["perturbation"].cat.rename_categories({second: "A_FIRST"})
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"type_A": "type_Z"})
    cells.write_h5ad(place / "cells.h5ad")
    return prepare_dataset(place / "cells.h5ad", place / "other", **keys)


def described(batch, info):
    """Every cell of a batch with the names of its labels."""
    columns = (batch[name].numpy() for name in ("gene_ids", "counts", "perturbation_ids", "cell_type_ids"))
    return [
        (info.perturbations[p], info.cell_types[t], genes[counts > 0].tobytes(), counts[counts > 0].tobytes())
        for genes, counts, p, t in zip(*columns, strict=True)
    ]


def taken(batches, n):
    source = iter(batches)
    return [next(source) for _ in range(n)]


def test_a_batch_holds_its_share_of_each_and_the_names_stay(folder, other):
    sources = Sources([folder, other], [3, 1])
    assert sources.quotas(40) == [30, 10]
    batches = taken(sources.training_batches(40, seed=2), 60)
    for path, rows in ((folder, 30), (other, 10)):
        info = DatasetInfo.load(path)
        alone = [described(batch, info) for batch in taken(CellLoader(path, batch_size=rows, seed=2), 60)]
        for batch, own in zip(batches, alone, strict=True):
            assert set(own) <= set(described(batch, sources.info))
    assert {len(batch["counts"]) for batch in batches} == {40}


def test_a_dataset_without_a_cell_in_the_batch_is_named_with_the_setting(folder, other):
    sources = Sources([folder, other], [3, 1])
    with pytest.raises(EvaeError, match="raise batch_size or its weight"):
        sources.quotas(1)
    with pytest.raises(EvaeError, match="raise calibration_cells or its weight"):
        sources.sample(1, seed=0)


@pytest.mark.parametrize(("batch_size", "quotas"), [(256, [168, 88]), (64, [43, 21]), (32, [21, 11]), (33, [22, 11])])
def test_shares_are_rounded_so_that_ranks_can_part_them(folder, other, batch_size, quotas):
    sources = Sources([folder, other], [2, 1])
    assert sources.batch_quotas(batch_size) == quotas
    assert sources.batch_quotas(3, 8) == [2, 1]  # 16 and 8 cells of 24
    assert sources.batch_quotas(11, 3) == [7, 4]  # three ranks: each rounds its own
    for ranks in (2, 4, 8):
        assert [n * ranks for n in sources.batch_quotas(256 // ranks, ranks)] == [168, 88]
    alone = Sources([folder, other], [5, 2])  # eights are too far off, so each rank rounds its own
    assert [alone.batch_quotas(32 // ranks, ranks) for ranks in (1, 2, 4)] == [[23, 9], [11, 5], [6, 2]]


def test_without_weights_every_cell_is_seen_equally_often(folder, other):
    n = [DatasetInfo.load(path).n_cells["train"] for path in (folder, other)]
    assert Sources([folder, other]).shares == pytest.approx([n[0] / sum(n), n[1] / sum(n)])


def test_one_dataset_is_itself(folder):
    sources = Sources([folder])
    assert sources.info == DatasetInfo.load(folder)
    assert isinstance(sources.training_batches(8), CellLoader)


def test_united_vocabularies_and_counts(folder, other):
    sources, (first, second) = Sources([folder, other], [1, 1]), map(DatasetInfo.load, (folder, other))
    info = sources.info
    assert info.perturbations == ["control", *sorted({*first.perturbations, *second.perturbations} - {"control"})]
    assert info.cell_types == ["type_A", "type_B", "type_C", "type_Z"]
    assert info.n_cells == {name: first.n_cells[name] + second.n_cells[name] for name in first.n_cells}
    for split in ("train", "validation", "test"):
        counted = dict.fromkeys(info.cell_types, 0)
        for i in range(2):
            for batch in sources.cells(i, split, 100) if sources.infos[i].n_cells[split] else ():
                for kind in batch["cell_type_ids"].tolist():
                    counted[info.cell_types[kind]] += 1
        stated = info.statistics["cell_counts"][split]
        assert {kind: sum(stated.get(kind, {}).values()) for kind in counted} == counted
    mixed, apart = (np.array(i.statistics["library_size_quantiles"]) for i in (info, first))
    assert np.abs(mixed - apart).max() < 0.2 * apart.max()
    assert info.statistics["median_library_size"] == mixed[50]
    assert "1,9" in info.summary() or "2,0" in info.summary()
    twice = Sources([folder, folder], [5, 1]).info.statistics["library_size_quantiles"]
    np.testing.assert_allclose(twice, apart, atol=1)  # counts, of which many share a quantile


@pytest.mark.parametrize(("weights", "n_ranks"), [([3, 1], 2), ([1, 1], 2), ([1, 1], 8), ([2, 1], 2), ([5, 2], 4)])
def test_ranks_together_read_what_one_reads_alone(folder, other, weights, n_ranks):
    """Also where the shares of a rank alone would be rounded to other ones."""
    sources = Sources([folder, other], weights)
    whole = taken(sources.training_batches(128), 30)
    loaders = [sources.training_batches(128 // n_ranks, rank=rank, world_size=n_ranks) for rank in range(n_ranks)]
    ranks = [taken(loader, 30) for loader in loaders]
    for one, *parts in zip(whole, *ranks, strict=True):
        assert described(one, sources.info) == [c for part in parts for c in described(part, sources.info)]


def test_resume_is_exact(folder, other):
    sources = Sources([folder, other], [3, 1])
    whole = taken(sources.training_batches(64), 70)  # more than two epochs of the larger, one of the smaller
    for done in (0, 1, 29, 30, 61):
        loader = sources.training_batches(64)
        taken(loader, done)
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = sources.training_batches(64)
        resumed.load_state_dict(state)
        for a, b in zip(taken(resumed, 5), whole[done:], strict=False):
            assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(EvaeError, match="cannot resume the data"):
        Sources([folder, other], [1, 1]).training_batches(64).load_state_dict(state)


def test_what_does_not_go_together(folder, other, simulated, keys, tmp_path):
    simulated[:, :60].write_h5ad(tmp_path / "fewer.h5ad")
    fewer = prepare_dataset(tmp_path / "fewer.h5ad", tmp_path / "fewer", **keys)
    cells = simulated.copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].cat.rename_categories({"control": "ctrl"})
    cells.write_h5ad(tmp_path / "ctrl.h5ad")
    renamed = prepare_dataset(tmp_path / "ctrl.h5ad", tmp_path / "ctrl", **(keys | {"control": "ctrl"}))
    cases = {
        r"different gene panels \(70 and 60 genes\); prepare the files together": lambda: Sources([folder, fewer]),
        r"different controls \('control' and 'ctrl'\)": lambda: Sources([folder, renamed]),
        "1 dataset_weights for 2 datasets": lambda: Sources([folder, other], [1]),
        "give numbers above 0": lambda: Sources([folder, other], [1, 0]),
        r"no such dataset folder: a,b; for several write \[a,b\]": lambda: Sources(["a,b"]),
        "no such dataset folder: nowhere; make one with": lambda: Sources(["nowhere"]),
        "gets none with a share of 0.0099": lambda: Sources([folder, other], [100, 1]).training_batches(16),
    }
    for message, make in cases.items():
        with pytest.raises(EvaeError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
