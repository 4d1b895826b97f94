"""Precomputed embeddings: every format, matched by name or by order, scGPT's own among them."""

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError
from evae.reversion.sources import open_embedding

N = 40
VALUES = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
IDS = [f"cell{i}" for i in range(N)]
ORDER = np.random.default_rng(1).permutation(N)  # the files are in another order than the screen


@pytest.fixture
def source():
    return AnnDataCounts(ad.AnnData(np.ones((N, 3)), obs=pd.DataFrame(index=IDS)))


def collected(embedding):
    """The vectors in the order of the screen; NaN where there are none."""
    found = np.full((N, embedding.width), np.nan)
    for rows, vectors in embedding.blocks():
        assert np.isnan(found[rows]).all()
        found[rows] = vectors
    return found


def shell(keys=(), X=None, ids=ORDER):
    adata = ad.AnnData(X, obs=pd.DataFrame(index=[IDS[i] for i in ids]))
    for key in keys:
        adata.obsm[key] = VALUES[ids]
    return adata


def write(path, how):
    order_ids = [IDS[i] for i in ORDER]
    if how == "obsm of its name":
        adata = shell(["X_umap", "X_scGPT"])
        adata.obsm["X_umap"] = adata.obsm["X_umap"] + 1
        adata.write_h5ad(path := path / "a.h5ad")
    elif how == "the only obsm":
        shell(["X_emb"]).write_h5ad(path := path / "a.h5ad")
    elif how == "scGPT's new AnnData":
        shell(X=VALUES[ORDER]).write_h5ad(path := path / "a.h5ad")
    elif how == "data frame in obsm":
        adata = shell()
        adata.obsm["scgpt"] = pd.DataFrame(VALUES[ORDER], index=adata.obs_names).rename(columns=str)
        adata.write_h5ad(path := path / "a.h5ad")
    elif how == "sparse in obsm":
        adata = shell()
        adata.obsm["scgpt"] = sp.csr_matrix(VALUES[ORDER])
        adata.write_h5ad(path := path / "a.h5ad")
    elif how == "key after a colon":
        adata = shell(["one", "two"])
        adata.obsm["one"] = adata.obsm["one"] + 1
        adata.write_h5ad(path / "a.h5ad")
        return f"{path / 'a.h5ad'}:two"
    elif how == "zarr":
        shell(["X_scgpt"]).write_zarr(path := path / "a.zarr")
    elif how == "evae embed's parquet":
        column = pa.FixedSizeListArray.from_arrays(pa.array(VALUES[ORDER].ravel()), 5)
        pq.write_table(pa.table({"cell_id": order_ids, "embedding": column}), path := path / "a.parquet")
    elif how == "parquet table":
        pd.DataFrame(VALUES[ORDER]).rename(columns=str).assign(id=order_ids).to_parquet(path := path / "a.parquet")
    elif how == "csv":
        pd.DataFrame(VALUES[ORDER], index=order_ids).to_csv(path := path / "a.csv")
    elif how == "npz with names":
        np.savez(path := path / "a.npz", emb=VALUES[ORDER], ids=np.array(order_ids))
    elif how == "npz in order":
        np.savez(path := path / "a.npz", emb=VALUES)
    else:
        np.save(path := path / "a.npy", VALUES)
    return path


FORMATS = [
    *("obsm of its name", "the only obsm", "scGPT's new AnnData", "data frame in obsm", "sparse in obsm"),
    *("key after a colon", "zarr", "evae embed's parquet", "parquet table", "csv", "npz with names", "npz in order"),
    "npy in order",
]


@pytest.mark.parametrize("how", FORMATS)
def test_formats(source, tmp_path, how):
    embedding = open_embedding("scgpt", str(write(tmp_path, how)), source)
    np.testing.assert_allclose(collected(embedding), VALUES, rtol=1e-6)
    assert (embedding.width, embedding.n_cells) == (5, N)


