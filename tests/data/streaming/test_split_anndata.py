import numpy as np
import pytest

from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.split_anndata import DatasetSplit, read_split
from evae.models.contract_evae import EvaeError


def test_a_split_as_anndata(folder, simulated):
    cells, info = read_split(folder, "test"), DatasetInfo.load(folder)
    source = simulated[cells.obs_names]
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.int32
    np.testing.assert_array_equal(cells.X.toarray(), source.X.toarray())
    assert list(cells.obs["perturbation"]) == list(source.obs["perturbation"])
    assert list(cells.obs["perturbation"].cat.categories) == info.perturbations
    assert list(cells.obs["cell_type"].cat.categories) == info.cell_types
    np.testing.assert_array_equal(cells.obs["library_size"], np.asarray(source.X.sum(1)).ravel())
    assert list(cells.var["ensembl_id"]) == info.ensembl_ids


def test_a_run_of_cells_is_a_slice_of_the_split(folder, monkeypatch):
    whole = read_split(folder, "train")
    cells = DatasetSplit(folder, "train")
    assert cells.n_cells == whole.n_obs
    assert list(cells.labels().index) == list(whole.obs_names)
    for start, stop in ((0, 1), (3, 40), (whole.n_obs - 5, whole.n_obs), (0, whole.n_obs)):
        np.testing.assert_array_equal(cells.counts(start, stop).toarray(), whole.X[start:stop].toarray())


def test_unknown_split(folder):
    with pytest.raises(EvaeError, match=r"no split 'tests'\. Did you mean 'test'"):
        read_split(folder, "tests")
