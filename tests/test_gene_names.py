"""The same cells in every way that people name genes: every entrance gives what it gives for plain symbols.

Genes are also in another order in each dialect, so what is matched by position shows.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import evae
from evae import reversion
from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.split_anndata import read_split
from evae.evaluation import evaluate
from evae.inference.pipeline import Pipeline
from evae.models.contract_evae import EvaeError
from evae.models.modeling_evae import to_dense
from evae.reversion import ScreenNames
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*not unique", "ignore:Setting element")
QUIET = {"progress": False}
KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}


def with_symbols(symbols: list[str], ids: list[str]) -> dict[str, pd.DataFrame]:
    """`var` in every dialect that tells the symbols, by name of the dialect."""
    numbers = [str(g) for g in range(len(ids))]
    named = ("gene_name", "gene_symbols", "Gene Symbol", "feature_name", "symbol")
    missing = pd.Series(symbols, dtype=object).where(np.arange(len(ids)) % 9 > 0)
    return {
        **{f"symbols, {c}": pd.DataFrame({c: ids}, index=symbols) for c in ("gene_ids", "ensembl_id", "Ensembl_ID")},
        **{f"ids, {c}": pd.DataFrame({c: pd.Categorical(symbols)}, index=ids) for c in named},
        "versions, gene_name": pd.DataFrame({"gene_name": symbols}, index=[f"{i}.{g}" for g, i in enumerate(ids)]),
        "ids, some symbols missing": pd.DataFrame({"gene_name": missing.tolist()}, index=ids),
        "numbers, gene_name": pd.DataFrame({"gene_name": symbols}, index=numbers),
        "numbers, both": pd.DataFrame({"gene_name": symbols, "Ensembl_ID": ids}, index=numbers),
        "one symbol twice, gene_ids": pd.DataFrame({"gene_ids": ids}, index=[symbols[1], *symbols[1:]]),
    }


def without_symbols(ids: list[str]) -> dict[str, pd.DataFrame]:
    return {
        "ids": pd.DataFrame(index=ids),
        "versions": pd.DataFrame(index=[f"{i}.{g}" for g, i in enumerate(ids)]),
        "numbers, feature_id": pd.DataFrame({"feature_id": ids}, index=[str(g) for g in range(len(ids))]),
    }


DIALECTS = [*with_symbols(["a", "b"], ["", ""]), *without_symbols(["", ""])]
KINDS = [  # one dialect of each kind, where an entrance takes longer
    *("symbols, Ensembl_ID", "versions, gene_name", "ids, some symbols missing"),
    *("numbers, both", "one symbol twice, gene_ids", "numbers, feature_id"),
]


@pytest.fixture(scope="module")
def ids(screen: ad.AnnData) -> list[str]:
    return [f"ENSG{7 * g:011d}" for g in range(screen.n_vars)]


@pytest.fixture(scope="module")
def said(screen: ad.AnnData, ids: list[str]) -> Callable[[ad.AnnData, str], ad.AnnData]:
    """The same cells, genes shuffled and named in a dialect."""

    def change(cells: ad.AnnData, dialect: str) -> ad.AnnData:
        order = np.random.default_rng(5).permutation(cells.n_vars)
        own, symbols = [ids[g] for g in order], [cells.var_names[g] for g in order]
        var = (with_symbols(symbols, own) | without_symbols(own))[dialect]
        return ad.AnnData(sp.csr_matrix(cells.X)[:, order], obs=cells.obs, var=var)

    return change


@pytest.fixture(scope="module")
def informed(tiny_checkpoint: Path, ids: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as if its dataset had told the Ensembl ids."""
    folder = tmp_path_factory.mktemp("informed") / "prior"
    shutil.copytree(tiny_checkpoint, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"ensembl_ids": ids}))
    return folder


@pytest.fixture(scope="module")
def knowing(informed: Path) -> Pipeline:
    return evae.pipeline(informed, device="cpu")


@pytest.fixture(scope="module")
def cells(screen: ad.AnnData) -> ad.AnnData:
    """Forty controls."""
    return screen[screen.obs["perturbation"] == "control"][:40].copy()


