"""The scale of values: recognised cell by cell, or stated; what no scale explains is refused."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation import evaluate
from evae.evaluation.cells.comparison import compare
from evae.evaluation.cells.inputs import open_source
from evae.evaluation.systems.scvi_baseline import scvi_shift
from evae.models.contract_evae import EvaeError


def with_values(cells, values):
    other = cells.copy()
    other.X = sp.csr_matrix(np.asarray(values, dtype=np.float32))
    return other


def logged(cells, target, panel=slice(None)):
    """log1p of counts scaled to `target` a cell over all genes, of which a panel is kept."""
    counts = cells.X.toarray().astype(float)
    return with_values(cells, np.log1p(counts / counts.sum(axis=1, keepdims=True) * target))[:, panel].copy()


@pytest.fixture(params=["before reading", "as read"])
def read(request):
    """Read cells whose scale is recognised by a reading of its own, or by the only one."""

    def read(data, scale="auto"):
        as_read = request.param == "as read"
        source = open_source(data, "the predicted cells", "perturbation", "cell_type", scale, "scale", as_read=as_read)
        cells = source.cells(source.genes)
        return source.settled(), cells

    return read


ENTRANCES = ("sparse", "columns", "dense", "view", "file", "dense file", "backed")


def enter(cells, entrance, folder):
    cells = cells.copy()
    if "dense" in entrance:
        cells.X = cells.X.toarray()
    if entrance == "columns":
        cells.X = sp.csc_matrix(cells.X)
    if entrance == "view":
        return cells[np.arange(cells.n_obs)]
    if entrance in ("file", "dense file", "backed"):
        cells.write_h5ad(folder / "cells.h5ad")
        return ad.read_h5ad(folder / "cells.h5ad", backed="r") if entrance == "backed" else folder / "cells.h5ad"
    return cells


@pytest.fixture
def expected(real):
    """Expected counts below 20 with fractions, as in the predictions of a model of means."""
    return with_values(real, np.minimum(real.X.toarray(), 18) + 0.25)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_expected_counts_are_refused_unless_stated(read, expected, entrance, tmp_path):
    with pytest.raises(EvaeError, match=r'cells.*after expm1.*scale="counts"') as caught:
        read(enter(expected, entrance, tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "again").mkdir()
    source, cells = read(enter(expected, entrance, tmp_path / "again"), "counts")
    values = expected.X.toarray().astype(float)
    by_hand = np.log1p(values / values.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(cells.matrix[:].toarray(), by_hand, rtol=1e-5)
    assert source.scale.name == "expected counts"


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("target", [1e4, 1e6])
def test_log1p_of_either_target_is_recognised(read, real, target, entrance, tmp_path):
    source, cells = read(enter(logged(real, target), entrance, tmp_path))
    assert source.scale.name == "log1p"
    assert source.scale.doubt == ""
    np.testing.assert_allclose(cells.matrix[:].toarray(), read(real)[1].matrix.toarray(), rtol=1e-4)


def test_log1p_of_part_of_the_panel_is_recognised(read, real):
    """The totals differ, for the genes left out have other shares in every cell."""
    source, cells = read(logged(real, 1e4, slice(10, 40)))
    assert source.scale.name == "log1p"
    np.testing.assert_allclose(cells.matrix.toarray(), read(real[:, 10:40])[1].matrix.toarray(), rtol=1e-4)


def test_expected_counts_score_as_the_same_cells(screen, real, perfect):
    """Halved counts with fractions are the same cells: nothing but the depth differs."""
    halved = with_values(perfect, perfect.X.toarray() / 2)
    settings = {"suite": "perturbation", "seeds": 0, "cache": None, "progress": False, "with_baselines": False}
    wanted = evaluate(perfect, real, screen, **settings)
    found = evaluate(halved, real, screen, scale="counts", **settings)
    np.testing.assert_allclose(found.summary()["value"], wanted.summary()["value"], rtol=1e-4)
    assert found.stamp["settings"]["scale"] == "counts"
    note = next(note for note in found.stamp["notes"] if "came as" in note)
    assert "real cells came as raw counts (whole numbers)" in note
    assert "predicted cells as expected counts (as stated)" in note


@pytest.mark.parametrize("first", ["whole", "fractional"])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_cells_of_mixed_scale_are_refused(read, real, monkeypatch, first, entrance, tmp_path):
    monkeypatch.setattr("evae.evaluation.cells.inputs.BLOCK_ROWS", 7)
    values = logged(real, 1e4).X.toarray()
    half = slice(None, 60) if first == "whole" else slice(60, None)
    values[half] = real.X.toarray()[half]
    mixed = enter(with_values(real, values), entrance, tmp_path)
    with pytest.raises(
        EvaeError, match=r'some cells hold whole numbers, some fractions.*scale="counts" or scale="log1p"'
    ):
        read(mixed)
    assert read(mixed, "counts")[0].scale.name == "expected counts"


def test_empty_cells_are_of_no_scale(read, real):
    values = logged(real, 1e4).X.toarray()
    values[:9] = 0
    source, cells = read(with_values(real, values))
    assert source.scale.name == "log1p"
    assert cells.n_empty == 9
    assert read(with_values(real, np.zeros(real.shape)))[0].scale.name == "raw counts"


def test_a_stated_log1p_of_impossible_totals_is_refused(read, expected, real):
    with pytest.raises(EvaeError, match=r'cannot be log1p as stated.*scale="counts"'):
        read(expected, "log1p")
    assert read(logged(real, 1e4), "log1p")[0].scale.reason == "as stated"


def test_totals_too_unlike_are_doubted_then_refused(read, real):
    """After expm1 the cells' totals run evenly over a factor of 10, then of 100."""
    counts = real.X.toarray() / real.X.sum(axis=1)
    for factor in (10, 100):
        totals = 1e3 * factor ** np.linspace(0, 1, real.n_obs)[:, None]
        cells = with_values(real, np.log1p(np.asarray(counts) * totals))
        if factor == 10:
            scale = read(cells)[0].scale
            assert scale.name == "log1p"
            assert 'scale="counts"' in scale.doubt
        else:
            with pytest.raises(EvaeError, match=r'too unlike for log1p.*scale="counts".*scale="log1p"'):
                read(cells)
            assert read(cells, "log1p")[0].scale.name == "log1p"


