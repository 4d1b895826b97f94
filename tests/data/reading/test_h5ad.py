import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import evae.data.reading.stored_matrix as module
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(0.3, size=(97, 23)).astype(np.float32)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("layer", [None, "raw", "counts"])
@pytest.mark.parametrize("store", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("entries", [7, 1 << 24])  # blocks bounded by their entries, or by the chunk size
def test_every_storage_gives_the_same_counts(tmp_path, monkeypatch, counts, store, layer, compression, entries):
    monkeypatch.setattr(module, "MAX_BLOCK_ENTRIES", entries)
    other = store(np.log1p(counts))
    adata = ad.AnnData(store(counts) if layer is None else other)
    if layer == "counts":
        adata.layers["counts"] = store(counts)
    if layer == "raw":
        adata.raw = ad.AnnData(store(counts), var=adata.var)
    adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    source = FileCounts(tmp_path / "a.h5ad", layer, tmp_path)
    blocks = list(source.blocks(10))
    assert [start for start, _ in blocks] == np.cumsum([0, *(b.shape[0] for _, b in blocks[:-1])]).tolist()
    assert max(b.shape[0] for _, b in blocks) <= 10
    np.testing.assert_array_equal(np.vstack([b.toarray() for _, b in blocks]), counts)
    assert all(b.data.all() for _, b in blocks)  # explicit zeros are gone


def test_explicit_zeros_and_unsorted_duplicates(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "/", ad.AnnData(sp.csr_matrix((1, 4), dtype=np.float32)))
        del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [1, 4]})
        group["data"], group["indices"] = np.array([2.0, 0.0, 1.0, 3.0]), np.array([3, 2, 0, 3])
        group["indptr"] = np.array([0, 4])
    (_, block), *_ = FileCounts(tmp_path / "a.h5ad").blocks(10)
    assert block.indices.tolist() == [0, 3]
    assert block.data.tolist() == [1, 5]


def test_labels_of_every_kind(tmp_path):
    obs = pd.DataFrame(
        {
            "category": pd.Categorical(["b", "a", "b"], categories=["a", "b", "unused"]),
            "string": ["b", "a", "b"],
            "number": [2, 1, 2],
            "gap": pd.Categorical(["b", None, "b"]),
        },
        index=["c0", "c1", "c2"],
    )
    ad.AnnData(np.ones((3, 2)), obs=obs).write_h5ad(tmp_path / "a.h5ad")
    source = FileCounts(tmp_path / "a.h5ad")
    for key, wanted in (("category", "bab"), ("string", "bab"), ("number", "212")):
        codes, names = source.labels(key)
        assert "".join(names[c] for c in codes) == wanted
    assert list(source.cell_ids(1, 3)) == ["c1", "c2"]
    with pytest.raises(EvaeError, match=r"'gap' of .* is missing \(NaN\) in 1 cell;"):
        source.labels("gap")
    with pytest.raises(EvaeError, match=r"no obs column 'categry'\. Did you mean 'category'"):
        source.labels("categry")


def test_ensembl_names_with_a_symbol_column(tmp_path):
    ids = ["ENSG00000000001", "ENSG00000000002"]
    for symbols, wanted in ((["A", "B"], ["A", "B"]), (["A", "A"], ids)):
        ad.AnnData(np.ones((3, 2)), var=pd.DataFrame({"gene_name": symbols}, index=ids)).write_h5ad(tmp_path / "a.h5ad")
        source = FileCounts(tmp_path / "a.h5ad")
        assert source.genes == wanted
        assert source.gene_columns.ensembl_ids == ids
        source.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.log1p, "log-normalised"),
        (lambda x: x - 1, "negative"),
        (lambda x: x + 0.25, "fractional"),
        (lambda x: np.where(x > 1, np.nan, x), "NaN"),
    ],
)
@pytest.mark.parametrize("store", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_what_is_not_raw_counts(tmp_path, counts, change, message, store):
    ad.AnnData(store(change(counts))).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(EvaeError, match=message) as caught:
        list(FileCounts(tmp_path / "a.h5ad", None, tmp_path).blocks(10))
    assert "X of " in str(caught.value)
    assert "a.h5ad" in str(caught.value)


def test_bad_files(tmp_path, counts):
    with pytest.raises(EvaeError, match="no such file"):
        FileCounts(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(EvaeError, match="not a readable h5ad file"):
        FileCounts(tmp_path / "text.h5ad")
    ad.AnnData(np.ones((0, 4))).write_h5ad(tmp_path / "empty.h5ad")
    with pytest.raises(EvaeError, match="0 cells and 4 genes"):
        FileCounts(tmp_path / "empty.h5ad")
    adata = ad.AnnData(counts, layers={"counts": counts})
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(EvaeError, match=r"no layer 'count'\. Did you mean 'counts'"):
        FileCounts(tmp_path / "a.h5ad", "count")
    with pytest.raises(EvaeError, match=r"no counts under adata\.raw"):
        FileCounts(tmp_path / "a.h5ad", "raw")
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    adata.write_h5ad(tmp_path / "twice.h5ad")
    with pytest.raises(EvaeError, match=r"twice\.h5ad: 1 gene stands more than once"):
        FileCounts(tmp_path / "twice.h5ad").genes  # noqa: B018


def test_a_cut_file_is_named(tmp_path):
    big = sp.random(4000, 300, density=0.5, format="csr", random_state=0)
    big.data[:] = np.random.default_rng(0).integers(1, 1000, big.nnz)
    ad.AnnData(big).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    content = bytearray((tmp_path / "a.h5ad").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    (tmp_path / "a.h5ad").write_bytes(content)
    with pytest.raises(EvaeError, match=r"a\.h5ad"):
        list(FileCounts(tmp_path / "a.h5ad").blocks(500))


@pytest.mark.parametrize("dense", [True, False])
def test_counts_of_half_precision(tmp_path, counts, dense):
    """scipy 1.17 has no sparse matrices of float16; HDF5 and anndata store it."""
    ad.AnnData(counts if dense else sp.csr_matrix(counts)).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        place = "X" if dense else "X/data"
        values, attributes = file[place][()].astype(np.float16), dict(file[place].attrs)
        del file[place]
        file[place] = values
        file[place].attrs.update(attributes)
    (_, block), *_ = FileCounts(tmp_path / "a.h5ad").blocks(1000)
    np.testing.assert_array_equal(block.toarray(), counts)


def test_attributes_of_fixed_length(tmp_path, counts):
    """Strings of fixed length, as other writers than h5py store them, come out of h5py 3.16 as bytes."""
    cells = ad.AnnData(sp.csr_matrix(counts))
    cells.obs["dose"] = np.arange(len(counts))
    cells.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        for name in ("encoding-type", "encoding-version"):
            file["X"].attrs[name] = np.bytes_(file["X"].attrs[name])
        file["obs"].attrs["_index"] = np.bytes_(file["obs"].attrs["_index"])
        file["obs"].attrs["column-order"] = np.array([b"dose"])
    source = FileCounts(tmp_path / "a.h5ad")
    assert source.cell_ids(0, 2).tolist() == ["0", "1"]
    assert source.labels("dose")[1][:3] == ["0", "1", "2"]
    (_, block), *_ = source.blocks(1000)
    np.testing.assert_array_equal(block.toarray(), counts)