@pytest.fixture(scope="module")
def drawn(knowing: Pipeline, cells: ad.AnnData) -> ad.AnnData:
    """Predictions for the plain controls."""
    return knowing.predict(cells, knowing.processor.perturbations[1], n_cells=6, **QUIET)


@pytest.fixture(params=["in memory", "view", "backed", "backed view"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[ad.AnnData], ad.AnnData]:
    """The cells as they are, or as a view of more cells, or left in a file."""
    if request.param == "in memory":
        return lambda cells: cells

    def other(cells: ad.AnnData) -> ad.AnnData:
        n = cells.n_obs
        if request.param != "backed":  # each cell is followed by another that is not asked for
            cells = cells[np.repeat(np.arange(n), 2)].copy()
            cells.obs_names = [f"cell-{i}" for i in range(2 * n)]
        if request.param == "view":
            return cells[::2]
        cells.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        return backed if request.param == "backed" else backed[::2]

    return other


def over_panel(found: ad.AnnData) -> np.ndarray:
    return sp.csr_matrix(found.X).toarray()


@pytest.mark.parametrize("dialect", KINDS)
class TestAnnData:
    """What a user does with cells in memory, and with cells that stay in their file."""

    def test_predict_and_reconstruct(self, dialect, form, said, knowing, cells, drawn):
        given = form(said(cells, dialect))
        found = knowing.predict(given, knowing.processor.perturbations[1], n_cells=6, **QUIET)
        np.testing.assert_array_equal(over_panel(found), over_panel(drawn))
        assert found.uns["evae"]["gene_coverage"] == 1.0
        rebuilt, plain = (knowing.reconstruct(c, **QUIET) for c in (given, cells))
        np.testing.assert_array_equal(over_panel(rebuilt), over_panel(plain))

    def test_embed_and_processor(self, dialect, form, said, knowing, cells):
        given = form(said(cells, dialect))
        wanted = knowing.embed(cells.copy(), **QUIET).obsm["X_evae"]
        if given.isbacked and given.is_view:
            with pytest.raises(EvaeError, match=r"adata\.to_memory\(\)"):
                knowing.embed(given, **QUIET)
        else:
            np.testing.assert_allclose(knowing.embed(given, **QUIET).obsm["X_evae"], wanted, atol=1e-5)
        batch, plain = (knowing.processor(c) for c in (given, cells))
        dense = [to_dense(b["counts"], b["gene_ids"], cells.n_vars).numpy() for b in (batch, plain)]
        np.testing.assert_array_equal(*dense)
        assert knowing.gene_coverage(given) == 1.0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_command_line_and_the_pipeline(dialect, said, informed, knowing, cells, drawn, run, tmp_path):
    given = said(cells, dialect)
    given.write_h5ad(tmp_path / "cells.h5ad")
    embedded = run("embed", informed, tmp_path / "cells.h5ad", "--out", tmp_path / "e.h5ad", "--device", "cpu")
    assert embedded.code == 0, embedded.err
    wanted = knowing.embed(cells.copy(), **QUIET).obsm["X_evae"]
    np.testing.assert_allclose(ad.read_h5ad(tmp_path / "e.h5ad").obsm["X_evae"], wanted, atol=1e-5)
    asked = ("--perturbation", knowing.processor.perturbations[1], "--n-cells", 6, "--device", "cpu")
    code = run("predict", informed, "--controls", tmp_path / "cells.h5ad", *asked, "--out", tmp_path / "p.h5ad")
    assert code.code == 0, code.err
    np.testing.assert_array_equal(over_panel(ad.read_h5ad(tmp_path / "p.h5ad")), over_panel(drawn))
    found = knowing.predict(given, knowing.processor.perturbations[1], n_cells=6, **QUIET)
    np.testing.assert_array_equal(over_panel(found), over_panel(drawn))
    np.testing.assert_allclose(knowing.embed(given, **QUIET).obsm["X_evae"], wanted, atol=1e-5)


@pytest.mark.parametrize("dialect", KINDS)
class TestFiles:
    def test_prepare_with_another_file(self, dialect, said, screen, ids, tmp_path):
        """Two files, one in the dialect and one plain: the same gene is the same column."""
        screen = screen[:300]
        plain = screen.copy()
        plain.var["gene_ids"] = ids
        plain.obs_names = [f"plain-{name}" for name in screen.obs_names]
        plain.write_h5ad(tmp_path / "plain.h5ad")
        said(screen, dialect).write_h5ad(tmp_path / "other.h5ad")
        for files in (["plain.h5ad", "other.h5ad"], ["other.h5ad", "plain.h5ad"]):
            out = prepare_dataset([tmp_path / f for f in files], tmp_path / files[0][:5], **KEYS)
            found = read_split(out, "train")
            assert sorted(found.var["ensembl_id"]) == sorted(ids)
            wanted = pd.DataFrame(screen.X.toarray(), index=screen.obs_names, columns=ids)
            wanted = wanted.loc[[name.removeprefix("plain-") for name in found.obs_names], found.var["ensembl_id"]]
            np.testing.assert_array_equal(over_panel(found), wanted.to_numpy())

    def test_evaluate(self, dialect, said, screen, screen_split, tmp_path):
        """Predictions named by the model, real cells by the user, and the other way round; file and AnnData."""
        held_out = screen.obs["cell_type"].eq("type_B") & screen.obs["perturbation"].isin(screen_split["pert"])
        real = screen[held_out | screen.obs["perturbation"].eq("control")].copy()
        predicted = screen[held_out].copy()
        predicted.X = sp.csr_matrix(predicted.X)[np.random.default_rng(0).permutation(predicted.n_obs)]
        ids = [f"ENSG{7 * g:011d}" for g in range(screen.n_vars)]
        for side in (real, predicted):
            side.var["ensembl_id"] = ids
        settings = {"suite": "perturbation", "with_baselines": False, "cache": None, "seeds": (0,), **QUIET}
        wanted = evaluate(predicted, real, **settings).summary()
        other_real, other_predicted = said(real, dialect), said(predicted, dialect)
        other_real.write_h5ad(tmp_path / "real.h5ad")
        for pair in ((predicted, other_real), (predicted, tmp_path / "real.h5ad"), (other_predicted, real)):
            pd.testing.assert_frame_equal(evaluate(*pair, **settings).summary(), wanted, rtol=1e-5)

    def test_reversion(self, dialect, said, informed, screen, tmp_path):
        cells = screen[:400].copy()
        cells.obs["condition"] = np.where(np.arange(400) % 2, "Treated", "Untreated")
        targets = [p for p in cells.obs["perturbation"].cat.categories if p != "control"]
        names = ScreenNames(target_key="perturbation", anchor="control", controls=("control",), positives=targets[:2])
        few = {"n_permutations": 20, "n_bootstrap": 20, "n_shuffles": 0, "n_components": 3, **QUIET}
        how = {"model": informed, "baselines": ("pca",), "device": "cpu", **few}
        wanted = reversion.run(cells, names, **how).table()
        given = said(cells, dialect)
        given.write_h5ad(tmp_path / "cells.h5ad")
        for data in (given, tmp_path / "cells.h5ad"):
            pd.testing.assert_frame_equal(reversion.run(data, names, **how).table(), wanted, atol=1e-4)


@pytest.mark.parametrize("dialect", ["numbers, both", "versions, gene_name"])
def test_training_sees_the_names(dialect, said, screen, ids, small_settings, tmp_path):
    said(screen, dialect).write_h5ad(tmp_path / "cells.h5ad")
    prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "data", **KEYS)
    places = [f"dataset={tmp_path / 'data'}", f"output_dir={tmp_path / 'tokenizer'}"]
    trained = train_tokenizer(load_settings("tokenizer", None, [*small_settings["tokenizer"], *places]))
    pipe = evae.pipeline(trained, device="cpu")
    assert dict(zip(pipe.processor.genes, pipe.processor.ensembl_ids, strict=True)) == dict(
        zip(screen.var_names, ids, strict=True)
    )
    plain = screen[:20].copy()
    first, second = (pipe.embed(c, **QUIET).obsm["X_evae"] for c in (plain, said(screen[:20].copy(), dialect)))
    np.testing.assert_allclose(first, second, atol=1e-5)


