"""Doses between those of training: a prior of a simulated screen with known curves, from prepare to the picture."""

import warnings

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import evae
import evae.plot
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.dose_curves import simulate_dose_screen
from evae.data.streaming.mixture import Sources
from evae.inference.sampling import known_effect
from evae.models.contract_evae import EvaeError
from evae.models.names_evae import PerturbationNames
from evae.models.treatments_evae import Treatment
from evae.training.batches import batch_names
from evae.training.prior import train_prior
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

TOKENIZER = {"encoder": "mlp", "decoder": "mlp", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TOKENIZER |= {"n_latents": 6, "encoder_layers": 1, "decoder_layers": 1, "fsq_levels": [8, 8], "head": "nb"}
TOKENIZER |= {"standardize_latents": True, "condition_on_library": True}
PRIOR = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
PRIOR |= {"condition_on_batch": True}
COMMON = {"batch_size": 128, "warmup_steps": 20, "learning_rate": 3e-3, "eval_every": 1_000, "save_every": 1_000}
HELD_OUT = "DrugA 1 uM"
PLATE_GENE = 7


@pytest.fixture(scope="module")
def cells():
    doses = {"doses": (0.1, 1.0, 10.0), "effect_size": 2.0, "median_library_size": 2_000}
    cells = simulate_dose_screen(n_cells=1_500, n_genes=40, n_cell_types=1, n_drugs=4, seed=1, **doses)
    cells.obs["plate"] = np.random.default_rng(0).choice(["P1", "P2"], cells.n_obs)
    counts, second = cells.X.toarray(), (cells.obs["plate"] == "P2").to_numpy()
    counts[second, PLATE_GENE] = 2 * counts[second, PLATE_GENE] + 100  # what a plate does to cells
    cells.X = sp.csr_matrix(counts)
    return cells


@pytest.fixture(scope="module")
def controls(cells):
    return cells[(cells.obs["perturbation"] == "control").to_numpy()].copy()


@pytest.fixture(scope="module")
def run_folder(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("doses")
    cells.write_h5ad(folder / "cells.h5ad")
    prepare_dataset(
        folder / "cells.h5ad", folder / "data", dose_key="dose_value", batch_key="plate", progress=False,
        split={"cell_type": ["type_A"], "pert": [HELD_OUT]},
    )  # fmt: skip
    common = {"dataset": str(folder / "data"), **COMMON}
    tokenizer = train_tokenizer(
        TokenizerSettings(output_dir=str(folder / "tokenizer"), model=TOKENIZER, max_steps=500, **common)
    )
    own = {"tokenizer": str(tokenizer), "output_dir": str(folder / "prior"), "max_steps": 300}
    return train_prior(PriorSettings(model=PRIOR, **own, **common))


@pytest.fixture(scope="module")
def pipe(run_folder):
    return evae.pipeline(run_folder, device="cpu")


def mean(cells: ad.AnnData) -> np.ndarray:
    counts = np.asarray(cells.X.sum(0)).ravel()
    return np.log1p(1e4 * counts / counts.sum())


def predict(pipe, controls, *names, **asked):
    return pipe.predict(controls, *names, n_cells=300, progress=False, **asked)


def test_an_unseen_dose_is_nearer_to_its_cells_than_a_copy_of_either_neighbour(pipe, cells, controls):
    def real(dose: float) -> np.ndarray:
        rows = (cells.obs["perturbation"] == "DrugA") & (cells.obs["dose_value"] == dose)
        return mean(cells[rows.to_numpy()])

    predicted = predict(pipe, controls, "DrugA", dose=1.0)
    assert (predict(pipe, controls, "DrugA", dose=np.float32(1)).X != predicted.X).nnz == 0
    assert set(predicted.obs["support"]) == {"seen otherwise"}
    error = np.linalg.norm(mean(predicted) - real(1.0))
    for neighbour in (0.1, 10.0):
        assert error < np.linalg.norm(real(neighbour) - real(1.0))
    seen = mean(predict(pipe, controls, "DrugA", dose=10.0))
    assert np.linalg.norm(seen - real(10.0)) < np.linalg.norm(seen - real(0.1))


def test_one_question_in_many_words(pipe, controls):
    asked = predict(pipe, controls, "DrugB", dose=3.0)
    assert set(asked.obs["perturbation"]) == {"DrugB 3 uM"}
    assert asked.obs[["agent", "dose"]].drop_duplicates().to_numpy().tolist() == [["DrugB", 3.0]]
    assert asked.obs["time"].isna().all()
    assert asked.uns["evae"]["dose_unit"] == "uM"
    table = pd.DataFrame({"perturbation": ["DrugB"], "dose": [3000], "dose_unit": ["nM"], "n_cells": [300]})
    for same in (
        predict(pipe, controls, "DrugB 3 uM"),
        predict(pipe, controls, "DrugB", dose=[3000], dose_unit="nM"),
        pipe.predict(controls, requests=table, progress=False),
    ):
        assert (same.X != asked.X).nnz == 0
    grid = pipe.predict(controls, ["DrugA", "DrugB"], n_cells=5, dose=[0.5, 1, 10], progress=False)
    assert grid.obs["perturbation"].nunique() == 6


def test_a_table_may_leave_doses_empty(pipe, controls):
    table = pd.DataFrame({"perturbation": ["control", "DrugA 10 uM", "DrugA"], "dose": [None, None, 2.0]})
    found = pipe.predict(controls, requests=table.assign(n_cells=3), progress=False)
    assert found.obs["perturbation"].unique().tolist() == ["control", "DrugA 10 uM", "DrugA 2 uM"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"perturbation": "DrugA"}, r"'DrugA' was seen with several doses \(0.1, 1, 10\); say which dose"),
        ({"perturbation": "DrugA", "dose": 0.0}, "give a number above 0"),
        ({"perturbation": "DrugA", "dose": 1.0, "dose_unit": "ng/mL"}, "but the model knows doses in uM"),
        ({"perturbation": "DrugZ", "dose": 1.0}, "unknown perturbation 'DrugZ'"),
        ({"perturbation": "DrugA", "dose": []}, "no dose or time was given"),
        ({"perturbation": "DrugA 1 uM", "dose": 1.0}, "names its dose or time itself"),
        ({"n_cells": {("type_A", "DrugA 1 uM"): 2}, "dose": 1.0}, "dose and time go with perturbation"),
        ({"requests": pd.DataFrame({"perturbation": ["DrugA"], "dose": ["much"]})}, "say dose 'much'"),
    ],
)
def test_what_is_no_question(pipe, controls, asked, message):
    with pytest.raises(EvaeError, match=message):
        pipe.predict(controls, **asked, progress=False)


