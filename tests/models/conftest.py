"""Tiny models and cells shared by the tests of the Hub zone."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from evae.models import (
    EvaeARConfig,
    EvaeARForCausalLM,
    EvaeConfig,
    EvaeFlowConfig,
    EvaeFlowModel,
    EvaeMDLMConfig,
    EvaeMDLMModel,
    EvaeModel,
    EvaeProcessor,
)

torch.set_num_threads(1)

TINY = {
    "n_genes": 30,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "n_latents": 4,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "fsq_levels": [5, 3],
    "latent_dim": 3,
    "median_library_size": 60.0,
}
TINY_PRIOR = {
    "n_perturbations": 3,
    "n_cell_types": 2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
KINDS = {
    "ar": (EvaeARConfig, EvaeARForCausalLM),
    "mdlm": (EvaeMDLMConfig, EvaeMDLMModel),
    "flow": (EvaeFlowConfig, EvaeFlowModel),
}


@pytest.fixture
def tiny_config():
    """A function that gives a tiny tokenizer configuration, with fields changed at will."""
    return lambda **fields: EvaeConfig(**{**TINY, **fields})


@pytest.fixture
def tiny_tokenizer(tiny_config):
    """A function that gives a tiny tokenizer in evaluation mode."""

    def build(seed=0, **fields):
        torch.manual_seed(seed)
        return EvaeModel(tiny_config(**fields)).eval()

    return build


@pytest.fixture
def tiny_prior(tiny_config):
    """A function that gives a tiny prior of a kind ("ar", "mdlm", "flow") in evaluation mode.

    Its modulation is drawn, because adaLN-Zero starts at zero, where no condition has an effect.
    """

    def build(seed=0, tokenizer=None, kind="ar", **fields):
        torch.manual_seed(seed)
        config_class, model_class = KINDS[kind]
        own = {"quantizer": "gaussian"} if kind == "flow" else {}
        fields = fields if kind == "ar" else {"sampling_steps": 4, **fields}
        config = config_class(tokenizer_config=tiny_config(**{**own, **(tokenizer or {})}), **{**TINY_PRIOR, **fields})
        prior = model_class(config)
        torch.nn.init.normal_(prior.modulation.weight, std=0.5)
        torch.nn.init.normal_(prior.modulation.bias, std=0.5)
        torch.nn.init.normal_(prior.condition.perturbation.weight)
        torch.nn.init.normal_(prior.condition.cell_type.weight)
        for weight in (p for p in prior.token_embedding.parameters() if p.dim() == 2):
            torch.nn.init.normal_(weight)
        if kind == "flow":  # a tokenizer's latents have scales of their own
            shape = (50, prior.n_codes, config.tokenizer_config.latent_width)
            prior.set_statistics(torch.randn(shape) * 2 + 1)
        torch.nn.init.normal_(prior.position_embedding.weight)
        return prior.eval()

    return build


@pytest.fixture
def cells():
    """Dense raw counts (7, 30), float32, about half of them zero."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.poisson(rng.gamma(0.5, 4, size=(7, 30)))).float()


@pytest.fixture
def processor():
    """A processor over the 30 genes of the tiny models."""
    return EvaeProcessor(
        genes=[f"GENE{i}" for i in range(30)],
        ensembl_ids=[f"ENSG{i:011d}" for i in range(30)],
        perturbations=["control", "STAT1", "JAK2"],
        cell_types=["T cell", "B cell"],
        control="control",
        library_size_quantiles=[10.0, 50.0, 100.0],
        training_pairs={"T cell": ["control", "STAT1"], "B cell": ["control", "JAK2"]},
    )


@pytest.fixture(scope="session")
def misalign():
    """A function that pads the headers of a folder's safetensors: data then begin 8 bytes past a multiple of 64.

    The header is JSON, before it stands its length in 8 bytes; the format lets spaces follow the JSON.
    """

    def pad(folder):
        for path in Path(folder).glob("*.safetensors"):
            content = path.read_bytes()
            size = int.from_bytes(content[:8], "little")
            header, data = content[8 : 8 + size], content[8 + size :]
            header += b" " * (-size % 64)
            path.write_bytes(len(header).to_bytes(8, "little") + header + data)

    return pad


def pad_and_permute(counts, seed=0, extra=5):
    """Dense counts as gene lists: expressed genes in random order among random zero entries as padding."""
    rng = np.random.default_rng(seed)
    width = int((counts > 0).sum(1).max()) + extra
    gene_ids = np.zeros((len(counts), width), dtype=np.int64)
    values = torch.zeros(len(counts), width, dtype=counts.dtype)
    for cell, row in enumerate(counts):
        expressed = row.nonzero().flatten().numpy()
        places = rng.permutation(width)[: len(expressed)]
        gene_ids[cell] = rng.integers(0, counts.shape[1], width)
        gene_ids[cell, places] = expressed
        values[cell, torch.from_numpy(places)] = row[torch.from_numpy(expressed)]
    return values, torch.from_numpy(gene_ids)


@pytest.fixture
def as_gene_lists():
    """A function that turns dense counts into (counts, gene_ids) with padding, in random order."""
    return pad_and_permute
