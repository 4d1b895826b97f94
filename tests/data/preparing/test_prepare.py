import json

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from datasets import load_dataset

from evae.data.preparing import convert
from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading.file_counts import FileCounts
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.data.streaming.split_anndata import read_split


def _all_cells(folder) -> ad.AnnData:
    """Every cell of a folder, in the order of the source."""
    info = DatasetInfo.load(folder)
    adata = ad.concat([read_split(folder, s) for s, n in info.n_cells.items() if n])
    return adata[np.argsort([int(n.removeprefix("cell")) for n in adata.obs_names])]


def test_every_cell_comes_back_as_it_was(folder, simulated):
    cells = _all_cells(folder)
    assert list(cells.obs_names) == list(simulated.obs_names)
    assert list(cells.var_names) == list(simulated.var_names)
    np.testing.assert_array_equal(cells.X.toarray(), simulated.X.toarray())
    for key in ("perturbation", "cell_type"):
        assert list(cells.obs[key]) == list(simulated.obs[key])
    np.testing.assert_array_equal(cells.obs["library_size"], np.asarray(simulated.X.sum(1)).ravel())


def test_splits(folder, cross_split):
    info = DatasetInfo.load(folder)
    held_out = [("type_B", p) for p in cross_split["pert"]]
    cells = {s: read_split(folder, s) for s in info.n_cells}
    pairs = {s: set(zip(c.obs["cell_type"], c.obs["perturbation"], strict=True)) for s, c in cells.items()}
    assert pairs["test"] == set(held_out) == set(info.held_out_pairs())
    assert not pairs["test"] & (pairs["train"] | pairs["validation"])
    assert ("type_B", "control") in pairs["train"]
    assert ("type_A", cross_split["pert"][0]) in pairs["train"]
    assert {s: c.n_obs for s, c in cells.items()} == info.n_cells
    assert info.n_cells["validation"] == round(0.05 * (1500 - info.n_cells["test"]))
    names = [n for c in cells.values() for n in c.obs_names]
    assert len(set(names)) == len(names) == 1500
    assert info.split == cross_split


def test_statistics_are_those_of_the_training_cells(folder):
    info, train = DatasetInfo.load(folder), read_split(folder, "train")
    sizes = np.asarray(train.X.sum(1)).ravel()
    assert len(info.statistics["library_size_quantiles"]) == 101
    np.testing.assert_allclose(info.statistics["library_size_quantiles"], np.quantile(sizes, np.linspace(0, 1, 101)))
    assert info.statistics["median_library_size"] == np.median(sizes)
    assert info.statistics["nonzero_fraction"] == pytest.approx(train.X.nnz / np.prod(train.shape))
    counted = train.obs.groupby(["cell_type", "perturbation"], observed=True).size()
    stated = info.statistics["cell_counts"]["train"]
    assert {(k, p): n for k, row in stated.items() for p, n in row.items()} == counted.to_dict()
    assert info.statistics["max_count"] == max(read_split(folder, s).X.max() for s in info.n_cells)


def test_vocabularies_and_genes(folder, simulated):
    info = DatasetInfo.load(folder)
    assert info.genes == list(simulated.var_names)
    assert info.ensembl_ids == [""] * 70
    assert info.perturbations[0] == info.control == "control"
    assert info.perturbations[1:] == sorted(info.perturbations[1:])
    assert info.cell_types == ["type_A", "type_B", "type_C"]


def test_hf_datasets_reads_the_folder(folder, simulated, decoded, tmp_path):
    info = DatasetInfo.load(folder)
    cells = load_dataset(str(folder), streaming=True, cache_dir=str(tmp_path))
    assert list(cells) == ["train", "validation", "test"]
    features = cells["test"].features
    assert features["perturbation"].names == info.perturbations
    assert features["cell_type"].names == info.cell_types
    for row in cells["test"]:
        dense = np.zeros(70, dtype=int)
        genes, dense[genes] = decoded(folder, row)
        source = simulated[row["cell_id"]]
        np.testing.assert_array_equal(dense, source.X.toarray()[0])
        assert row["library_size"] == dense.sum()
        assert features["perturbation"].int2str(row["perturbation"]) == source.obs["perturbation"].iloc[0]
    for config, known in (
        ("genes", info.genes),
        ("perturbations", info.perturbations),
        ("cell_types", info.cell_types),
    ):
        table = load_dataset(str(folder), config, cache_dir=str(tmp_path))["train"].to_dict()
        assert next(iter(table.values())) == known


