import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from datasets import load_dataset

from evae.data import convert
from evae.data.anndata_io import read_split
from evae.data.dataset import DatasetInfo
from evae.data.prepare import prepare_dataset
from evae.data.simulate import simulate_perturb_seq
from evae.models.contract_evae import EvaeError


def _all_cells(folder) -> ad.AnnData:
    """Every cell of a folder, in the order of the source."""
    info = DatasetInfo.load(folder)
    adata = ad.concat([read_split(folder, s) for s, n in info.n_cells.items() if n])
    return adata[np.argsort([int(n.removeprefix("cell")) for n in adata.obs_names])]


def _files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def test_hf_datasets_reads_the_folder(folder, simulated, tmp_path):
    info = DatasetInfo.load(folder)
    cells = load_dataset(str(folder), streaming=True, cache_dir=str(tmp_path))
    assert list(cells) == ["train", "validation", "test"]
    features = cells["test"].features
    assert features["perturbation"].names == info.perturbations
    assert features["cell_type"].names == info.cell_types
    dtypes = info.statistics["gene_dtype"], info.statistics["count_dtype"]
    for row in cells["test"]:
        dense = np.zeros(70, dtype=int)
        dense[np.frombuffer(row["genes"], dtypes[0])] = np.frombuffer(row["counts"], dtypes[1])
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
    simulated, h5ad, folder, cross_split, keys, tmp_path
):
    for name, store in (("csc", sp.csc_matrix), ("dense", lambda x: x.toarray())):
        adata = simulated.copy()
        adata.X = store(adata.X)
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        again = prepare_dataset(tmp_path / f"{name}.h5ad", tmp_path / name, split=cross_split, chunk_size=101, **keys)
        assert {k: v for k, v in _files(again).items() if k.startswith("data/")} == {
            k: v for k, v in _files(folder).items() if k.startswith("data/")
        }
    other = prepare_dataset(h5ad, tmp_path / "other", split=cross_split, seed=1, **keys)
    assert list(read_split(other, "train").obs_names) != list(read_split(folder, "train").obs_names)


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


def _corrupt(key, value):
    def change(adata):
        adata.obs[key] = value(adata)

    return change


def _map_counts(function):
    def change(adata):
        adata.X = sp.csr_matrix(function(adata.X.toarray().astype(np.float32)))

    return change


