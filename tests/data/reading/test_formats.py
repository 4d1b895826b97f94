"""The same cells in every format that has a reader: the same genes, labels, names and counts as in h5ad."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError

STORED = Path(__file__).parents[2] / "stored_cells"
TEXT = h5py.string_dtype()
IDS = [f"ENSG{g:011d}" for g in range(1, 8)]
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2", "ignore:Duplicate name")


def make_cells(n_cells: int = 11) -> ad.AnnData:
    drawn = np.random.default_rng(0)
    counts = drawn.poisson(0.8, (n_cells, len(IDS))).astype(np.float32)
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(drawn.choice(["a", "b"], n_cells)), "lane": drawn.integers(1, 3, n_cells)},
        index=[f"c{i}" for i in range(n_cells)],
    )
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame({"gene_ids": IDS}, index=list("ABCDEFG")))


@pytest.fixture
def cells() -> ad.AnnData:
    return make_cells()


def zarr_v2(cells: ad.AnnData, folder: Path) -> Path:
    with ad.settings.override(zarr_write_format=2):
        cells.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def zarr_v3(cells: ad.AnnData, folder: Path) -> Path:
    with ad.settings.override(zarr_write_format=3):
        cells.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def zarr_sharded(cells: ad.AnnData, folder: Path) -> Path:
    """Shards of many small chunks, as annbatch writes them."""
    import zarr

    path = zarr_v3(cells, folder)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
    for part in ("data", "indices"):
        values = group[part][:]
        del group[part]
        group.create_array(part, data=values, chunks=(4,), shards=(16,))
    zarr.consolidate_metadata(path)
    assert zarr.open_group(path, mode="r")["X/data"].shards == (16,)
    return path


def zarr_zip(cells: ad.AnnData, folder: Path) -> Path:
    made = zarr_v3(cells, folder)
    return Path(shutil.make_archive(str(folder / "cells.zarr"), "zip", made))


def zarr_of_columns(cells: ad.AnnData, folder: Path) -> Path:
    cells.X = cells.X.tocsc()
    return zarr_v3(cells, folder)


def zarr_dense(cells: ad.AnnData, folder: Path) -> Path:
    cells.X = cells.X.toarray()
    return zarr_v3(cells, folder)


def h5mu(cells: ad.AnnData, folder: Path) -> Path:
    """One label stands in the modality, the other in the obs of the whole file, as mudata wrote it until 0.3."""
    path, protein = folder / "cells.h5mu", ad.AnnData(np.ones((11, 2)), obs=cells.obs[[]])
    own = cells.copy()
    del own.obs["perturbation"]
    whole = cells.obs[["perturbation"]].iloc[::-1].rename(columns={"perturbation": "rna:perturbation"})
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "mod/prot", protein)
        ad.io.write_elem(file, "mod/rna", own)
        ad.io.write_elem(file, "obs", whole)
    return path


def loom(cells: ad.AnnData, folder: Path) -> Path:
    path = folder / "cells.loom"
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=cells.X.T.toarray(), chunks=(4, 4), compression="gzip")
        for place, table in (("row_attrs", cells.var), ("col_attrs", cells.obs)):
            for name, values in table.items():
                values = values.to_numpy()
                kind = None if values.dtype.kind in "if" else TEXT
                file.create_dataset(f"{place}/{name}", data=list(values), dtype=kind)
        file.create_dataset("row_attrs/Gene", data=list(cells.var_names), dtype=TEXT)
        file.create_dataset("col_attrs/CellID", data=list(cells.obs_names), dtype=TEXT)
        file.create_dataset("col_attrs/umap", data=np.zeros((cells.n_obs, 2)))
    return path


def tenx_v3(cells: ad.AnnData, folder: Path) -> Path:
    """With guides and antibodies among the features, which are no genes."""
    path = folder / "filtered_feature_bc_matrix.h5"
    noise = sp.csr_matrix(np.full((cells.n_obs, 2), 9))
    whole = sp.hstack([cells.X[:, :3], noise, cells.X[:, 3:]]).tocsr()
    more = [("guide-1", "guide-1", "CRISPR Guide Capture"), ("CD3", "CD3", "Antibody Capture")]
    rows = [(i, n, "Gene Expression") for i, n in zip(IDS, cells.var_names, strict=True)]
    rows = [*rows[:3], *more, *rows[3:]]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(whole, part).astype("i8" if part != "data" else "i4")
        group["shape"] = np.array(whole.shape[::-1])
        group["barcodes"] = np.array(cells.obs_names, dtype="S")
        for place, name in enumerate(("id", "name", "feature_type")):
            group[f"features/{name}"] = np.array([row[place] for row in rows], dtype="S")
    return path


def tenx_v2(cells: ad.AnnData, folder: Path) -> Path:
    path = folder / "filtered_gene_bc_matrices_h5.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(cells.X, part).astype("i4")
        group["shape"] = np.array(cells.shape[::-1])
        for name, values in (("barcodes", cells.obs_names), ("genes", IDS), ("gene_names", cells.var_names)):
            group[name] = np.array(values, dtype="S")
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def _mtx(path: Path, matrix: sp.csr_matrix) -> None:
    path.parent.mkdir(exist_ok=True)
    plain = path.with_name("plain.mtx")
    scipy.io.mmwrite(plain, sp.coo_matrix(matrix.astype(int)))
    _write(path, plain.read_text())
    plain.unlink()


def tenx_folder(cells: ad.AnnData, folder: Path) -> Path:
    made = folder / "filtered_feature_bc_matrix"
    _mtx(made / "matrix.mtx.gz", cells.X.T)
    rows = [f"{i}\t{n}\tGene Expression\n" for i, n in zip(IDS, cells.var_names, strict=True)]
    _write(made / "features.tsv.gz", "".join(rows))
    _write(made / "barcodes.tsv.gz", "".join(f"{name}\n" for name in cells.obs_names))
    return made


def tenx_file_of_geo(cells: ad.AnnData, folder: Path) -> Path:
    """The matrix itself is named, among the files of two samples; features of version 2."""
    made = folder / "GSE1_RAW"
    _mtx(made / "GSM2_other_matrix.mtx.gz", cells.X.T[:, :2])
    _mtx(made / "GSM1_first_matrix.mtx.gz", cells.X.T)
    for sample, names in (("GSM1_first", cells.obs_names), ("GSM2_other", cells.obs_names[:2])):
        rows = [f"{i}\t{n}\n" for i, n in zip(IDS, cells.var_names, strict=True)]
        _write(made / f"{sample}_genes.tsv.gz", "".join(rows))
        _write(made / f"{sample}_barcodes.tsv.gz", "".join(f"{name}\n" for name in names))
    return made / "GSM1_first_matrix.mtx.gz"


def parse_folder(cells: ad.AnnData, folder: Path) -> Path:
    made = folder / "DGE_filtered"
    _mtx(made / "count_matrix.mtx", cells.X)
    _write(made / "all_genes.csv", pd.DataFrame({"gene_id": IDS, "gene_name": cells.var_names}).to_csv(index=False))
    _write(made / "cell_metadata.csv", cells.obs.rename_axis("bc_wells").to_csv())
    return made


def kallisto_folder(cells: ad.AnnData, folder: Path) -> Path:
    made = folder / "counts_unfiltered"
    _mtx(made / "cells_x_genes.mtx", cells.X)
    _write(made / "cells_x_genes.genes.txt", "".join(f"{i}.3\n" for i in IDS))
    _write(made / "cells_x_genes.barcodes.txt", "".join(f"{name}\n" for name in cells.obs_names))
    return made


def gzipped(cells: ad.AnnData, folder: Path) -> Path:
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "cells.h5ad.gz").write_bytes(gzip.compress((folder / "cells.h5ad").read_bytes()))
    (folder / "cells.h5ad").unlink()
    return folder / "cells.h5ad.gz"


def gzipped_tenx(cells: ad.AnnData, folder: Path) -> Path:
    path = tenx_v3(cells, folder)
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def soma(cells: ad.AnnData, folder: Path) -> Path:
    """As tiledbsoma writes an AnnData."""
    pytest.importorskip("tiledbsoma", reason="needs the extra soma")
    import tiledbsoma.io

    tiledbsoma.io.from_anndata(str(folder / "cells_soma"), cells, measurement_name="RNA")
    return folder / "cells_soma"


ZARR = [zarr_v2, zarr_v3, zarr_sharded, zarr_zip, zarr_of_columns, zarr_dense]
LABELLED = [*ZARR, soma, h5mu, loom, parse_folder, gzipped]
WITHOUT_LABELS = [tenx_v3, tenx_v2, tenx_folder, tenx_file_of_geo, kallisto_folder, gzipped_tenx]
Make = Callable[[ad.AnnData, Path], Path]


@pytest.mark.parametrize("scratch", [False, True], ids=["", "scratch"])
@pytest.mark.parametrize("make", [*LABELLED, *WITHOUT_LABELS], ids=lambda make: make.__name__)
def test_every_format_gives_the_same_cells(make: Make, scratch: bool, cells: ad.AnnData, tmp_path: Path):
    wanted = cells.copy()
    path = make(cells, tmp_path)
    for _ in range(1 + scratch):  # the second time from what the first has left there
        source = FileCounts(path, scratch=tmp_path / "scratch" if scratch else None)
        assert (source.n_cells, source.n_genes) == wanted.shape
        assert source.gene_columns.ensembl_ids == IDS
        if make is not kallisto_folder:  # which has no symbols
            assert source.genes == list(wanted.var_names)
        found = [source.block(*ends).toarray() for ends in source.ranges(4)]
        np.testing.assert_array_equal(np.concatenate(found), wanted.X.toarray())
        np.testing.assert_array_equal(source.block(2, 5).toarray(), wanted.X[2:5].toarray())
        assert list(source.cell_ids(3, 7)) == list(wanted.obs_names[3:7])
        if make in LABELLED:
            for key in ("perturbation", "lane"):
                codes, names = source.labels(key)
                assert [names[c] for c in codes] == list(map(str, wanted.obs[key]))
        source.close()


def test_files_of_the_libraries_themselves(tmp_path):
    """loompy and mudata wrote these; the modality's counts are those of the h5ad file beside them."""
    opened = []
    for name in ("anndata-0.12.h5ad", "loompy.loom", "mudata.h5mu"):
        (tmp_path / name).write_bytes(gzip.decompress((STORED / f"{name}.gz").read_bytes()))
        opened.append(FileCounts(tmp_path / name))
    plain, *others = opened
    for source in others:
        assert source.gene_columns == plain.gene_columns
        np.testing.assert_array_equal(source.block(0, 48).toarray(), plain.block(0, 48).toarray())
        for key in ("perturbation", "cell_type"):
            codes, names = source.labels(key)
            assert [names[c] for c in codes] == [plain.labels(key)[1][c] for c in plain.labels(key)[0]]
    doubled = FileCounts(tmp_path / "mudata.h5mu", "mod/rna/raw")
    np.testing.assert_array_equal(doubled.block(0, 48).toarray(), 2 * plain.block(0, 48).toarray())
    assert FileCounts(tmp_path / "mudata.h5mu", "mod/prot").genes == ["CD3", "CD4", "CD8"]


