"""What people hand over for an h5ad file: it is said what it is, and the way to an h5ad file works."""

import gzip
import shlex
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae.data.reading.file_counts import FileCounts
from evae.data.store import resolve_dataset
from evae.models.contract_evae import EvaeError

STORED = Path(__file__).parents[2] / "stored_cells"


@pytest.fixture
def cells() -> ad.AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (6, 4)).astype(np.float32)
    obs = pd.DataFrame({"label": list("xyxyxy")}, index=[f"c{i}" for i in range(6)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list("ABCD")))


def table(cells: ad.AnnData, folder: Path) -> Path:
    cells.to_df().to_csv(folder / "cells.csv")
    return folder / "cells.csv"


def table_of_tabs(cells: ad.AnnData, folder: Path) -> Path:
    cells.to_df().to_csv(folder / "cells.tsv.gz", sep="\t")
    return folder / "cells.tsv.gz"


@pytest.mark.parametrize(
    ("make", "what"),
    [(table, "is a table"), (table_of_tabs, "is a table")],
    ids=["csv", "tsv.gz"],
)
def test_the_way_to_an_h5ad_file_works(cells, make, what, tiny_checkpoint, run, tmp_path):
    """The command in the message is run as it stands; the file that it makes is read."""
    given = make(cells, tmp_path)
    with pytest.raises(EvaeError, match=what) as caught:
        FileCounts(given)
    message = str(caught.value)
    asked = ("--perturbation", "KO-GENE0039", "--out", tmp_path / "p.h5ad")
    assert message in run("prepare", given, "--control", "x", "--out", tmp_path / "out").err
    assert message in run("predict", tiny_checkpoint, "--controls", given, *asked).err
    assert message in run("evaluate", given, given, "--control", "x", "--out", tmp_path / "e").err
    words = shlex.split(message[message.index(": ") + 2 :])
    before = set(tmp_path.rglob("*.h5ad"))
    subprocess.run([sys.executable if w == "python" else w for w in words], check=True, capture_output=True)
    (made,) = set(tmp_path.rglob("*.h5ad")) - before
    source = FileCounts(made)
    assert source.genes == list("ABCD")
    assert source.cell_ids(0, 6).tolist() == list(cells.obs_names)
    np.testing.assert_array_equal(source.block(0, 6).toarray(), cells.X.toarray())


def test_other_files_are_named(tmp_path):
    (tmp_path / "cells.rds").write_bytes(gzip.compress(b"RDX3"))
    (tmp_path / "empty").mkdir()
    with h5py.File(tmp_path / "cells.h5seurat", "w") as file:
        file.create_group("assays/RNA")
        file.create_group("meta.data")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = [1, 2]
    for name, what in (
        ("cells.rds", "holds objects of R"),
        ("empty", "is a folder without cells"),
        ("cells.h5seurat", "is an h5Seurat file"),
        ("other.h5", r"is an HDF5 file, but no h5ad file \(it holds numbers\)"),
    ):
        with pytest.raises(EvaeError, match=what):
            FileCounts(tmp_path / name)


@pytest.mark.parametrize("part", ["obs", "var", "uns"])
def test_a_file_whose_writing_failed(cells, part, run, tmp_path):
    """anndata 0.12.19 stops at what it cannot write, and leaves a file that it opens again."""
    path = tmp_path / "cells.h5ad"
    if part == "uns":
        cells.uns["thing"] = object()
    else:
        table = getattr(cells, part)
        table["thing"] = np.array([object() for _ in table.index], dtype=object)
    with pytest.raises(Exception, match=r"thing|write"):
        cells.write_h5ad(path)
    names = ("--perturbation-key", "label", "--cell-type-key", "label")
    prepared = run("prepare", path, "--control", "x", "--out", tmp_path / "out", *names)
    if part == "uns":  # what is needed is there
        assert prepared.code == 0, prepared.err
        return
    evaluated = run("evaluate", path, path, "--control", "x", "--out", tmp_path / "e", *names)
    for said in (prepared, evaluated):
        assert said.code == 2
        assert f"has no whole {part}: it was not written to its end; write it anew" in said.err


@pytest.mark.parametrize("missing", ["obs", "var", "obs/label", "var/_index", "X/indptr"])
def test_a_file_that_lacks_a_part(cells, missing, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file[missing]
    with pytest.raises(EvaeError, match=r"(has no|lack) .*not written to its end; write it anew"):
        FileCounts(tmp_path / "cells.h5ad")


def test_a_file_that_was_cut(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    content = (tmp_path / "cells.h5ad").read_bytes()
    (tmp_path / "cells.h5ad").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaeError, match=r"cells\.h5ad is damaged, or was not written or fetched to its end"):
        FileCounts(tmp_path / "cells.h5ad")


def test_an_obs_without_columns(cells, run, tmp_path):
    cells.obs = cells.obs[[]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    said = run("prepare", tmp_path / "cells.h5ad", "--control", "x", "--out", tmp_path / "out")
    assert "has no obs column 'perturbation'. It has no labels of cells; evae prepare takes" in said.err


class TestFilters:
    def test_a_missing_filter_is_named(self, tmp_path):
        """A filter that no package brings, and the zstd of hdf5plugin where that is not installed."""
        (tmp_path / "cells.h5ad").write_bytes(gzip.decompress((STORED / "zstd.h5ad.gz").read_bytes()))
        if h5py.h5z.filter_avail(32015):
            source = FileCounts(tmp_path / "cells.h5ad")
            assert source.block(0, 48).shape == (48, 60)
            assert source.labels("cell_type")[1] == ["type_A", "type_B"]
        else:
            with pytest.raises(EvaeError, match=r"cells\.h5ad is compressed with zstd, .*: pip install hdf5plugin"):
                FileCounts(tmp_path / "cells.h5ad")

    def test_the_package_of_filters_is_imported(self, tmp_path):
        (tmp_path / "hdf5plugin.py").write_text("print('filters are there')\n")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import evae.data.reading"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "filters are there" in done.stdout


class TestDatasetInstead:
    """Cells, or a file of them, named where a dataset folder is meant."""

    @pytest.mark.parametrize("there", [True, False])
    @pytest.mark.parametrize("name", ["cells.h5ad", "data/cells.h5ad"])
    def test_an_h5ad_file(self, name, there, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("data").mkdir()
        if there:
            Path(name).write_bytes(b"")
        with pytest.raises(EvaeError, match=rf"{name} is a file, not a dataset .*prepare {name} --control"):
            resolve_dataset(name)

    def test_other_formats(self, cells, tmp_path):
        given = table(cells, tmp_path)
        with pytest.raises(EvaeError, match=rf"evae prepare FILE\.h5ad .*`evae prepare {given}` says how"):
            resolve_dataset(given)
        with pytest.raises(EvaeError, match=r"evae prepare .*cells\.zarr --control LABEL"):
            resolve_dataset(tmp_path / "cells.zarr")

    def test_the_command_line(self, run, tmp_path):
        (tmp_path / "cells.h5ad").write_bytes(b"")
        said = run("train", "tokenizer", f"dataset={tmp_path}/cells.h5ad", f"output_dir={tmp_path}/out")
        assert said.code == 2
        assert "is a file, not a dataset folder" in said.err