class TestPredictedNames:
    """A prediction calls genes as the controls do, so that the two can be concatenated."""

    @pytest.mark.parametrize("dialect", ["ids, gene_name", "versions", "symbols, gene_ids"])
    def test_controls_and_predictions_are_concatenated(self, dialect, said, knowing, cells):
        given = said(cells, dialect)
        found = knowing.predict(given, knowing.processor.perturbations[1], n_cells=2, **QUIET)
        both = ad.concat([given, found])
        assert set(both.var_names) == set(given.var_names)
        assert list(found.var["ensembl_id"]) == knowing.processor.ensembl_ids
        if "gene_symbol" in found.var:
            assert list(found.var["gene_symbol"]) == knowing.processor.genes

    def test_genes_that_the_controls_lack_are_named_alike(self, said, knowing, cells, ids):
        given = said(cells, "versions")[:, :50].copy()
        with pytest.warns(UserWarning, match="measure 83% of the model's gene panel"):
            found = knowing.predict(given, knowing.processor.perturbations[1], n_cells=2, **QUIET)
        assert set(given.var_names) < set(found.var_names)
        assert set(found.var_names) - set(given.var_names) < set(ids)

    @pytest.mark.parametrize("dialect", ["numbers, both", "one symbol twice, gene_ids"])
    def test_names_that_name_nothing_do_not_come_back(self, dialect, said, knowing, cells):
        found = knowing.predict(said(cells, dialect), knowing.processor.perturbations[1], n_cells=2, **QUIET)
        assert list(found.var_names) == knowing.processor.genes


