"""The rows of the benchmark: what is timed against what, on which cells."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark_operations import NoCard
from benchmark_reference import reference_tokenizer, sample_by_hand, sample_by_masking, sample_recomputing
from benchmark_steps import training_step
from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeConfig, EvaeMDLMConfig, EvaeMDLMModel, EvaeModel
from evae.models.coders_evae import to_sparse
from evae.models.device_evae import on_accelerator
from evae.models.randomness_evae import CellStreams
from evae.training.couplings import Cells, couple

TOY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "n_latents": 6}
# The published width, without what costs most: attention between genes, two layers, keys and values of every layer.
FAST = {"decoder_self_attention": False, "decoder_layers": 2, "share_keys_values": True, "loss_genes": 500}


@dataclass
class Row:
    """Contenders, ours first, each a call over `cells` cells.

    Attributes:
        bytes_read: of a contender, what it must at least read from memory.
    """

    title: str
    cells: int
    contenders: dict[str, Callable[[], Any]]
    bytes_read: dict[str, float] | None = None


@dataclass
class Bench:
    """Cells and models at the size of the run, each made once.

    Attributes:
        n_genes: genes in the panel.
        nonzero: share of them that a cell expresses, in the mean.
        quick: toy sizes.
        n_cells: cells of every call; each row's own number if None.
        without_values: makes the cells where nothing is computed; None where it is.
    """

    device: torch.device
    n_genes: int
    nonzero: float
    quick: bool
    n_cells: int | None = None
    without_values: NoCard | None = None

    def size(self, cpu: int, gpu: int) -> int:
        """Cells of a call."""
        return self.n_cells or (4 if self.quick else gpu if on_accelerator(self.device) else cpu)

    def cells(self, n: int) -> Tensor:
        """Counts (cells, genes), float32: library sizes vary between cells by a factor of two or so."""
        return self.both_forms(n)[0]

    def both_forms(self, n: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Counts (cells, genes), and the counts and ids of the expressed genes, (cells, tokens) each."""
        if self.without_values is not None:
            return self.without_values(lambda: replace(self, without_values=None).both_forms(n))
        generator = torch.Generator().manual_seed(0)
        rate = torch.rand(self.n_genes, generator=generator) ** 4
        depth = (0.5 * torch.randn(n, 1, generator=generator)).exp()
        low, high = 1e-3, 1e3
        for _ in range(40):  # the depth at which that share is expressed
            middle = (low * high) ** 0.5
            share = (1 - (-middle * rate * depth).exp()).mean()
            low, high = (middle, high) if share < self.nonzero else (low, middle)
        counts = torch.poisson(low * rate * depth, generator=generator)
        counts[:, 0] = 1  # no cell is empty
        return counts.to(self.device), to_sparse(counts.to(self.device))

    def tokenizer(self, **fields: Any) -> EvaeModel:
        """A tokenizer of the published size with some fields changed."""
        torch.manual_seed(0)
        size = TOY if self.quick else {}
        return self._placed(EvaeModel(EvaeConfig(**{"n_genes": self.n_genes, **size, **fields})))

    def reference(self) -> EvaeModel:
        """The published tokenizer."""
        torch.manual_seed(0)
        return self._placed(reference_tokenizer(n_genes=self.n_genes, **(TOY if self.quick else {})))

    def prior(self, kind: str, tokenizer: EvaeModel, **fields: Any) -> Any:
        """A prior of the published size over a tokenizer, in evaluation mode; adaLN-Zero does not start at zero."""
        config_class, model_class = {
            "ar": (EvaeARConfig, EvaeARForCausalLM),
            "mdlm": (EvaeMDLMConfig, EvaeMDLMModel),
        }[kind]
        own = {k: v for k, v in TOY.items() if k != "n_latents"} | {"num_hidden_layers": 2} if self.quick else {}
        torch.manual_seed(1)
        model = model_class(config_class(tokenizer.config, n_perturbations=90, n_cell_types=18, **own, **fields))
        nn.init.normal_(model.modulation.weight, std=0.02)
        model.set_tokenizer(tokenizer)
        return frozen(self._placed(model))

    def _placed(self, model: Any) -> Any:
        return model if self.without_values else model.to(self.device)

    def conditions(self, n: int) -> dict[str, Tensor]:
        """A perturbation and a cell type for each of `n` cells, in the order in which a user asks for them."""
        ids = torch.arange(n, device=self.device)
        return {"perturbation_ids": ids * 4 // max(n, 4), "cell_type_ids": ids * 0}


def frozen(model: Any) -> Any:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def train_tokenizer(bench: Bench) -> Row:
    n = bench.size(8, 128)
    counts, (values, genes) = bench.both_forms(n)
    ours = bench.tokenizer(**FAST)
    exact = bench.tokenizer()
    mlp = bench.tokenizer(encoder="mlp", decoder="mlp", encoder_layers=3, decoder_layers=3, loss_genes=500)
    return Row(
        "tokenizer training step", n,
        {
            "ours at equal width": training_step(ours, counts=values, gene_ids=genes),
            "perceptrons": training_step(mlp, counts=values, gene_ids=genes),
            "the same numbers as published": training_step(exact, counts=values, gene_ids=genes),
            "published": training_step(bench.reference(), counts=counts),
        },
    )  # fmt: skip


def train_prior(bench: Bench) -> Row:
    n = bench.size(16, 256)
    counts, conditions = bench.cells(n), bench.conditions(n)
    tokenizer = frozen(bench.reference())
    prior = bench.prior("ar", tokenizer).requires_grad_(True)
    step = training_step(prior, codes=tokenizer.encode(counts), **conditions)

    def encode_and_step() -> None:
        tokenizer.encode(counts)
        step()

    contenders = {"ours, cells encoded once": step, "cells encoded in every step": encode_and_step}
    return Row("prior training step", n, contenders)


def encode(bench: Bench) -> Row:
    n = bench.size(64, 512)
    counts, (values, genes) = bench.both_forms(n)
    exact, shared, published = (frozen(m) for m in (bench.tokenizer(), bench.tokenizer(**FAST), bench.reference()))
    return Row(
        "encoding", n,
        {
            "ours, the same numbers as published": lambda: exact.encode(values, genes),
            "ours, keys and values shared": lambda: shared.encode(values, genes),
            "published": lambda: published.encode(counts),
        },
    )  # fmt: skip


def sample(bench: Bench) -> Row:
    n = bench.size(32, 1024)
    prior, conditions = bench.prior("ar", bench.tokenizer(**FAST)), bench.conditions(n)
    uniform = CellStreams(0, range(n)).uniform(prior.n_codes, device=bench.device)
    weights = sum(p.numel() for name, p in prior.named_parameters() if not name.startswith("tokenizer"))
    per_cell = prior.config.num_hidden_layers * prior.config.hidden_size
    kept = per_cell * n * prior.n_codes  # keys and values, half of the codes in the mean
    bytes_read = prior.n_codes * (weights + kept) * (2 if bench.device.type == "cuda" else 4)
    reading = bench.prior("ar", bench.tokenizer(**FAST), source_cells=1)
    latents = torch.zeros(n, prior.n_codes, reading.tokenizer.config.latent_width, device=bench.device)
    source = {"source_latents": latents, "source_library_size": torch.full((n,), 5_000.0, device=bench.device)}
    return Row(
        "autoregressive codes", n,
        {
            "ours": lambda: prior.sample(**conditions, generator=CellStreams(0, range(n))),
            "ours, reading a source cell": lambda: reading.sample(
                **conditions, **source, generator=CellStreams(0, range(n))
            ),
            "generate() of transformers": lambda: prior.generate(**conditions),
            "cached loop by hand": lambda: sample_by_hand(prior, conditions, uniform),
            "prefix recomputed": lambda: sample_recomputing(prior, conditions, uniform),
        },
        {"ours": bytes_read, "cached loop by hand": bytes_read},
    )  # fmt: skip


def diffuse(bench: Bench) -> Row:
    n = bench.size(8, 512)
    prior, conditions = bench.prior("mdlm", bench.tokenizer(**FAST)), bench.conditions(n)
    return Row(
        "masked diffusion codes", n,
        {
            "ours, 32 steps": lambda: prior.sample(**conditions, num_steps=32),
            "ours, 8 steps": lambda: prior.sample(**conditions, num_steps=8),
            "loop by hand, 32 steps": lambda: sample_by_masking(prior, conditions, 32),
        },
    )  # fmt: skip


def generate(bench: Bench) -> Row:
    n = bench.size(16, 512)
    library, conditions = torch.full((n,), 5_000.0, device=bench.device), bench.conditions(n)
    asked, streams = conditions | {"library_size": library}, lambda: CellStreams(0, range(n))
    ours = bench.prior("ar", bench.tokenizer(**FAST))
    same = bench.prior("ar", bench.tokenizer())
    reference = frozen(bench.reference())

    def published() -> Tensor:
        uniform = torch.rand(n, ours.n_codes, device=bench.device)
        codes = sample_recomputing(ours, conditions, uniform)
        return reference.sample_counts(codes, library)

    return Row(
        "generated cells, from condition to counts", n,
        {
            "ours": lambda: ours.sample_cells(**asked, generator=streams()),
            "ours with the decoder as published": lambda: same.sample_cells(**asked, generator=streams()),
            "published, prefix recomputed": published,
        },
    )  # fmt: skip


def pair(bench: Bench) -> Row:
    """Pairing of 100,000 cells against training the prior of preset `small`, a share of each timed.

    Pairing is linear in the cells: two sizes say whether it is.
    """
    n = bench.n_cells or (600 if bench.quick else 8_000)
    steps, batch = (1200, 128) if not bench.quick else (12, 8)
    generator = np.random.default_rng(0)
    points = generator.normal(size=(2 * n, 32)).astype(np.float32)
    perturbation = np.arange(2 * n) % 10  # one cell in ten is a control
    cells = Cells(points, perturbation, np.zeros(2 * n, dtype=int), np.zeros(2 * n, dtype=int))
    tokenizer = EvaeConfig(
        n_genes=bench.n_genes, n_latents=16, fsq_levels=[8, 8], hidden_size=64, num_attention_heads=4
    )
    small = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    torch.manual_seed(0)
    config = EvaeARConfig(
        tokenizer, n_perturbations=10, n_effects=10, control_id=0, source_cells=1, condition_on_effect=True,
        dropout=0.2, **small,
    )  # fmt: skip
    prior = EvaeARForCausalLM(config).to(bench.device)
    conditions = {"perturbation_ids": torch.arange(batch) % 10, "cell_type_ids": torch.zeros(batch, dtype=torch.long)}
    conditions |= {"source_latents": torch.randn(batch, 1, 16, 2), "source_library_size": torch.full((batch, 1), 5e3)}
    conditions |= {"codes": torch.randint(64, (batch, 16)), "library_size": torch.full((batch,), 5e3)}
    conditions |= {"effect": torch.randn(batch, 32)}
    step = training_step(prior, **{name: values.to(bench.device) for name, values in conditions.items()})

    def pair_cells(n: int) -> None:
        some = cells.part(np.arange(n))
        is_control = some.perturbation == 0
        own = np.where(is_control, np.cumsum(is_control) - 1, -1)
        couple(some, some.part(np.flatnonzero(is_control)), own, control=0, names=["one"])

    share = n / 100_000  # of the cells, and of the steps, so that both stand for as many cells

    def train() -> None:
        for _ in range(max(1, round(steps * share))):
            step()

    return Row(
        "pairing cells, against training preset small's prior on 100,000", n,
        {
            "pairing": lambda: pair_cells(n),
            "pairing twice as many": lambda: pair_cells(2 * n),
            "that share of the 1,200 training steps": train,
        },
    )  # fmt: skip


ROWS: dict[str, Callable[[Bench], Row]] = {
    "pair": pair,
    "train_tokenizer": train_tokenizer,
    "train_prior": train_prior,
    "encode": encode,
    "sample": sample,
    "diffuse": diffuse,
    "generate": generate,
}
