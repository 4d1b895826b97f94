"""Runs of the published models with random weights, in their folders, and the cells that they name."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from evae.conversion import convert
from evae.inference.checkpoint import load_checkpoint

torch.set_num_threads(1)

REFERENCE = Path(__file__).parents[1] / "reference"
GENES, CELLS, LATENTS = 18, 12, 4
PERTURBATIONS, CELL_TYPES = ["JAK2", "STAT1", "non-targeting"], ["hepg2", "k562"]
SIZE = SimpleNamespace(width=16, n_heads=2, n_layers=2, inner=24)
LEVELS = [5, 4]
READS = {"cross_entropy": "bins", "hurdle": "normalized", "mse": "normalized", "nb": "counts"}


def load(name):
    spec = importlib.util.spec_from_file_location(f"reference_{name}", REFERENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def published():
    """tests/reference/published.py."""
    return load("published")


@pytest.fixture(scope="session")
def runs():
    """tests/reference/run_folder.py."""
    return load("run_folder")


@pytest.fixture(scope="session")
def cells():
    """Raw counts (cells, genes) with labels, some counts so large that their bins are wide."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.gamma(0.4, 6, size=(CELLS, GENES))).astype(np.float32)
    counts[:, 0] = rng.integers(8, 300, CELLS)
    obs = {"gene": [PERTURBATIONS[i % 3] for i in range(CELLS)], "cell_type": [CELL_TYPES[i % 2] for i in range(CELLS)]}
    obs = pd.DataFrame(obs, index=[f"cell{i}" for i in range(CELLS)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(GENES)]))


@pytest.fixture(scope="session")
def counts(cells):
    """The counts as a dense tensor."""
    return torch.from_numpy(cells.X.toarray())


@pytest.fixture(scope="session")
def file(cells, tmp_path_factory):
    """The cells as h5ad."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def read_as(published, counts):
    """A function that gives the counts as the published data loader would: bins, counts or normalized."""

    def values(kind):
        library = counts.sum(1, keepdim=True)
        normalized = torch.log1p(counts * (library.median() + library.sort(0)[0][CELLS // 2]) / 2 / library)
        return {"bins": published.bins_of(counts), "counts": counts, "normalized": normalized}[kind]

    return values


@pytest.fixture(scope="session")
def write_vae(published, runs, tmp_path_factory):
    """A function that draws a published VAE and writes its run folder; gives both."""

    def write(head="cross_entropy", quantizer="fsq", folder=None, counts="mlp", **run):
        levels = LEVELS if quantizer == "fsq" else None
        n_vectors = {"vq": 20, "lfq": "lfq"}.get(quantizer, 0)
        built = published.PublishedVAE(SIZE, GENES, LATENTS, head, levels, n_vectors=n_vectors, counts=counts)
        vae = published.draw_weights(built)
        kinds = {
            "fsq": {"type": "fsq", "fsq_level": LEVELS, "codebook_size": 20},
            "vq": {"type": "vq", "codebook_size": 20, "codebook_dim": 4, "commitment_weight": 1.0},
            "lfq": {"type": "lfq", "codebook_size": 16},
            "noquant": {"type": "noquant", "latent_dim": 4, "beta_kl": 0.01},
        }
        settings = {
            "type": "vae", "num_genes": GENES, "num_latent_tokens": LATENTS,
            "encoder": runs.sizes_of(SIZE, "cross_attention"), "decoder": runs.sizes_of(SIZE, "cross_attention"),
            "quantizer": kinds[quantizer],
            "input_head": {"type": counts, "scale": 2.0},
            "output_head": {"type": head, **({"temperature": 1.5} if head == "nb" else {})},
        }  # fmt: skip
        folder = folder or tmp_path_factory.mktemp("runs") / "vae"
        return vae, runs.write_run(folder, settings, READS[head], vae.state_dict(), **run)

    return write


@pytest.fixture(scope="session")
def write_prior(published, runs, write_vae, tmp_path_factory):
    """A function that draws a published prior and writes its run folder, and its VAE's beside it; gives both."""

    def write(kind, over_codes=True, n_features=0, sees_time=True, counts="embedding", vae="fsq", **run):
        over = {"n_genes": GENES, "counts": "mlp" if kind == "flow_matching" else counts}
        path, work = None, tmp_path_factory.mktemp("runs")
        if over_codes:
            quantizer = "noquant" if kind == "flow_matching" else vae
            over = {"vae": write_vae(quantizer=quantizer, folder=work / "vae")[0]}
            path = "trained/elsewhere/vae"
        prior = published.PublishedPrior(
            kind, SIZE, len(PERTURBATIONS), len(CELL_TYPES), n_features=n_features, sees_time=sees_time, **over
        )
        frozen = {name: tensor.clone() for name, tensor in prior.state_dict().items() if name.startswith("vae.")}
        published.draw_weights(prior, seed=1)
        prior.load_state_dict(frozen, strict=False)
        settings = {
            "type": kind, "num_genes": GENES, "vae_path": path, "do_celltype_cond": True, "num_sample_steps": 6,
            "num_perts": len(PERTURBATIONS), "num_cell_types": len(CELL_TYPES), "time_conditioned": sees_time,
            "pert_cond_source": "projected" if n_features else "learned", "pert_emb_dim": n_features or None,
            "transformer": runs.sizes_of(SIZE, "dit"), "output_head": {"type": "cross_entropy", "max_count": 19},
            "input_head": {"type": over.get("counts", "embedding"), "scale": 2.0},
        }  # fmt: skip
        reads = "normalized" if kind == "flow_matching" and not over_codes else "bins"
        return prior, runs.write_run(work / "prior", settings, reads, prior.state_dict(), **run)

    return write


@pytest.fixture(scope="session")
def converted(file):
    """A function that converts a run folder and loads what was written."""

    def load_converted(folder, **options):
        convert(folder, file, folder / "converted", **options)
        return load_checkpoint(folder / "converted").model

    return load_converted