@pytest.mark.parametrize("make", [tenx_folder, parse_folder])
def test_as_many_cells_as_genes(make: Make, tmp_path: Path):
    """Then the shape tells nothing, and the names of the files decide."""
    cells = make_cells(len(IDS))
    source = FileCounts(make(cells, tmp_path))
    np.testing.assert_array_equal(source.block(0, len(IDS)).toarray(), cells.X.toarray())


def test_what_is_left_out_is_said(cells, tmp_path):
    (said,) = FileCounts(tenx_v3(cells, tmp_path)).notes
    assert "1 feature of type CRISPR Guide Capture, 1 feature of type Antibody Capture" in said


class TestBadInput:
    def test_tables_of_another_sample(self, cells, tmp_path):
        folder = tenx_folder(cells, tmp_path)
        _write(folder / "barcodes.tsv.gz", "c0\n")
        with pytest.raises(EvaeError, match=r"is 7 x 11, but the tables beside it name 7 genes and 1 cell;"):
            FileCounts(folder)
        (folder / "barcodes.tsv.gz").unlink()
        with pytest.raises(EvaeError, match=r"lacks the tables of its genes and cells; put features\.tsv"):
            FileCounts(folder)

    def test_several_matrices(self, cells, tmp_path):
        with pytest.raises(EvaeError, match=r"several matrices \(GSM1_first_matrix\.mtx\.gz, GSM2.*; name one"):
            FileCounts(tenx_file_of_geo(cells, tmp_path).parent)

    def test_cut_files(self, cells, tmp_path):
        packed, folder = gzipped(cells, tmp_path), tenx_folder(cells, tmp_path)
        for path, given in ((packed, packed), (folder / "matrix.mtx.gz", folder)):
            path.write_bytes(path.read_bytes()[:-20])
            with pytest.raises(EvaeError, match=r"is damaged, or was not fetched to its end .*; fetch it anew"):
                FileCounts(given, scratch=tmp_path / "scratch")
            assert list(tmp_path.glob("scratch/*")) == []

    def test_a_zarr_store_of_something_else(self, tmp_path):
        import zarr

        zarr.open_group(tmp_path / "image.zarr", mode="w").create_group("labels")
        with pytest.raises(EvaeError, match=r"is a Zarr store, but no AnnData \(it holds labels\)"):
            FileCounts(tmp_path / "image.zarr")

    def test_modalities_without_rna(self, cells, tmp_path):
        with h5py.File(tmp_path / "cells.h5mu", "w") as file:
            for name in ("a", "b"):
                ad.io.write_elem(file, f"mod/{name}", cells)
        with pytest.raises(EvaeError, match=r'none or several of them are called rna; .*layer="mod/a"'):
            FileCounts(tmp_path / "cells.h5mu")
        assert FileCounts(tmp_path / "cells.h5mu", "mod/b").n_cells == 11

    def test_layers_where_there_are_none(self, cells, tmp_path):
        for make in (tenx_v3, tenx_folder):
            with pytest.raises(EvaeError, match="has no layers; leave layer out"):
                FileCounts(make(cells, tmp_path), "counts")
        with pytest.raises(EvaeError, match=r"cells\.loom has no layer 'spliced'"):
            FileCounts(loom(cells, tmp_path), "spliced")