def test_an_array_and_the_screens_own_obsm(source, tmp_path):
    np.testing.assert_array_equal(collected(open_embedding("a", VALUES, source)), VALUES)
    source.adata.obsm["X_mine"] = VALUES
    np.testing.assert_array_equal(collected(open_embedding("a", "X_mine", source)), VALUES)
    source.adata.write_h5ad(tmp_path / "screen.h5ad")
    own = FileCounts(tmp_path / "screen.h5ad")
    np.testing.assert_array_equal(collected(open_embedding("a", "X_mine", own)), VALUES)


def test_cells_that_one_side_lacks_are_left_out(source, tmp_path):
    adata = shell(["X_scgpt"], ids=ORDER[:25])
    adata.obs_names = [*adata.obs_names[:20], *[f"elsewhere{i}" for i in range(5)]]
    adata.write_h5ad(tmp_path / "a.h5ad")
    embedding = open_embedding("scgpt", tmp_path / "a.h5ad", source)
    found = collected(embedding)
    assert embedding.n_cells == 20
    np.testing.assert_allclose(found[ORDER[:20]], VALUES[ORDER[:20]])
    assert np.isnan(found[ORDER[20:]]).all()


@pytest.mark.parametrize("names", ["{:03d}", "{}e5", "{}.0", "NA{}"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("heading", ["", "cell"])
def test_cell_names_of_a_table_are_text(source, tmp_path, names, suffix, heading):
    """pandas 2.3.3 reads the names 007, 1e5 and NA of a CSV file as numbers and as missing."""
    own = ["NA" if names == "NA{}" and i == 0 else names.format(i) for i in range(N)]
    source.adata.obs_names = own
    frame = pd.DataFrame(VALUES[ORDER], index=pd.Index([own[i] for i in ORDER], name=heading))
    frame.to_csv(tmp_path / f"a{suffix}", sep="\t" if suffix == ".tsv" else ",")
    embedding = open_embedding("a", tmp_path / f"a{suffix}", source)
    assert embedding.n_cells == N
    np.testing.assert_allclose(collected(embedding), VALUES)


def bad(path, how):
    if how == "other cells":
        adata = shell(["X_scgpt"])
        adata.obs_names = [f"x{i}" for i in range(N)]
        adata.write_h5ad(path / "a.h5ad")
    elif how == "names twice":
        adata = shell(["X_scgpt"])
        adata.obs_names = ["cell0"] * N
        adata.write_h5ad(path / "a.h5ad")
    elif how == "several":
        shell(["one", "two"]).write_h5ad(path / "a.h5ad")
    elif how == "counts":
        ad.AnnData(sp.csr_matrix(np.ones((N, 4))), obs=pd.DataFrame(index=IDS)).write_h5ad(path / "a.h5ad")
    elif how == "damaged":
        (path / "a.h5ad").write_bytes(b"no")
    return path / "a.h5ad"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("other cells", r"no cell name in common \(such as 'x0' and 'cell0'\)"),
        ("names twice", "cell names stand more than once in embedding 'scgpt'"),
        ("several", r"several embeddings \(one, two\); name one: scgpt="),
        ("counts", "neither obsm nor a dense X"),
        ("damaged", "cannot be read"),
        ("missing", "no such file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Observation names")
def test_files_that_cannot_be_used(source, tmp_path, how, message):
    with pytest.raises(EvaeError, match=message):
        open_embedding("scgpt", bad(tmp_path, how), source)


def test_wrong_keys_and_shapes(source, tmp_path):
    shell(["X_scgpt"]).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(EvaeError, match=r"has no obsm\['X_scgtp'\]. Did you mean 'X_scgpt'"):
        open_embedding("scgpt", f"{tmp_path / 'a.h5ad'}:X_scgtp", source)
    with pytest.raises(EvaeError, match="neither an obsm key of the screen nor a file"):
        open_embedding("scgpt", "X_scgpt", source)
    with pytest.raises(EvaeError, match="30 rows without cell names, the screen 40 cells"):
        open_embedding("scgpt", VALUES[:30], source)
    with pytest.raises(EvaeError, match=r"numbers of shape \(cells, features\)"):
        open_embedding("scgpt", VALUES[:, 0], source)
