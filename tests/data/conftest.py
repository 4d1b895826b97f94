"""Small simulated files and dataset folders, made once; where the real data lie."""

from pathlib import Path

import anndata as ad
import pytest

from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq

KEYS = {
    "perturbation_key": "perturbation",
    "cell_type_key": "cell_type",
    "control": "control",
    "progress": False,
}
REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def simulated() -> ad.AnnData:
    return simulate_perturb_seq(n_cells=1_500, n_genes=70, n_perturbations=5, seed=3)


@pytest.fixture(scope="session")
def h5ad(simulated: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "simulated.h5ad"
    simulated.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def cross_split(simulated: ad.AnnData) -> dict[str, list[str]]:
    return {"cell_type": ["type_B"], "pert": list(simulated.obs["perturbation"].cat.categories[1:3])}


@pytest.fixture(scope="session")
def folder(h5ad: Path, cross_split: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder; read only."""
    return prepare_dataset(h5ad, tmp_path_factory.mktemp("folders") / "simulated", split=cross_split, **KEYS)


@pytest.fixture(scope="session")
def keys() -> dict:
    return dict(KEYS)


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data are not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def contents():
    """A function that gives the bytes of every file of a folder."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