BAD_INPUT = {
    "log": (_map_counts(np.log1p), {}, "log-normalised"),
    "negative": (_map_counts(lambda x: x - 1), {}, "negative"),
    "nan": (_map_counts(lambda x: np.where(x > 2, np.nan, x)), {}, "NaN"),
    "zeros": (_map_counts(np.zeros_like), {}, "single count over the gene panel"),
    "label": (
        _corrupt("perturbation", lambda a: [None, *a.obs["perturbation"][1:]]),
        {},
        "missing (NaN) in 1 cells",
    ),
    "control": (None, {"control": "contrl"}, "Did you mean 'control'"),
    "column": (None, {"cell_type_key": "celltype"}, "no obs column 'celltype'. Did you mean 'cell_type'"),
    "layer": (None, {"layer": "counts"}, "has no layer 'counts'"),
    "type": (None, {"split": {"cell_type": ["type_D"], "pert": ["control"]}}, "unknown cell type 'type_D'"),
    "share": (None, {"split": "random:0.999"}, "leaves 0 of 150 cells, too few to train on"),
    "hvg": (None, {"genes": "hvg:71"}, "more genes than the 70"),
    "never": ("never", {}, "holds out no cell"),
    "everything": ("everything", {}, "leaves 1 of 150 cells, too few to train on"),
    "coverage": ("coverage", {}, "measures only 50% of the panel"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_raises_one_line_and_leaves_nothing(simulated, tmp_path, keys, case):
    change, options, message = BAD_INPUT[case]
    adata = simulated[:150].copy()
    options = dict(options)
    names = list(adata.obs["perturbation"].cat.categories)
    if change == "never":
        adata = adata[(adata.obs["cell_type"] != "type_A") | (adata.obs["perturbation"] != names[1])].copy()
        options["split"] = {"cell_type": ["type_A"], "pert": [names[1]]}
    elif change == "everything":
        adata.obs["perturbation"] = ["control"] + ["a"] * 149
        options["split"] = {"cell_type": ["type_A", "type_B", "type_C"], "pert": ["a"]}
    elif change == "coverage":
        (tmp_path / "panel.txt").write_text("GENE0001\nSTAT1\n")
        options["genes"] = tmp_path / "panel.txt"
    elif change is not None:
        change(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = set(tmp_path.iterdir())
    with pytest.raises(EvaeError) as caught:
        prepare_dataset(tmp_path / "a.h5ad", tmp_path / "out", **(keys | options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def _killed_after(monkeypatch, step: str, n_pieces: int) -> None:
    """Let the n-th piece of a step be the last: the process dies while it writes the next, half of which is there."""
    real, done = getattr(convert, step), []

    def last(*args):
        if len(done) == n_pieces:
            path = next(a for a in reversed(args) if isinstance(a, Path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".unfinished").write_text("half")
            raise KeyboardInterrupt
        done.append(args)
        return real(*args)

    monkeypatch.setattr(convert, step, last)


def _counted(calls: dict[str, int], name: str):
    real = getattr(convert, name)

    def counted(*args):
        calls[name] += 1
        return real(*args)

    return counted


@pytest.mark.parametrize(
    ("step", "pieces", "genes"),
    [("_measure", 2, "all"), ("_scatter", 0, "all"), ("_scatter", 3, "hvg:30"), ("_gather", 11, "hvg:30")],
)
def test_a_killed_run_goes_on(h5ad, tmp_path, keys, monkeypatch, step, pieces, genes):
    """The folder is that of a run that was left alone, and what was done is not done again."""
    options = keys | {"split": "random:0.1", "genes": genes, "chunk_size": 300}
    whole = prepare_dataset(h5ad, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        _killed_after(patched, step, pieces)
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(h5ad, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    calls = dict.fromkeys(("_sums", "_measure", "_scatter", "_gather"), 0)
    for name in calls:
        monkeypatch.setattr(convert, name, _counted(calls, name))
    again = prepare_dataset(h5ad, tmp_path / "out", **options)
    assert _files(again).keys() == _files(whole).keys()
    assert {k: v for k, v in _files(again).items() if k != "README.md"} == {
        k: v for k, v in _files(whole).items() if k != "README.md"
    }
    done = {"_sums": 0, "_measure": 5, "_scatter": 5, "_gather": 24}
    for name in done:
        done[name] = 0 if list(done).index(name) < list(done).index(step) else done[name]
    done[step] -= pieces
    assert calls == done
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_killed_run_starts_anew_where_anything_changed(h5ad, tmp_path, keys, monkeypatch):
    source = Path(shutil.copy(h5ad, tmp_path / "a.h5ad"))
    for change in ("seed", "file"):
        with monkeypatch.context() as patched:
            _killed_after(patched, "_gather", 3)
            with pytest.raises(KeyboardInterrupt):
                prepare_dataset(source, tmp_path / "out", **keys)
        if change == "file":
            shorter = ad.read_h5ad(source)[:1000]
            shorter.write_h5ad(source)
        options = keys | ({"seed": 5} if change == "seed" else {})
        folder = prepare_dataset(source, tmp_path / "out", **options)
        wanted = prepare_dataset(source, tmp_path / "wanted", **options)
        assert (folder / "dataset.json").read_text() == (wanted / "dataset.json").read_text()
        shutil.rmtree(folder)
        shutil.rmtree(wanted)


def test_a_full_disk_leaves_what_is_done(h5ad, tmp_path, keys, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("evae.data.prepare.dataset_card", fail)
        with pytest.raises(OSError, match="No space"):
            prepare_dataset(h5ad, tmp_path / "out", **keys)
    monkeypatch.setattr(convert, "_gather", fail)  # every shard is there
    assert len(list(prepare_dataset(h5ad, tmp_path / "out", **keys).glob("data/*"))) == 16


def test_the_folder_to_make(h5ad, tmp_path, keys):
    for name in ("full", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
        message = "exists and is not empty" if name == "full" else "is in the way and not of `evae prepare`"
        with pytest.raises(EvaeError, match=message):
            prepare_dataset(h5ad, tmp_path / name.removesuffix(".partial"), **keys)
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"
    (tmp_path / "out").mkdir()  # empty: fine
    folder = prepare_dataset(h5ad, tmp_path / "out", **keys)
    assert not (tmp_path / "out.partial").exists()
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "cell_types.parquet", "data", "dataset.json", "genes.parquet", "perturbations.parquet",
        "split.json",
    ]  # fmt: skip


def test_two_at_once_into_one_folder(h5ad, tmp_path, keys, monkeypatch):
    def meanwhile(*args):
        with pytest.raises(EvaeError, match="another `evae prepare` works in"):
            prepare_dataset(h5ad, tmp_path / "out", **keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_measure", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(h5ad, tmp_path / "out", **keys)
    assert (tmp_path / "out.partial").is_dir()


def test_several_processes_make_the_same_folder(simulated, folder, cross_split, keys, tmp_path):
    adata = simulated.copy()
    adata.X = sp.csc_matrix(adata.X)  # one process puts it by cell for all
    adata.write_h5ad(tmp_path / "a.h5ad")
    options = keys | {"split": cross_split, "chunk_size": 300, "n_workers": 2}
    again = _files(prepare_dataset(tmp_path / "a.h5ad", tmp_path / "out", **options))
    assert {k: v for k, v in again.items() if k.startswith("data/")} == {
        k: v for k, v in _files(folder).items() if k.startswith("data/")
    }


def test_silent_without_progress_and_a_bar_with_it(h5ad, tmp_path, keys, capsys):
    prepare_dataset(h5ad, tmp_path / "quiet", **keys)
    assert capsys.readouterr() == ("", "")
    prepare_dataset(h5ad, tmp_path / "shown", **(keys | {"progress": True}))
    assert "writing cells" in capsys.readouterr().out


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
