"""A drug in uM, a cytokine in ng/mL and a knock-out, alone and together: from combined labels to predicted cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.figure import Figure

import evae
import evae.plot
from evae.data.preparing.prepare import prepare_dataset
from evae.models.contract_evae import EvaeError
from evae.training.prior import train_prior
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TOKENIZER = SMALL | {"encoder": "mlp", "decoder": "mlp", "n_latents": 6, "encoder_layers": 1, "decoder_layers": 1}
TOKENIZER |= {"fsq_levels": [8, 8], "head": "nb", "standardize_latents": True}
COMMON = {"batch_size": 128, "warmup_steps": 20, "learning_rate": 3e-3, "eval_every": 1_000, "save_every": 1_000}
GENES = {"DrugA@1uM": (0, 2.0), "DrugA@10uM": (0, 8.0), "IFNB@10ng/ml": (1, 2.0), "IFNB@100ng/ml": (1, 8.0)}
GENES |= {"STAT1_KO": (2, 0.1)}  # label -> the gene that it changes, and how many times
TOGETHER = ["DrugA@10uM+IFNB@10ng/ml", "DrugA@1uM+IFNB@100ng/ml", "DrugA@10uM+STAT1_KO", "IFNB@100ng/ml+STAT1_KO"]
N = 150


@pytest.fixture(scope="module")
def cells():
    labels = np.repeat(["control", *GENES, *TOGETHER], N)
    rate = np.tile(np.random.default_rng(0).uniform(10, 30, 30), (len(labels), 1))
    for i, label in enumerate(labels):
        for part in label.split("+"):
            gene, times = GENES.get(part, (0, 1.0))
            rate[i, gene] *= times
    counts = np.random.default_rng(1).poisson(rate).astype(np.float32)
    obs = pd.DataFrame({"perturbation": labels, "cell_type": "T"}, index=[f"cell{i}" for i in range(len(labels))])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{g}" for g in range(30)]))


@pytest.fixture(scope="module")
def run_folder(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("combined")
    cells.write_h5ad(folder / "cells.h5ad")
    prepare_dataset(folder / "cells.h5ad", folder / "data", parse_labels=True, progress=False)
    common = {"dataset": str(folder / "data"), **COMMON}
    tokenizer = train_tokenizer(
        TokenizerSettings(output_dir=str(folder / "tokenizer"), model=TOKENIZER, max_steps=300, **common)
    )
    own = {"tokenizer": str(tokenizer), "output_dir": str(folder / "prior"), "max_steps": 300}
    return train_prior(PriorSettings(model=SMALL | {"num_hidden_layers": 2}, **own, **common))


@pytest.fixture(scope="module")
def pipe(run_folder):
    return evae.pipeline(run_folder, device="cpu")


@pytest.fixture(scope="module")
def controls(cells):
    return cells[(cells.obs["perturbation"] == "control").to_numpy()].copy()


def test_parts_keep_their_doses_units_and_kinds_through_training(pipe, controls):
    config = pipe.model.config
    assert (config.dose_unit, config.further_doses) == ("uM", [{"unit": "ng/mL", "range": [10, 100]}])
    asked = ["DrugA 10 uM+IFNB 10 ng/mL", "DrugA@1uM+IFNB@100ng/ml", "DrugA 1 uM+STAT1 knock-out", "IFNB 30 ng/mL"]
    drawn = pipe.predict(controls, asked, n_cells=200, progress=False)
    assert list(drawn.obs["perturbation"].unique()) == [
        "DrugA 10 uM+IFNB 10 ng/mL", "DrugA 1 uM+IFNB 100 ng/mL", "DrugA 1 uM+STAT1 knock-out", "IFNB 30 ng/mL"
    ]  # fmt: skip
    means = pd.DataFrame(drawn.X.toarray()).groupby(drawn.obs["perturbation"].to_numpy()).mean()
    fold = means / controls.X.toarray().mean(0)
    drug, cytokine = fold.loc["DrugA 10 uM+IFNB 10 ng/mL"], fold.loc["DrugA 1 uM+IFNB 100 ng/mL"]
    assert drug[0] > 1.5 * cytokine[0]  # each part at its own dose
    assert cytokine[1] > 1.5 * drug[1]
    assert fold.loc["DrugA 1 uM+STAT1 knock-out", 2] < 0.75  # never seen together
    assert fold.loc["IFNB 30 ng/mL", 1] > 1.5


def test_units_are_asked_of_the_agent(pipe, controls):
    drawn = pipe.predict(controls, ["IFNB", "DrugA", "STAT1+DrugA"], dose=[10, 100], n_cells=3, progress=False)
    shown = drawn.obs[["perturbation", "dose_unit"]].drop_duplicates().set_index("perturbation")["dose_unit"].to_dict()
    assert shown == {
        "IFNB 10 ng/mL": "ng/mL", "IFNB 100 ng/mL": "ng/mL", "DrugA 10 uM": "uM", "DrugA 100 uM": "uM",
        "STAT1 knock-out+DrugA 10 uM": "", "STAT1 knock-out+DrugA 100 uM": "",
    }  # fmt: skip
    assert drawn.uns["evae"]["dose_unit"] == "uM, ng/mL"
    single = drawn[(drawn.obs["dose_unit"] != "").to_numpy()]
    axes = evae.plot.dose_response(single, controls, ax=Figure().add_subplot())
    assert axes.get_xlabel() == "dose, ng/mL and uM"
    with pytest.raises(EvaeError, match="the model knows doses of 'IFNB' in ng/mL"):
        pipe.predict(controls, "IFNB", dose=1.0, dose_unit="uM", progress=False)


def test_a_dose_of_what_has_none_is_refused(run_folder, pipe, controls, tmp_path, run):
    """With a unit, which would tell the family, and without; as a label; in a table; by the command."""
    said = r"'STAT1' was seen without a dose; leave it out\. Doses are known of 'DrugA', 'IFNB'\."
    table = pd.DataFrame({"perturbation": ["DrugA", "STAT1"], "dose": [2.0, 3.0], "n_cells": 2})
    asks = ({"dose": 3.0}, {"dose": 3.0, "dose_unit": "uM"}, {"perturbation": "STAT1 3 uM"}, {"requests": table})
    for asked in asks:
        with pytest.raises(EvaeError, match=said):
            pipe.predict(controls, **({} if "requests" in asked else {"perturbation": "STAT1"}) | asked, progress=False)
    with pytest.raises(EvaeError, match=r"'DrugA' was seen without a time; leave it out\.$"):
        pipe.predict(controls, "DrugA", dose=1.0, time=24.0, progress=False)
    controls.write_h5ad(tmp_path / "controls.h5ad")
    given = ("predict", run_folder, "--controls", tmp_path / "controls.h5ad", "--perturbation", "DrugA,STAT1")
    refused = run(*given, "--dose", "3", "--dose-unit", "uM", "--out", tmp_path / "no.h5ad")
    assert refused.code == 2
    assert "'STAT1' was seen without a dose; leave it out. Doses are known of 'DrugA', 'IFNB'." in refused.err
    assert not (tmp_path / "no.h5ad").exists()
