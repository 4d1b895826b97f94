"""A small simulated reversion screen, with and without a file."""

import anndata as ad
import pytest

from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.simulation.screen import simulate_reversion_screen
from evae.reversion import ScreenNames
from evae.reversion.screen import Screen


@pytest.fixture(scope="session")
def stressed() -> ad.AnnData:
    """3,000 cells x 120 genes, 30 targets in two arms, four of which revert the stress; read only."""
    return simulate_reversion_screen(3_000, seed=3, n_genes=120, n_targets=30, n_reverters=4)


@pytest.fixture(scope="session")
def stressed_file(stressed, tmp_path_factory):
    path = tmp_path_factory.mktemp("stressed") / "stressed.h5ad"
    stressed.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def names(stressed) -> ScreenNames:
    return ScreenNames(positives=tuple(stressed.uns["simulation"]["reverters"]))


@pytest.fixture(scope="session")
def labels(stressed, names) -> Screen:
    return Screen.read(AnnDataCounts(stressed), names)