class TestRawCounts:
    """As CELLxGENE lays its files out: normalised values in X, counts in raw, over more genes."""

    @pytest.fixture
    def browsed(self, cells, tmp_path) -> Path:
        normal = cells[:, :5].copy()
        normal.raw = cells
        normal.X = normal.X.log1p()
        normal.layers["scaled"] = normal.X.multiply(0.5).tocsr()
        normal.write_h5ad(tmp_path / "browsed.h5ad")
        return tmp_path / "browsed.h5ad"

    def test_they_are_named(self, browsed):
        with pytest.raises(EvaeError, match=r'look log-normalised; .* Whole numbers stand in raw: layer="raw"\.'):
            FileCounts(browsed).block(0, 3)

    def test_they_are_found(self, browsed, cells):
        source = FileCounts(browsed, "auto")
        assert source.n_genes == len(IDS)
        np.testing.assert_array_equal(source.block(0, 11).toarray(), cells.X.toarray())
        assert source.notes == [f"raw counts of {browsed}: X holds no counts; those in 'raw' are taken"]

    def test_x_comes_first(self, cells, tmp_path):
        cells.layers["spliced"] = cells.X * 2
        cells.write_h5ad(tmp_path / "cells.h5ad")
        source = FileCounts(tmp_path / "cells.h5ad", "auto")
        assert source.block(0, 11).sum() == cells.X.sum()
        assert source.notes == []

    def test_several_could_be(self, browsed, cells):
        with h5py.File(browsed, "r+") as file:
            for name in ("spliced", "unspliced"):
                ad.io.write_elem(file["layers"], name, cells.X[:, :5])
        assert "those in 'raw'" in FileCounts(browsed, "auto").notes[0]  # which has a usual name
        with h5py.File(browsed, "r+") as file:
            del file["raw"]
        with pytest.raises(EvaeError, match=r"several matrices with whole numbers \(spliced, unspliced\).*; name the"):
            FileCounts(browsed, "auto")
