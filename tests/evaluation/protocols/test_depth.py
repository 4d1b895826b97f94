"""Depth and biology told apart: both sides thinned to one depth."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation import evaluate
from evae.models.contract_evae import EvaeError


def thinned(cells: ad.AnnData, share: float) -> ad.AnnData:
    counts = cells.X.copy()
    counts.data = np.random.default_rng(0).binomial(counts.data.astype(int), share).astype(np.float32)
    counts.eliminate_zeros()
    return ad.AnnData(sp.csr_matrix(counts), cells.obs, cells.var)


def evaluated(predicted, real, screen, **options):
    return evaluate(predicted, real, screen, seeds=(0, 1), progress=False, cache=None, **options)


def values(result, metric):
    part = result.summary().query("group == 'equal depth' and metric == @metric")
    return part.set_index("system")["value"].to_dict()


def test_a_perfect_but_shallow_model_is_at_the_floor_at_equal_depth(perfect, real, screen):
    result = evaluated(thinned(perfect, 0.25), real, screen)
    far, near = result.value("fd"), values(result, "fd_equal_depth")
    floor = near["real split half"]
    assert far > 3 * floor > 0
    assert near["model"] < 1.5 * floor
    assert near["control copy"] > 1.2 * floor
    assert values(result, "mse_equal_depth")["model"] < 1.5 * values(result, "mse_equal_depth")["real split half"]
    note = next(note for note in result.stamp["notes"] if "one depth" in note)
    assert f"{np.median(np.asarray(real.X.sum(1))):,.0f} counts" in note


def test_a_wrong_model_stays_wrong_at_equal_depth(screen, real, perfect):
    """Cells of another perturbation, at a quarter of the depth."""
    wrong = thinned(perfect, 0.25)
    wrong.obs["perturbation"] = wrong.obs["perturbation"].map({"G0": "G1", "G1": "G2", "G2": "G0"}).to_numpy()
    found = values(evaluated(wrong, real, screen), "mse_equal_depth")
    assert found["model"] > 2 * found["real split half"]


def test_it_is_there_where_depths_differ_or_where_it_is_asked_for(perfect, real, screen):
    assert not values(evaluated(perfect, real, screen), "fd_equal_depth")
    assert values(evaluated(perfect, real, screen, depth_matched=True), "fd_equal_depth")
    assert not values(evaluated(thinned(perfect, 0.25), real, screen, depth_matched=False), "fd_equal_depth")


def test_controls_that_are_too_shallow_are_left_out(perfect, real, screen):
    shallow = thinned(screen[screen.obs["perturbation"] == "control"].copy(), 0.1)
    found = values(evaluated(perfect, real, screen, controls=shallow, depth_matched=True), "fd_equal_depth")
    assert set(found) == {"model", "real split half"}


def test_without_raw_counts_it_is_refused_or_left_out(perfect, real, screen):
    logged = perfect.copy()
    logged.X = sp.diags(1e4 / np.asarray(perfect.X.sum(1)).ravel()) @ perfect.X
    logged.X = sp.csr_matrix(logged.X).log1p().astype(np.float32)
    assert not values(evaluated(logged, real, screen), "fd_equal_depth")
    with pytest.raises(EvaeError, match="the predicted cells came without raw counts"):
        evaluated(logged, real, screen, depth_matched=True)
