"""Rows of the benchmark: a training step of the small presets in bfloat16 beside float32, as a run takes it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmark_rows import Bench, Row
from benchmark_steps import update_step
from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeConfig, EvaeModel
from evae.models.randomness_evae import CellStreams
from evae.training.settings.presets import config_path

NAMES = ("tiny", "small")
ID_COUNT = 10  # perturbations, and cell types


def presets(bench: Bench) -> Iterator[Row]:
    """Tokenizer and prior of each preset."""
    for name in NAMES:
        tokenizer, prior = (yaml.safe_load(config_path(name, stage).read_text()) for stage in ("tokenizer", "prior"))
        torch.manual_seed(0)
        config = EvaeConfig(n_genes=bench.n_genes, **tokenizer["model"])
        n = bench.size(tokenizer["batch_size"], tokenizer["batch_size"])
        counts, (values, genes) = bench.both_forms(n)
        inputs = {"counts": values, "gene_ids": genes, "library_size": counts.sum(1)}
        yield _row(f"preset {name}, tokenizer", EvaeModel(config).to(bench.device), n, inputs)
        known = {"n_perturbations": ID_COUNT, "n_cell_types": ID_COUNT, "n_effects": ID_COUNT, "control_id": 0}
        model = EvaeARForCausalLM(EvaeARConfig(config, **known, **prior["model"])).to(bench.device)
        n = bench.size(prior["batch_size"], prior["batch_size"])
        yield _row(f"preset {name}, prior", model, n, _told(config, n, bench.device))


def _told(config: EvaeConfig, n: int, device: torch.device) -> dict[str, Tensor]:
    """What a prior that reads control cells is given for `n` cells."""
    latents = config.n_latents, config.latent_width
    told = {"perturbation_ids": torch.arange(n) % ID_COUNT, "cell_type_ids": torch.arange(n) % ID_COUNT}
    told |= {"source_latents": torch.randn(n, 1, *latents), "source_library_size": torch.full((n, 1), 5e3)}
    told |= {"codes": torch.randint(config.codebook_size, (n, latents[0])), "library_size": torch.full((n,), 5e3)}
    told |= {"effect": torch.randn(n, latents[0] * latents[1])}
    return {name: values.to(device) for name, values in told.items()}


def _row(title: str, model: nn.Module, n: int, inputs: dict[str, Tensor]) -> Row:
    def step(on: bool) -> Callable[[], Any]:
        def loss() -> Tensor:
            with torch.autocast(next(iter(inputs.values())).device.type, torch.bfloat16, enabled=on):
                found: Tensor = model(**inputs, generator=CellStreams(0, range(n))).loss
            return found

        return update_step(model, loss)

    return Row(title, n, {"bfloat16": step(True), "float32": step(False)})