def test_the_result_does_not_depend_on_the_chunk_size_or_the_storage(
    simulated, h5ad, folder, contents, cross_split, keys, tmp_path
):
    for name, store in (("csc", sp.csc_matrix), ("dense", lambda x: x.toarray())):
        adata = simulated.copy()
        adata.X = store(adata.X)
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        again = prepare_dataset(tmp_path / f"{name}.h5ad", tmp_path / name, split=cross_split, chunk_size=101, **keys)
        assert {k: v for k, v in contents(again).items() if k.startswith("data/")} == {
            k: v for k, v in contents(folder).items() if k.startswith("data/")
        }
    other = prepare_dataset(h5ad, tmp_path / "other", split=cross_split, seed=1, **keys)
    assert list(read_split(other, "train").obs_names) != list(read_split(folder, "train").obs_names)


def test_a_file_is_read_once_and_threads_change_nothing(simulated, tmp_path, keys, contents, monkeypatch):
    """By the check of knock-downs, twice for variable genes, to measure and to write; whatever the threads do."""
    adata = simulated.copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).str.removeprefix("KO-")
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    read: list[tuple[int, int]] = []
    real = FileCounts.values

    def values(source, start, stop):
        read.append((start, stop))
        return real(source, start, stop)

    monkeypatch.setattr(FileCounts, "values", values)
    options = keys | {"genes": "hvg:30", "chunk_size": 200}
    made = {}
    for name, threads, held in (("one", "1", 1), ("four", "4", 1 << 23), ("two", "2", 9_000)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setattr(convert, "SCATTERED", held)
        folder = prepare_dataset(tmp_path / "cells.h5ad", tmp_path / name / "out", **options)
        made[name] = contents(folder)
        assert sorted(read) == [(i, min(1500, i + 200)) for i in range(0, 1500, 200)]
        assert json.loads(made[name]["dataset.json"])["checks"][3]["found"] is not None
        read.clear()
    assert made["one"] == made["four"] == made["two"]


def test_rows_are_shuffled_over_all_shards(folder):
    positions = [int(n.removeprefix("cell")) for n in read_split(folder, "train").obs_names]
    assert abs(np.corrcoef(positions, np.arange(len(positions)))[0, 1]) < 0.1
    shards = [pq.read_table(p)["cell_id"].to_pylist() for p in sorted(folder.glob("data/train-*"))]
    assert len(shards) == 8
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for shard in shards:
        own = [int(n.removeprefix("cell")) for n in shard]
        assert max(own) - min(own) > 1200


@pytest.mark.parametrize(("largest", "dtype"), [(255, "|u1"), (256, "<u2"), (70_000, "<u4")])
def test_count_width_is_the_narrowest_that_holds_the_largest_count(simulated, tmp_path, keys, largest, dtype):
    adata = simulated[:100].copy()
    adata.X.data = np.minimum(adata.X.data, 200)
    adata.X.data[50] = largest
    adata.write_h5ad(tmp_path / "a.h5ad")
    folder = prepare_dataset(tmp_path / "a.h5ad", tmp_path / "out", **keys)
    assert DatasetInfo.load(folder).statistics["count_dtype"] == dtype
    np.testing.assert_array_equal(_all_cells(folder).X.toarray(), adata.X.toarray())
    loader = CellLoader(folder, "train", batch_size=100, epochs=1, shuffle=False, drop_last=False)
    assert max(batch["counts"].max() for batch in loader) == largest


def test_cells_without_counts_over_the_panel_are_dropped_and_counted(simulated, tmp_path, keys):
    adata = simulated[:200].copy()
    adata.X = sp.csr_matrix(np.where(np.isin(np.arange(200), [3, 77])[:, None], 0, adata.X.toarray()))
    adata.write_h5ad(tmp_path / "a.h5ad")
    folder = prepare_dataset(tmp_path / "a.h5ad", tmp_path / "out", **keys)
    info = DatasetInfo.load(folder)
    assert info.statistics["dropped_cells"] == 2
    assert "2 cells dropped" in info.summary()
    assert not {"cell3", "cell77"} & set(_all_cells(folder).obs_names)
    assert sum(info.n_cells.values()) == 198


def test_a_panel_file_orders_the_genes_and_keeps_the_full_library_size(simulated, h5ad, tmp_path, keys):
    genes = list(simulated.var_names[[40, 3, 17, 5, 66, 2, 30, 31, 32, 33]])
    (tmp_path / "panel.txt").write_text("\n".join(genes))
    folder = prepare_dataset(h5ad, tmp_path / "out", genes=tmp_path / "panel.txt", **keys)
    cells = _all_cells(folder)
    kept = simulated[cells.obs_names]
    assert list(cells.var_names) == genes
    np.testing.assert_array_equal(cells.X.toarray(), kept[:, genes].X.toarray())
    np.testing.assert_array_equal(cells.obs["full_library_size"], np.asarray(kept.X.sum(1)).ravel())
    np.testing.assert_array_equal(cells.obs["library_size"], np.asarray(kept[:, genes].X.sum(1)).ravel())


def test_variable_genes_are_found_on_training_cells_only(simulated, cross_split, tmp_path, keys):
    """A gene that varies in the held-out cells alone is not taken."""
    adata = simulated.copy()
    test = (adata.obs["cell_type"] == "type_B") & adata.obs["perturbation"].isin(cross_split["pert"])
    dense = adata.X.toarray()
    dense[:, 9] = 1
    dense[test.to_numpy(), 9] = 1 + 30 * (np.arange(test.sum()) % 2)
    adata.X = sp.csr_matrix(dense)
    adata.write_h5ad(tmp_path / "a.h5ad")
    sizes = {}
    for name, split in (("held", cross_split), ("all", None)):
        folder = prepare_dataset(tmp_path / "a.h5ad", tmp_path / name, genes="hvg:20", split=split, **keys)
        sizes[name] = DatasetInfo.load(folder).genes
    assert len(sizes["held"]) == 20
    assert adata.var_names[9] in sizes["all"]
    assert adata.var_names[9] not in sizes["held"]


def test_several_files_share_their_genes(simulated, tmp_path, keys):
    first, second = simulated[:700].copy(), simulated[700:, ::-1].copy()
    first.write_h5ad(tmp_path / "a.h5ad")
    second[:, 2:].write_h5ad(tmp_path / "b.h5ad")  # lacks the last two genes, in reverse order
    folder = prepare_dataset([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "out", **keys)
    info = DatasetInfo.load(folder)
    assert info.genes == list(simulated.var_names[:68])
    assert [s["panel_coverage"] for s in info.statistics["sources"]] == [1.0, 68 / 70]
    np.testing.assert_array_equal(_all_cells(folder).X.toarray(), simulated[:, :68].X.toarray())
    assert list(_all_cells(folder).obs["perturbation"]) == list(simulated.obs["perturbation"])


def test_silent_without_progress_and_a_bar_with_it(h5ad, tmp_path, keys, capsys, monkeypatch):
    monkeypatch.setattr("evae.common.progress.watched", lambda: True)
    prepare_dataset(h5ad, tmp_path / "quiet", **keys)
    assert capsys.readouterr() == ("", "")
    prepare_dataset(h5ad, tmp_path / "shown", **(keys | {"progress": True}))
    assert "writing cells" in capsys.readouterr().err


def test_a_handful_of_cells(tmp_path, keys):
    adata = simulate_perturb_seq(n_cells=12, n_genes=20, n_perturbations=2)
    adata.obs["perturbation"] = pd.Categorical(["control", "a"] * 6)
    adata.write_h5ad(tmp_path / "a.h5ad")
    folder = prepare_dataset(tmp_path / "a.h5ad", tmp_path / "out", split="random:0.1", **keys)
    assert DatasetInfo.load(folder).n_cells == {"train": 10, "validation": 1, "test": 1}
    np.testing.assert_array_equal(_all_cells(folder).X.toarray(), adata.X.toarray())


def test_papalexi(real_data, tmp_path, keys):
    targets = [
        "STAT1",
        "JAK2",
        "IFNGR1",
        "IRF1",
        "STAT2",
        "CAV1",
        "ETV7",
        "SMAD4",
        "NFKBIA",
        "CUL3",
        "ATF2",
        "CD86",
    ]
    options = keys | {"cell_type_key": "bio_rep", "control": "non-targeting"}
    split = {"cell_type": ["rep_3"], "pert": targets}
    folder = prepare_dataset(real_data / "papalexi_thp1.h5ad", tmp_path / "out", split=split, **options)
    info = DatasetInfo.load(folder)
    assert info.n_cells["test"] == 2658
    assert sum(info.n_cells.values()) == 20729
    assert len(info.held_out_pairs()) == 12


@pytest.mark.parametrize("genes", ["all", "hvg:2000"])
def test_kang(real_data, tmp_path, keys, genes):
    split = {"cell_type": ["CD14 Mono"], "pert": ["IFNb"]}
    options = keys | {"control": "ctrl", "split": split, "genes": genes}
    folder = prepare_dataset(real_data / "kang_ifnb.h5ad", tmp_path / "out", **options)
    source = ad.read_h5ad(real_data / "kang_ifnb.h5ad")
    test = read_split(folder, "test")
    wanted = source[(source.obs["cell_type"] == "CD14 Mono") & (source.obs["perturbation"] == "IFNb")]
    assert test.n_vars == (14053 if genes == "all" else 2000)
    assert sorted(test.obs_names) == sorted(wanted.obs_names)
    np.testing.assert_array_equal(test.X.toarray(), wanted[test.obs_names, test.var_names].X.toarray())
    assert json.loads((folder / "dataset.json").read_text())["row_group_rows"] == (1024 if genes == "all" else 4096)
