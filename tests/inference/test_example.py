"""The model that the package carries: small, offline, of real cells."""

import anndata as ad
import numpy as np
import pytest

import evae
from evae.cli import main
from evae.inference.example import FOLDER

PATHWAY = ("STAT1", "JAK2", "IFNGR1", "IFNGR2")  # interferon gamma's receptor and what it switches on


@pytest.fixture(scope="module")
def pipe():
    return evae.pipeline("example", device="cpu")


@pytest.fixture(scope="module")
def controls():
    return evae.example_controls()


def mean_log(cells):
    counts = cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1)).mean(0)


def test_the_first_prediction_is_whole_counts_of_the_controls_genes(pipe, controls):
    predicted = pipe.predict(controls, "STAT1", n_cells=50, progress=False)
    assert predicted.n_obs == 50
    assert list(predicted.var_names) == list(controls.var_names)
    assert (predicted.X.data == np.round(predicted.X.data)).all()
    assert set(predicted.obs["source"]) <= set(controls.obs_names)


def test_knock_outs_of_one_pathway_change_the_same_genes(pipe, controls):
    predicted = pipe.predict(controls, [*PATHWAY, "non-targeting"], n_cells=300, progress=False)
    of = {name: mean_log(predicted[predicted.obs["perturbation"] == name]) for name in [*PATHWAY, "non-targeting"]}
    changes = np.stack([of[name] - of["non-targeting"] for name in PATHWAY])
    assert np.corrcoef(changes).min() > 0.5
    nothing = of["non-targeting"] - mean_log(controls)
    assert np.linalg.norm(changes, axis=1).min() > 2 * np.linalg.norm(nothing)


def test_it_is_small_and_names_its_source():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 3_000_000
    card = (FOLDER / "README.md").read_text()
    assert "MIT licence" in card
    assert "doi:10.1038/s41588-021-00778-2" in card
    assert "real split half" in card


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    (tmp_path / "example").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(evae.EvaeError, match=r"config\.json"):
        evae.pipeline("example")


def test_on_the_command_line_it_brings_its_controls(tmp_path):
    out, table = tmp_path / "stat1.h5ad", tmp_path / "ranking.csv"
    with pytest.raises(SystemExit) as stop:
        main(["predict", "example", "--perturbation", "STAT1", "--n-cells", "30", "--out", str(out)])
    assert stop.value.code == 0
    assert ad.read_h5ad(out).n_obs == 30
    with pytest.raises(SystemExit) as stop:
        main(["rank", "example", str(out), "--perturbation", "STAT1", "--n-prompts", "1", "--out", str(table)])
    assert stop.value.code == 0
    assert table.read_text().count("STAT1") == 1
