"""Cells of a file that was read before: nothing of it is read again unless a metric asks, and nothing else changes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae.evaluation import evaluate
from evae.evaluation.cells import inputs
from evae.evaluation.cells.comparison import compare
from evae.evaluation.cells.normalised import log1p_cp10k

QUIET = {"with_baselines": False, "progress": False, "seeds": (0,)}


@pytest.fixture
def files(real, screen, perfect, tmp_path):
    """Paths of the predicted and of the real cells with their controls, as counts and as log1p."""
    found = {}
    both = ad.concat([real, screen[(screen.obs.cell_type == "B") & (screen.obs.perturbation == "control")]])
    for name, cells in (("predicted", perfect), ("real", both)):
        for scale in ("counts", "log1p"):
            written = cells.copy()
            if scale == "log1p":
                written.X = log1p_cp10k(written.X, "raw counts")
            found[name, scale] = tmp_path / f"{name}_{scale}.h5ad"
            written.write_h5ad(found[name, scale])
    return found


@pytest.fixture
def read(monkeypatch):
    """The names of the cells whose values were read."""
    names, cells = [], inputs.Source.cells

    def watched(source, *args, **keywords):
        names.append(source.name)
        return cells(source, *args, **keywords)

    monkeypatch.setattr(inputs.Source, "cells", watched)
    return names


@pytest.mark.parametrize("scale", ["counts", "log1p"])
def test_a_second_prediction_reads_its_own_cells_alone(files, read, tmp_path, scale):
    pair, options = (files["predicted", scale], files["real", scale]), QUIET | {"suite": "perturbation"}
    first = evaluate(*pair, cache=tmp_path / "cache", **options)
    read.clear()
    second = evaluate(*pair, cache=tmp_path / "cache", **options)
    assert len(read) == 1
    assert "predicted" in read[0]
    pd.testing.assert_frame_equal(first.records, second.records)
    assert first.stamp["sha256"] == second.stamp["sha256"]
    assert first.stamp["notes"] == second.stamp["notes"]
    pd.testing.assert_frame_equal(first.records, evaluate(*pair, cache=None, **options).records)


@pytest.mark.parametrize("suite", ["robust", "extended", "vcc2026"])
def test_metrics_that_need_the_cells_read_them(files, tmp_path, suite):
    pair = files["predicted", "counts"], files["real", "counts"]
    found = [evaluate(*pair, cache=tmp_path / "cache", suite=suite, **QUIET).records for _ in range(2)]
    pd.testing.assert_frame_equal(*found)


def test_known_cells_are_those_of_the_file(files, tmp_path):
    pair = files["predicted", "counts"], files["real", "counts"]
    first, second = (compare(*pair, cache=tmp_path / "cache") for _ in range(2))
    for side in ("real", "controls"):
        one, other = getattr(first, side), getattr(second, side)
        assert one.digest() == other.digest()
        np.testing.assert_array_equal(one.matrix[:].toarray(), other.matrix[:].toarray())
        np.testing.assert_array_equal(one.counts().toarray(), other.counts().toarray())
        assert one.n_empty == other.n_empty


def test_a_changed_file_is_read_again(files, read, tmp_path):
    pair, options = (files["predicted", "counts"], files["real", "counts"]), QUIET | {"suite": "perturbation"}
    evaluate(*pair, cache=tmp_path / "cache", **options)
    changed = ad.read_h5ad(pair[1])
    changed.X.data[0] += 1
    changed.write_h5ad(pair[1])
    read.clear()
    found = evaluate(*pair, cache=tmp_path / "cache", **options)
    assert len(read) == 3
    pd.testing.assert_frame_equal(found.records, evaluate(*pair, cache=None, **options).records)


def test_other_rows_of_the_same_file_are_other_cells(files, perfect, tmp_path):
    """With G0 as the control, the controls of the file are perturbed cells."""
    real, folder = files["real", "counts"], tmp_path / "cache"
    others = perfect[perfect.obs.perturbation != "G0"].copy()
    others.obs["perturbation"] = others.obs["perturbation"].astype(str).replace("G1", "control")
    more = ad.concat([others, perfect[perfect.obs.perturbation == "G1"]])
    compare(files["predicted", "counts"], real, cache=folder)
    found, expected = (compare(more, real, control="G0", cache=cache) for cache in (folder, None))
    assert found.real.digest() == expected.real.digest()
    assert found.controls.digest() == expected.controls.digest()
