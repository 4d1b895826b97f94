"""The same cells as many writers store them: every entrance gives what it gives for the cells in memory."""

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae import reversion
from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading.file_counts import FileCounts
from evae.data.streaming.split_anndata import read_split
from evae.evaluation import evaluate
from evae.models.contract_evae import EvaeError
from evae.reversion import ScreenNames

pytestmark = pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning", "ignore:Moving element from .uns")
QUIET = {"progress": False}
KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}
STORED = ("anndata-0.6", "anndata-0.7", "anndata-0.8", "anndata-0.10", "anndata-0.12", "anndata-0.13")
WRITTEN = ("SeuratDisk", "anndataR", "Muon.jl")
DIALECTS = (*STORED, *WRITTEN)
FOLDER = Path(__file__).with_name("stored_cells")
NAMES = ScreenNames(target_key="perturbation", anchor="control", controls=("control",), positives=("KO-GENE0039",))


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stored_cells_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE, LAYOUTS = _module("make"), _module("layouts").LAYOUTS


@pytest.fixture(scope="module")
def plain() -> ad.AnnData:
    counts, obs, var = MAKE.cells()
    return ad.AnnData(counts, obs=obs, var=var)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of the cells as a writer stores them."""
    folder = tmp_path_factory.mktemp("stored")

    def path(name: str) -> Path:
        made = folder / (name if name.endswith((".loom", ".h5mu")) else f"{name}.h5ad")
        if made.exists():
            return made
        if name in LAYOUTS:
            LAYOUTS[name](made, *MAKE.cells())
        else:
            made.write_bytes(gzip.decompress((FOLDER / f"{made.name}.gz").read_bytes()))
        return made

    return path


def dense(found: ad.AnnData) -> np.ndarray:
    return sp.csr_matrix(found.X).toarray()


@pytest.mark.parametrize("dialect", DIALECTS)
class TestFiles:
    @pytest.mark.parametrize(("layer", "times"), [(None, 1), ("raw", 2)])
    def test_prepare(self, dialect, layer, times, plain, stored, tmp_path):
        folder = prepare_dataset(stored(dialect), tmp_path / "data", layer=layer, **KEYS)
        found = ad.concat([read_split(folder, split) for split in ("train", "validation")])
        assert sorted(found.obs_names) == sorted(plain.obs_names)
        wanted = plain[found.obs_names]
        np.testing.assert_array_equal(dense(found), times * dense(wanted))
        for key in ("perturbation", "cell_type"):
            assert list(found.obs[key]) == list(wanted.obs[key])

    @pytest.mark.parametrize("ending", ["h5ad", "zarr", "parquet"])
    def test_embed(self, dialect, ending, plain, stored, tiny_checkpoint, pipe, run, tmp_path):
        wanted = pipe.embed(plain.copy(), **QUIET).obsm["X_evae"]
        out = tmp_path / f"embedded.{ending}"
        done = run("embed", tiny_checkpoint, stored(dialect), "--out", out, "--device", "cpu")
        if dialect == "anndata-0.6" and ending == "h5ad":
            assert done.code == 2
            assert "written by anndata before 0.7, whose files cannot hold an embedding of today" in done.err
            return
        assert done.code == 0, done.err
        if ending == "parquet":
            found = pd.read_parquet(out).set_index("cell_id")["embedding"]
            names, vectors = found.index, np.stack(found.to_numpy())
        elif ending == "zarr":
            found = ad.read_zarr(out)
            names, vectors = found.obs_names, found.obsm["X_evae"]
            assert list(found.obs["cell_type"]) == list(plain.obs["cell_type"])
        else:
            found = ad.read_h5ad(out)
            names, vectors = found.obs_names, found.obsm["X_evae"]
        assert list(names) == list(plain.obs_names)
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)

    def test_predict_and_reconstruct(self, dialect, plain, stored, tiny_checkpoint, pipe, run, tmp_path):
        controls = plain[plain.obs["perturbation"] == "control"].copy()
        wanted = pipe.predict(controls, "KO-GENE0039", n_cells=6, **QUIET)
        asked = ("--perturbation", "KO-GENE0039", "--n-cells", 6, "--device", "cpu", "--out", tmp_path / "p.h5ad")
        done = run("predict", tiny_checkpoint, "--controls", stored(dialect), *asked)
        assert done.code == 0, done.err
        found = ad.read_h5ad(tmp_path / "p.h5ad")
        np.testing.assert_array_equal(dense(found), dense(wanted))
        assert list(found.obs["cell_type"]) == list(wanted.obs["cell_type"])
        rebuilt = [pipe.reconstruct(c, **QUIET) for c in (stored(dialect), plain)]
        np.testing.assert_array_equal(*map(dense, rebuilt))
        assert list(rebuilt[0].obs["perturbation"]) == list(plain.obs["perturbation"])

    def test_predict_from_raw(self, dialect, stored, pipe):
        """Twice the counts are twice the library sizes."""
        sizes = []
        for layer in (None, "raw"):  # a key that the file does not have: all cells are taken for controls
            how = {"n_cells": 24, "layer": layer, "perturbation_key": "unknown"}
            found = pipe.predict(stored(dialect), "KO-GENE0039", **how, **QUIET)
            sizes.append(np.sort(found.obs["library_size"].to_numpy()))
        np.testing.assert_array_equal(2 * sizes[0], sizes[1])

    def test_evaluate(self, dialect, plain, stored):
        settings = {"control": "control", "suite": "perturbation", "with_baselines": False, "cache": None, **QUIET}
        predicted = plain[plain.obs["perturbation"] != "control"].copy()
        predicted.X = sp.csr_matrix(predicted.X)[np.random.default_rng(0).permutation(predicted.n_obs)]
        wanted = evaluate(predicted, plain, **settings).summary()
        found = evaluate(predicted, stored(dialect), **settings).summary()
        pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)
        wanted = evaluate(plain, plain, **settings).summary()
        found = evaluate(stored(dialect), stored(dialect), **settings).summary()
        pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)

    def test_reversion(self, dialect, plain, stored, tiny_checkpoint):
        few = {"n_permutations": 20, "n_bootstrap": 20, "n_shuffles": 0, "n_components": 3, **QUIET}
        how = {"model": tiny_checkpoint, "baselines": ("pca",), "device": "cpu", **few}
        wanted = reversion.run(plain, NAMES, **how).table()
        pd.testing.assert_frame_equal(reversion.run(stored(dialect), NAMES, **how).table(), wanted, atol=1e-4)

    def test_missing_labels_are_counted(self, dialect, stored):
        with pytest.raises(EvaeError, match=r"'gap' of .* is missing \(NaN\) in 12 cells"):
            FileCounts(stored(dialect)).labels("gap")


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "SeuratDisk"])
@pytest.mark.parametrize("backed", [None, "r"], ids=["in memory", "backed"])
def test_what_anndata_makes_of_a_file(dialect, backed, plain, stored, pipe, tiny_checkpoint):
    """The file opened by anndata first. anndata 0.12 opens all but those before 0.7 backed."""
    if dialect == "anndata-0.6" and backed:
        pytest.skip("anndata does not open this layout backed")
    cells = ad.read_h5ad(stored(dialect), backed=backed)
    controls = [c[(c.obs["perturbation"] == "control").to_numpy()] for c in (cells, plain)]
    found, wanted = (pipe.predict(c, "KO-GENE0039", n_cells=6, **QUIET) for c in controls)
    np.testing.assert_array_equal(dense(found), dense(wanted))
    cells = ad.read_h5ad(stored(dialect), backed=backed)
    for layer, times in ((None, 1), ("raw", 2)):
        again = plain.copy()
        again.X = times * again.X
        embedded = pipe.embed(cells, layer=layer, key=f"X_{times}", **QUIET).obsm[f"X_{times}"]
        np.testing.assert_allclose(embedded, pipe.embed(again, **QUIET).obsm["X_evae"], atol=1e-5)
    settings = {"control": "control", "suite": "perturbation", "with_baselines": False, "cache": None, **QUIET}
    found, wanted = (evaluate(c, plain, **settings).summary() for c in (cells, plain))
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)
    few = {"n_permutations": 20, "n_bootstrap": 20, "n_shuffles": 0, "n_components": 3, **QUIET}
    how = {"model": tiny_checkpoint, "baselines": (), "device": "cpu", **few}
    found, wanted = (reversion.run(c, NAMES, **how).table() for c in (cells, plain))
    pd.testing.assert_frame_equal(found, wanted, atol=1e-4)


class TestSeuratDisk:
    """What anndata itself reads wrong of these files, and what they do not tell."""

    def test_names_that_anndata_does_not_read(self, plain, stored, pipe):
        """anndata 0.12.19 gives the numbers of the factors, backed or not."""
        backed = ad.read_h5ad(stored("SeuratDisk"), backed="r")
        assert backed.obs["cell_type"].dtype.kind == "i"
        entrances = [
            lambda: pipe.predict(backed, "KO-GENE0039", n_cells=2, **QUIET),
            lambda: evaluate(plain, backed, control="control", cache=None, **QUIET),
            lambda: reversion.run(backed, NAMES, baselines=("pca",), **QUIET),
        ]
        for entrance in entrances:
            with pytest.raises(EvaeError, match=r"stores obs column '\w+' as SeuratDisk .*give the path of the file"):
                entrance()
        named = backed.obs["perturbation"].map(dict(enumerate(["KO-GENE0039", "KO-GENE0049", "control"])))
        backed.obs["perturbation"], backed.obs["cell_type"] = named, "type_A"
        controls = backed[(backed.obs["perturbation"] == "control").to_numpy()]
        assert pipe.predict(controls, "KO-GENE0039", n_cells=2, **QUIET).n_obs == 2

    def test_logicals_and_missing_numbers(self, stored):
        source = FileCounts(stored("SeuratDisk"))
        with pytest.raises(EvaeError, match=r"'treated' of obs of .* holds 0, 1 and 2, .* FALSE, TRUE and missing"):
            source.labels("treated")
        with pytest.raises(EvaeError, match=r"'score' of .* is missing \(NaN\) in 24 cells"):
            source.labels("score")
        source.close()
        numbers = FileCounts(stored("anndata-0.12"))
        assert numbers.labels("dose")[1] == ["0", "1", "2"]


def test_several_modalities_opened_backed(stored, pipe, plain):
    """anndata 0.12.19 opens the file of mudata 0.4.1 as cells by the genes of all modalities."""
    cells = ad.read_h5ad(stored("mudata.h5mu"), backed="r")
    assert cells.shape == (48, 63)
    entrances = [
        lambda: pipe.predict(cells, "KO-GENE0039", n_cells=2, **QUIET),
        lambda: pipe.embed(cells, **QUIET),
        lambda: evaluate(cells, plain, control="control", cache=None, **QUIET),
        lambda: reversion.run(cells, NAMES, baselines=("pca",), **QUIET),
    ]
    for entrance in entrances:
        with pytest.raises(EvaeError, match=r"holds several modalities \(prot, rna\)"):
            entrance()
    with h5py.File(stored("mudata.h5mu")) as file:
        rna = ad.io.read_elem(file["mod/rna"])
    np.testing.assert_array_equal(pipe.embed(rna, **QUIET).obsm["X_evae"], pipe.embed(plain, **QUIET).obsm["X_evae"])