def test_the_doubt_is_in_the_notes(screen, real, perfect):
    counts = np.asarray(perfect.X.toarray() / perfect.X.sum(axis=1))
    cells = with_values(perfect, np.log1p(counts * 1e3 * 10 ** np.linspace(0, 1, perfect.n_obs)[:, None]))
    assert any('scale="counts"' in note for note in compare(cells, real, screen).notes)
    assert not any('scale="counts"' in note for note in compare(cells, real, screen, scale="log1p").notes)


def test_the_sides_are_stated_apart(screen, real, perfect, expected):
    with pytest.raises(EvaeError, match=r'the real cells.*real_scale="counts"'):
        compare(perfect, expected, screen, scale="counts")
    assert len(compare(perfect, expected, screen, real_scale="counts").real) == real.n_obs


def test_expected_counts_are_never_given_out_as_whole_ones(screen, real, perfect):
    controls = screen[screen.obs.perturbation == "control"]
    both = ad.concat([real, controls])
    found = compare(perfect, with_values(both, both.X.toarray() / 2), screen, real_scale="counts")
    with pytest.raises(EvaeError, match="have no raw counts"):
        found.real.counts()
    with pytest.raises(EvaeError, match="the controls came as log1p or expected counts"):
        scvi_shift(found)
    whole = compare(perfect, both, screen, real_scale="counts")
    np.testing.assert_array_equal(whole.real.counts().toarray(), real.X.toarray())


def test_an_unknown_scale_is_named(read, real):
    with pytest.raises(EvaeError, match=r"unknown scale 'count'.*Did you mean 'counts'"):
        read(real, "count")