class TestRefused:
    def numbered(self, cells: ad.AnnData) -> ad.AnnData:
        return ad.AnnData(cells.X, obs=cells.obs, var=pd.DataFrame(index=[str(g) for g in range(cells.n_vars)]))

    def test_numbers_alone(self, screen, cells, knowing, tmp_path):
        given = self.numbered(screen)
        given.write_h5ad(tmp_path / "cells.h5ad")
        given[::-1].copy().write_h5ad(tmp_path / "more.h5ad")
        entrances = [
            lambda: prepare_dataset([tmp_path / "cells.h5ad", tmp_path / "more.h5ad"], tmp_path / "out", **KEYS),
            lambda: knowing.predict(self.numbered(cells), knowing.processor.perturbations[1], **QUIET),
            lambda: knowing.embed(self.numbered(cells), **QUIET),
            lambda: knowing.reconstruct(self.numbered(cells), **QUIET),
            lambda: evaluate(given, given, **QUIET),
            lambda: evaluate(tmp_path / "cells.h5ad", screen, **QUIET),
        ]
        for entrance in entrances:
            with pytest.raises(EvaeError, match=r"only numbered \(0, 1, 2, \.\.\.\); put gene symbols"):
                entrance()
        assert not list(tmp_path.glob("out*"))

    def test_a_symbol_of_two_genes_in_a_panel(self, screen, ids, tmp_path):
        """Two files hold two genes of a symbol in another order; a third one of them, which is no fault."""
        symbols = ["DUP", "DUP", *screen.var_names[2:]]
        first = ad.AnnData(screen.X, obs=screen.obs, var=pd.DataFrame({"gene_name": symbols}, index=ids))
        first.write_h5ad(tmp_path / "first.h5ad")
        first[:, ::-1].write_h5ad(tmp_path / "second.h5ad")
        first[:, 1:].write_h5ad(tmp_path / "third.h5ad")
        files = [tmp_path / f"{name}.h5ad" for name in ("third", "second", "first")]
        (tmp_path / "panel.txt").write_text("\n".join(["DUP", *symbols[2:20]]))
        with pytest.raises(EvaeError, match=rf"DUP \({ids[1]}, {ids[0]}\); name these genes by their Ensembl ids"):
            prepare_dataset(files, tmp_path / "out", genes=tmp_path / "panel.txt", **KEYS)
        (tmp_path / "panel.txt").write_text("\n".join([ids[1], *symbols[2:20]]))
        found = read_split(prepare_dataset(files, tmp_path / "out", genes=tmp_path / "panel.txt", **KEYS), "train")
        wanted = pd.DataFrame(screen.X.toarray()[:, 1:20], index=screen.obs_names).loc[found.obs_names]
        np.testing.assert_array_equal(over_panel(found), wanted.to_numpy())
        only = prepare_dataset(files[:1], tmp_path / "only", genes=tmp_path / "panel.txt", **KEYS)
        assert read_split(only, "train").n_vars == 19