def test_beyond_the_seen_doses_there_is_a_warning(pipe, controls):
    with pytest.warns(UserWarning, match="'DrugA 500 uM' lies beyond the doses or times that training saw of it"):
        pipe.predict(controls, "DrugA", dose=500.0, n_cells=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.predict(controls, ["DrugA", "control"], dose=3.0, n_cells=2, progress=False)


def test_the_batch_of_the_controls_is_told_and_a_new_one_is_said(pipe, controls):
    def shares(**asked) -> list[float]:
        found = []
        for plate in ("P1", "P2"):
            own = controls[(controls.obs["plate"] == plate).to_numpy()]
            how = {"library_size": "training", "effect_transfer": 0, "n_cells": 100, "progress": False}
            drawn = pipe.predict(own, "DrugA", dose=1.0, **how, **asked)
            found.append(float(drawn.X[:, PLATE_GENE].sum() / drawn.X.sum()))
        return found

    told, untold = shares(batch_key="plate"), shares()
    assert told[1] > 1.3 * told[0]
    assert untold[1] < 1.1 * untold[0]
    unknown = pipe.predict(controls, "DrugA", dose=1.0, n_cells=40, progress=False)
    moved = controls.copy()
    moved.obs["plate"] = "P9"
    with pytest.warns(UserWarning, match=r"1 batch of the controls is new to the model \(such as 'P9'\)"):
        new = pipe.predict(moved, "DrugA", dose=1.0, batch_key="plate", n_cells=40, progress=False)
    assert (new.X != unknown.X).nnz == 0
    with pytest.raises(EvaeError, match="no obs column 'donor'"):
        pipe.predict(controls, "DrugA", dose=1.0, batch_key="donor", progress=False)


def test_a_prior_reads_batches_only_where_there_are_some(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    folder = prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "data", dose_key="dose_value", progress=False)
    with pytest.raises(EvaeError, match="needs batches; prepare the dataset with batch_key"):
        batch_names(Sources([folder]))


def test_cells_are_scored_under_doses(pipe, cells, controls):
    strong = cells[((cells.obs["perturbation"] == "DrugA") & (cells.obs["dose_value"] == 10)).to_numpy()]
    scores = pipe.score(strong, ["DrugA 0.1 uM", "DrugA 10 uM"], progress=False).mean()
    assert scores["DrugA 10 uM"] > scores["DrugA 0.1 uM"]


def test_effects_of_doses_between_are_interpolated():
    known = {t.label: t for t in (Treatment("A", dose=d, dose_unit="uM") for d in (0.1, 1.0, 10.0))}
    names = PerturbationNames(["control", *known], ["control", "A"], "control", "+", known)
    rows = {frozenset([name]): row for row, name in enumerate(["control", *known])}
    effects = torch.tensor([[0.0, 0.0], [1.0, 0.0], [torch.nan, torch.nan], [3.0, 4.0]])

    def effect(label: str) -> list[float]:
        return known_effect(names, effects, rows, names.parts([label])[label]).tolist()

    assert effect("A 10 uM") == [3, 4]
    assert effect("A 1 uM") == pytest.approx([2, 2])  # unknown, and half way on the log scale
    assert effect("A 1000 uM") == [3, 4]
    assert np.isnan(effect("A")).all()


def test_curves_are_drawn(pipe, cells, controls):
    predicted = pipe.predict(controls, ["DrugA", "DrugB"], n_cells=60, dose=[0.1, 1, 3, 10], progress=False)
    real = cells[cells.obs["perturbation"].isin(["DrugA", "DrugB"]).to_numpy()].copy()
    real.obs["agent"], real.obs["dose"] = real.obs["perturbation"], real.obs["dose_value"]
    ax = evae.plot.dose_response(predicted, controls, real)
    curves = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert [line.get_xdata().tolist() for line in curves] == [[0.1, 1, 3, 10]] * 2
    assert all(line.get_ydata()[-1] > line.get_ydata()[0] for line in curves)  # a higher dose moves cells further
    gene = evae.plot.dose_response(predicted, controls, gene="GENE0003", ax=plt.figure().add_subplot())
    values = np.log1p(1e4 * predicted.X.toarray() / predicted.X.sum(1))
    chosen = (predicted.obs["perturbation"] == "DrugA 3 uM").to_numpy()
    shown = next(line for line in gene.lines if len(line.get_xdata()) == 4).get_ydata()[2]
    assert shown == pytest.approx(float(np.asarray(values)[chosen, 2].mean()), rel=1e-5)
    with pytest.raises(EvaeError, match="the cells have no doses"):
        evae.plot.dose_response(controls, controls)
    plt.close("all")


def test_from_the_command_line(run_folder, controls, tmp_path, run):
    controls.write_h5ad(tmp_path / "controls.h5ad")
    given = ("predict", run_folder, "--controls", tmp_path / "controls.h5ad", "--perturbation", "DrugA,DrugB")
    more = ("--n-cells", 20, "--batch-key", "plate", "--dose-plot", tmp_path / "doses.png")
    outcome = run(*given, "--dose", "500,3000", "--dose-unit", "nM", *more, "--out", tmp_path / "out.h5ad")
    assert outcome.code == 0, outcome.err
    assert set(ad.read_h5ad(tmp_path / "out.h5ad").obs["perturbation"]) == {
        f"Drug{drug} {dose} uM" for drug in "AB" for dose in ("0.5", "3")
    }
    assert (tmp_path / "doses.png").read_bytes()[:4] == b"\x89PNG"
    for wrong, message in (
        (("--dose", "1,much"), "--dose is '1,much'; give numbers above 0"),
        ((), "say which dose is meant"),
        (("--dose", "1", "--gene", "GENE0001"), "--gene is that of --dose-plot"),
        (("--dose", "1", "--dose-plot", tmp_path / "doses.pdf"), "name a .png file"),
    ):
        refused = run(*given, *wrong, "--out", tmp_path / "no.h5ad")
        assert refused.code == 2
        assert message in refused.err
    assert not (tmp_path / "no.h5ad").exists()
