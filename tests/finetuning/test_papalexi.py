"""Fine-tuning on real cells: knock-outs of one batch, learned from some hundred cells, predicted in another batch."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.evaluation import evaluate
from evae.inference.held_out import dataset_cells, predict_held_out
from evae.training.prior import train_prior
from evae.training.settings import load_settings
from evae.training.tokenizer import train_tokenizer

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "papalexi_thp1.h5ad"
SIX = ["STAT1", "JAK2", "IFNGR1", "IFNGR2", "IRF1", "SMAD4"]
KEYS = {
    "perturbation_key": "perturbation",
    "cell_type_key": "bio_rep",
    "control": "non-targeting",
    "progress": False,
    "genes": "all",
}
SIZES = ["model.hidden_size=64", "model.num_attention_heads=4", "model.intermediate_size=256", "batch_size=128"]
PACE = ["learning_rate=2e-3", "warmup_steps=20", "ema_decay=0.98", "eval_every=1000", "save_every=1000"]
TOKENIZER = [
    *("model.encoder=mlp", "model.decoder=mlp", "model.encoder_layers=2", "model.decoder_layers=2"),
    *("model.n_latents=16", "model.fsq_levels=[8, 8]", "model.standardize_latents=true"),
    *("model.condition_on_library=true", "model.count_splitting=true", "model.sample_within_bins=true"),
]
PRIOR = [
    *("model.source_cells=1", "model.condition_on_effect=true", "model.cell_type_dropout=0.2"),
    *("model.num_hidden_layers=2", "model.dropout=0.1", "thinned_copies=0"),
]


def trained(dataset, folder, tokenizer_steps, prior_steps):
    """A small model of both stages."""
    common = [f"dataset={dataset}", *SIZES, *PACE]
    own = [f"max_steps={tokenizer_steps}", f"output_dir={folder}_tok"]
    tokenizer = train_tokenizer(load_settings("tokenizer", None, [*common, *TOKENIZER, *own]))
    own = [f"max_steps={prior_steps}", f"tokenizer={tokenizer}", f"output_dir={folder}"]
    return train_prior(load_settings("prior", None, [*common, *PRIOR, *own]))


def means(predicted):
    """Mean of log1p CP10K of every perturbation, (perturbations, genes)."""
    values = predicted.X.toarray()
    values = np.log1p(1e4 * values / values.sum(1, keepdims=True))
    return np.array(
        [values[rows].mean(0) for rows in predicted.obs.groupby("perturbation", observed=True).indices.values()]
    )


@pytest.mark.slow
@pytest.mark.skipif(not FILE.is_file(), reason=f"the real cells are not at {FILE}")
def test_better_than_training_anew_and_than_shifted_controls_and_little_is_forgotten(tmp_path):
    cells = ad.read_h5ad(FILE)
    batch, name = cells.obs["bio_rep"].astype(str), cells.obs["perturbation"].astype(str)
    rng = np.random.default_rng(0)

    def some(wanted, most):
        rows = np.flatnonzero(wanted)
        return rng.choice(rows, min(most, len(rows)), replace=False)

    of_two = np.isin(batch, ["rep_1", "rep_2"])
    cells[some(of_two & ~np.isin(name, SIX), 4_000)].copy().write_h5ad(tmp_path / "old.h5ad")
    few = [some((batch == "rep_1") & (name == one), 60) for one in SIX]
    controls = [some((batch == rep) & (name == "non-targeting"), 150) for rep in ("rep_1", "rep_3")]
    asked = some((batch == "rep_3") & np.isin(name, SIX), 900)
    cells[np.concatenate([*few, *controls, asked])].copy().write_h5ad(tmp_path / "new.h5ad")

    old = prepare_dataset(tmp_path / "old.h5ad", tmp_path / "old", split="random:0.03", **KEYS)
    split = {"cell_type": ["rep_3"], "pert": SIX}
    new = prepare_dataset(tmp_path / "new.h5ad", tmp_path / "new", split=split, **KEYS | {"genes": str(old)})

    before = trained(old, tmp_path / "before", 600, 250)
    tuned = evae.finetune(before, new, tmp_path / "tuned", drift_cells=32)
    anew = trained(new, tmp_path / "anew", 250, 120)

    def distances(folder):
        """Fréchet distances to the held-out cells, pooled: of the model, and of the shifted controls."""
        predicted = predict_held_out(evae.pipeline(folder, device="cpu"), new, progress=False)
        result = evaluate(predicted, **dataset_cells(new), seeds=1, progress=False)
        return result.value("fd"), result.value("fd", "additive shift")

    model, shifted = distances(tuned)
    assert model < distances(anew)[0]
    assert model < shifted

    stated = [row for row in json.loads((tuned / "finetune.json").read_text())["drift"] if row["cell_type"] == "rep_1"]
    names = [row["perturbation"] for row in stated]
    held_back = cells[some((batch == "rep_2") & (name == "non-targeting"), 100)].copy()  # controls of another batch
    held_back.obs["cell_type"] = "rep_1"
    options = {"cell_type": "rep_1", "n_cells": 100, "seed": 7, "library_size": "controls", "progress": False}
    before, after = (
        means(evae.pipeline(folder, device="cpu").predict(held_back, names, **options)) for folder in (before, tuned)
    )
    moved = np.sqrt(((before - after) ** 2).mean(1))
    assert np.median(moved) < 1.5 * np.median([row["drift"] for row in stated])
