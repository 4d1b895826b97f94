"""A rehearsal of the challenge: its lists and controls in small, and a model that knows contexts by their controls."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae.inference.checkpoint import load_checkpoint

CONTEXTS = ("A", "B", "C")
N_CELLS, N_CONTROLS = 7, 30


@pytest.fixture(scope="session")
def zero_shot_model(tiny_checkpoint, tmp_path_factory):
    """Untrained, but of the kind that predicts for cell types it never saw."""
    tiny = load_checkpoint(tiny_checkpoint)
    config = type(tiny.model.config).from_dict(tiny.model.config.to_dict() | {"cell_type_context": True})
    model = type(tiny.model)(config)
    model.tokenizer.load_state_dict(tiny.model.tokenizer.state_dict())
    folder = tmp_path_factory.mktemp("zero_shot")
    model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def targets(tiny_checkpoint):
    processor = load_checkpoint(tiny_checkpoint).processor
    return [p for p in processor.perturbations if p != processor.control]


@pytest.fixture(scope="session")
def panel(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint).processor.genes


@pytest.fixture
def bundle(tmp_path, targets, panel):
    """gene_names.csv, pert_counts.csv, manifest.json and controls.h5ad in a folder, laid out as the challenge's."""
    rng = np.random.default_rng(0)
    genes = [*(f"MORE{i}" for i in range(15)), *panel]
    order = rng.permutation(len(genes))
    pd.Series(np.array(genes)[order]).to_csv(tmp_path / "gene_names.csv", index=False, header=["gene_name"])
    rows = [(t, c, N_CELLS) for c in CONTEXTS for t in targets]
    pd.DataFrame(rows, columns=["target_gene", "context", "n_cells"]).to_csv(tmp_path / "pert_counts.csv", index=False)
    (tmp_path / "manifest.json").write_text(json.dumps({"contexts": CONTEXTS, "panel_id": "val"}))
    n = N_CONTROLS * len(CONTEXTS)
    counts = rng.poisson(rng.gamma(1, 3, len(genes)) * rng.gamma(5, 0.2, (n, 1))).astype(np.float32)
    obs = pd.DataFrame({"target_gene": "non-targeting", "context": np.repeat(CONTEXTS, N_CONTROLS)})
    obs.index = [f"cell{i}" for i in range(n)]
    ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(tmp_path / "controls.h5ad")
    return tmp_path
