"""Baselines in a latent space: their arithmetic with a plain model, their wiring, scVI and scGen where installed."""

import sys
from types import ModuleType

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation import evaluate
from evae.evaluation.cells.comparison import compare
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.cells.projection import dense
from evae.evaluation.systems.latent_shift import latent_shift
from evae.evaluation.systems.names import SCVI_SHIFT
from evae.evaluation.systems.scgen_baseline import scgen_shift
from evae.evaluation.systems.scvi_baseline import scvi_shift
from evae.models.contract_evae import EvaeError

from ..conftest import make_screen

PAIR = ("B", "G1")


class Plain:
    """A latent space that is log1p CP10K itself, and a decoder that draws nothing."""

    def encode(self, counts):
        return log1p_cp10k(counts, "raw counts").toarray()

    def decode(self, latents, totals, rng):
        self.totals = totals
        return sp.csr_matrix(np.expm1(latents.clip(min=0)) * totals[:, None] / 1e4)


@pytest.fixture(scope="module")
def three_types():
    """Held out: B with G1. Training has G1 in A and C, three times as many cells in C as in A."""
    cells = make_screen(cell_types=("A", "B", "C"))
    more = make_screen(cell_types=("C",), n_cells=80, seed=5, prefix="more")
    held_out = (cells.obs.cell_type == "B") & (cells.obs.perturbation == "G1")
    train = ad.concat([cells[~held_out], more[more.obs.perturbation != "control"]])
    return compare(cells[held_out].copy(), cells[held_out].copy(), train)


def test_the_model_is_trained_on_the_raw_counts_of_training_cells(screen, real, perfect):
    seen = {}

    def fit(counts, seed):
        seen.update(counts=counts, seed=seed)
        return Plain()

    latent_shift(SCVI_SHIFT, compare(perfect, real, screen), 7, fit)
    assert seen["seed"] == 7
    np.testing.assert_array_equal(seen["counts"].toarray(), screen.X.toarray())  # all of them, in their order


def test_counts_come_back_from_files_too(real, tmp_path, screen, perfect):
    for name, cells in (("r", real), ("t", screen)):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    found = compare(perfect, tmp_path / "r.h5ad", tmp_path / "t.h5ad")
    np.testing.assert_array_equal(found.real.counts().toarray(), real.X.toarray())
    np.testing.assert_array_equal(found.training.reference.counts().toarray(), screen.X.toarray())
    some = np.flatnonzero(found.real.perturbation == "G1")
    np.testing.assert_array_equal(found.real.take(some).counts().toarray(), real.X.toarray()[some])


def test_controls_move_by_the_mean_shift_over_training_cell_types(three_types):
    model = Plain()
    found = latent_shift(SCVI_SHIFT, three_types, 0, lambda counts, seed: model)
    means = three_types.training.means
    shift = np.mean([means[(c, "G1")] - means[(c, "control")] for c in "AC"], axis=0)  # each type of one weight
    controls = three_types.controls
    moved = np.expm1((controls.matrix.toarray() + shift).clip(min=0))
    expected = np.log1p(moved / moved.sum(axis=1, keepdims=True) * 1e4)
    drawn = dense(found.draw(PAIR, len(controls), np.random.default_rng(0)))
    assert found.pairs == [PAIR]
    np.testing.assert_array_equal(np.sort(model.totals), np.sort(controls.counts().sum(axis=1).A1))
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0), atol=1e-4)
    np.testing.assert_allclose(found.mean(PAIR), expected.mean(axis=0), atol=1e-5)


def test_a_perturbation_that_training_never_saw_has_no_answer(screen, real, perfect):
    train = screen[screen.obs.perturbation != "G2"].copy()
    found = latent_shift(SCVI_SHIFT, compare(perfect, real, train), 0, lambda counts, seed: Plain())
    assert found.pairs == [("B", "G0"), ("B", "G1")]


def test_it_stands_in_every_table(screen, real, perfect, monkeypatch):
    monkeypatch.setitem(sys.modules, "scvi", ModuleType("scvi"))
    monkeypatch.setattr("evae.evaluation.systems.scvi_baseline.fit_scvi", lambda counts, seed: Plain())
    result = evaluate(perfect, real, screen, seeds=(0,), extra_baselines=("scvi",), progress=False)
    for title, _, rows in result.tables():
        assert SCVI_SHIFT in [system for system, _ in rows], title
    assert result.value("fd", SCVI_SHIFT) < result.value("fd", "control copy")
    assert result.stamp["settings"]["extra_baselines"] == ["scvi"]


def test_what_it_lacks_is_named(screen, real, perfect, monkeypatch):
    with pytest.raises(EvaeError, match="Did you mean 'scvi'"):
        evaluate(perfect, real, screen, extra_baselines=("svci",), progress=False)
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(EvaeError, match=r"pip install 'evae\[scvi\]'"):
        evaluate(perfect, real, screen, extra_baselines=("scvi",), progress=False)
    monkeypatch.setitem(sys.modules, "scvi", ModuleType("scvi"))
    with pytest.raises(EvaeError, match="trained on training cells"):
        evaluate(perfect, real, controls=screen, extra_baselines=("scvi",), progress=False)
    logged = screen.copy()
    logged.X = log1p_cp10k(screen.X, "raw counts")
    with pytest.raises(EvaeError, match="the training cells came as log1p"):
        latent_shift(SCVI_SHIFT, compare(perfect, real, logged), 0, lambda counts, seed: Plain())


@pytest.mark.slow
@pytest.mark.parametrize(("library", "baseline"), [("scvi", scvi_shift), ("pertpy", scgen_shift)])
def test_the_libraries_themselves_recover_known_effects(screen, real, perfect, library, baseline):
    pytest.importorskip(library, reason=f"{library} is in an extra", exc_type=ImportError)
    comparison = compare(perfect, real, screen)
    found = baseline(comparison)
    cells = found.draw(PAIR, 200, np.random.default_rng(0))
    assert cells.shape == (200, 60)
    assert (cells != found.draw(PAIR, 200, np.random.default_rng(0))).nnz == 0
    truth, control = (
        c.matrix[:].toarray().mean(axis=0)
        for c in (comparison.real.take(comparison.real.perturbation == "G1"), comparison.controls)
    )
    assert np.corrcoef(found.mean(PAIR) - control, truth - control)[0, 1] > 0.3  # it saw 324 cells


def test_a_library_that_does_not_load_is_named_with_the_reason(screen, real, perfect, monkeypatch, tmp_path):
    (tmp_path / "pertpy.py").write_text("from json import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pertpy", raising=False)
    with pytest.raises(EvaeError, match=r"pertpy, which is installed but does not load .*no_such_name.*evae\[scgen\]"):
        evaluate(perfect, real, screen, extra_baselines=("scgen",), progress=False)
