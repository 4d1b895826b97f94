"""What the training cells show of every perturbation, as a finished prior keeps it."""

import numpy as np
import pandas as pd
import pytest

from evae.common.known_effects import FILE, KnownEffects
from evae.data.format import Dataset
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.training.known_effects import measure_effects

KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}


@pytest.fixture(scope="module")
def screen_of_three():
    return simulate_perturb_seq(n_cells=3_000, n_genes=50, n_cell_types=3, n_perturbations=6, seed=2)


@pytest.fixture(scope="module")
def held_out_type(screen_of_three, tmp_path_factory):
    """A dataset that holds out all perturbed cells of a cell type, and one whose held-out cells are nonsense."""
    kind = screen_of_three.obs["cell_type"].cat.categories[0]
    folders = []
    for name in ("as_is", "poisoned"):
        cells, folder = screen_of_three.copy(), tmp_path_factory.mktemp(name) / "data"
        if name == "poisoned":
            counts = cells.X.toarray()
            rows = ((cells.obs["cell_type"] == kind) & (cells.obs["perturbation"] != "control")).to_numpy()
            counts[rows] = np.random.default_rng(0).poisson(9, (rows.sum(), counts.shape[1]))
            cells.X = counts
        cells.write_h5ad(folder.with_suffix(".h5ad"))
        prepare_dataset(folder.with_suffix(".h5ad"), folder, split=f"unseen-cell-type:{kind}", genes="all", **KEYS)
        folders.append(folder)
    return kind, *folders


def test_effects_of_a_held_out_cell_type_are_told_by_the_others(held_out_type, screen_of_three):
    kind, folder, _ = held_out_type
    known = measure_effects([Dataset.open(folder)], Dataset.open(folder).info.genes)
    assert known.calibration > 0.5
    assert len(known.profiles) == 3
    own = list(Dataset.open(folder).info.cell_types).index(kind)
    assert own not in known.context
    X = pd.DataFrame(screen_of_three.X.toarray(), columns=screen_of_three.var_names)[
        list(Dataset.open(folder).info.genes)
    ]
    rates = X.div(X.sum(1), axis=0) * 1e4
    obs = screen_of_three.obs.reset_index(drop=True)
    base = np.log2(rates[(obs["cell_type"] == kind) & (obs["perturbation"] == "control")].mean() + known.pseudo)
    np.testing.assert_allclose(known.profiles[own], base, atol=0.1)  # without the controls of validation
    found, sizes = [], []
    for name in known.pairs_of:
        cells = rates[(obs["cell_type"] == kind) & (obs["perturbation"] == name)]
        real = np.log2(cells.mean() + known.pseudo) - base
        found.append(np.corrcoef(known.carried(name, known.profiles[own]), real)[0, 1])
        sizes.append(np.std(known.carried(name, known.profiles[own])))
    assert np.mean([r for r, size in zip(found, sizes, strict=True) if size >= np.median(sizes)]) > 0.5


def test_held_out_cells_tell_nothing(held_out_type, tmp_path):
    _, folder, poisoned = held_out_type
    stored = []
    for number, dataset in enumerate((folder, poisoned)):
        (tmp_path / str(number)).mkdir()
        known = measure_effects([Dataset.open(dataset)], Dataset.open(dataset).info.genes)
        stored.append(known.save(tmp_path / str(number)).read_bytes())
    assert stored[0] == stored[1]


def test_a_trained_prior_keeps_them(trained_prior, screen_dataset):
    known = measure_effects([Dataset.open(screen_dataset)], Dataset.open(screen_dataset).info.genes)
    kept = KnownEffects.load(trained_prior / FILE)
    assert (kept.calibration, kept.near) == (known.calibration, known.near)


def test_what_was_known_before_stays(held_out_type):
    _, folder, _ = held_out_type
    dataset = Dataset.open(folder)
    before = measure_effects([dataset], dataset.info.genes)
    more = measure_effects([dataset], dataset.info.genes, before)
    assert len(more.change) == 2 * len(before.change)
    np.testing.assert_array_equal(more.context[len(before.change) :], before.context + len(before.profiles))
