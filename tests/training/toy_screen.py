"""A simulated screen with a pair held out, and quick trainings on it."""

import json

from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.training.prior import train_prior
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

TOKENIZER = {"encoder": "mlp", "decoder": "mlp", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
TOKENIZER |= {"n_latents": 4, "encoder_layers": 1, "decoder_layers": 1, "fsq_levels": [4, 4], "latent_dim": 2}
TOKENIZER |= {"standardize_latents": True, "condition_on_library": True}
PRIOR = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
PRIOR |= {"source_cells": 1, "condition_on_effect": True}
SHORT = {"max_steps": 8, "batch_size": 32, "warmup_steps": 2, "save_every": 4, "eval_every": 4, "log_every": 4}
SHORT |= {"mixed_precision": "no", "learning_rate": 1e-2}


def held_out(cells):
    return sorted(set(cells.obs["perturbation"]) - {"control"})[0]


def screen(folder, change=None, **options):
    cells = simulate_perturb_seq(n_cells=400, n_genes=40, n_cell_types=3, n_perturbations=3, n_without_effect=0)
    (folder / "split.json").write_text(json.dumps({"cell_type": ["type_A"], "pert": [held_out(cells)]}))
    if change is not None:
        cells = change(cells)
    cells.write_h5ad(folder / "cells.h5ad")
    labels = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    split = str(folder / "split.json")
    return prepare_dataset(folder / "cells.h5ad", folder / "dataset", split=split, progress=False, **labels, **options)


def tokenize(dataset, out, seed=0, **fields):
    values = {"dataset": str(dataset), "output_dir": str(out), "model": TOKENIZER | fields, "seed": seed}
    return train_tokenizer(TokenizerSettings(**values, **SHORT))


def fit(dataset, tokenizer, out, model=PRIOR, **changes):
    values = {"dataset": str(dataset), "tokenizer": str(tokenizer), "output_dir": str(out), "model": model}
    return train_prior(PriorSettings(**values | SHORT | changes))
