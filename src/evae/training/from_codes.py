"""The training of a prior on codes: a new one, or one that was trained before and goes on with other cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from evae.common.digests import weights_digest
from evae.common.known_effects import KnownEffects
from evae.common.logs import logger
from evae.data.format import Dataset
from evae.data.streaming.mixture import Mixture, Sources
from evae.models.processing_evae import EvaeProcessor
from evae.training.batch_cells import named_cells
from evae.training.batches import set_batches
from evae.training.codes import CodeBatches, EncodedCells, cells_batches
from evae.training.conditions import Vocabulary, set_conditions
from evae.training.controls import set_prompts
from evae.training.encoder import Encoder
from evae.training.known_effects import measure_effects
from evae.training.library import extended, fit_library_sizes
from evae.training.loop.setup import say_where
from evae.training.loop.stage import Stage
from evae.training.loop.steps import train
from evae.training.loop.stopping import StopCheck
from evae.training.loop.validation import Batch, take_cells
from evae.training.resume.run_folder import RunFolder
from evae.training.sampling_defaults import PerturbedCells, choose_guidance, choose_temperature
from evae.training.settings import PriorSettings
from evae.training.tokenizer import fingerprint, save_with_processor

LOG = logger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What the training of a prior begins with.

    Attributes:
        prior: built for the vocabulary, with the tokenizer's weights inside.
        tokenizer: that encodes the cells.
        processor: the prior's.
        vocabulary: the perturbations of the prior.
        sources: the datasets.
        weights: digest of the weights of a prior that was trained before; "" for a new one, of which the cells set the
            statistics.
        adapt: called on the prior before its first step.
        save: writes the trained prior into a folder; as a new one is written if None.
    """

    prior: Any
    tokenizer: Any
    processor: EvaeProcessor
    vocabulary: Vocabulary
    sources: Sources
    weights: str = ""
    adapt: Callable[[Any], None] = lambda prior: None
    save: Callable[[Any, Path], None] | None = None


def train_from(
    start: Beginning, settings: PriorSettings, accelerator: Accelerator, run: RunFolder, check_stop: StopCheck
) -> Path:
    """Encode the datasets and train a prior, new or trained before, on their codes."""
    prior, processor, sources, trained = start.prior, start.processor, start.sources, bool(start.weights)
    say_where(accelerator)
    splits = ("train", "validation")
    encoder = Encoder(sources, start.tokenizer, prior.config.reads_controls, accelerator, check_stop)
    cells = {split: encoder.split(split, settings.thinned_copies * (split == "train")) for split in splits}
    if not trained:
        prior.set_statistics(torch.from_numpy(cells["train"].codes))
    whole = encoder.whole_rows(settings.thinned_copies)
    processor.library_model = extended(processor.library_model, fit_library_sizes(cells["train"], whole, sources.info))
    reads = prior.config.reads_controls
    keep = set_prompts(prior, cells, encoder, settings, run.path, trained) if reads else None
    device = accelerator.device
    set_conditions(prior, cells, processor, start.vocabulary, sources, settings, device, check_stop, trained)
    set_batches(prior, cells, processor, encoder, encoder.whole_rows(settings.thinned_copies))
    start.adapt(prior)
    check_stop()
    cell_type = "context" if prior.config.cell_type_context else "cell_type_ids"
    more = _further_inputs(prior.config)
    save = partial(
        save_prior,
        processor=processor,
        cells=cells["validation"],
        datasets=sources.datasets,
        run=run,
        settings=settings,
    )
    digests = [start.weights] * trained + start.vocabulary.digest()
    stage = Stage(
        title="prior",
        inputs=(prior.training_input, "perturbation_ids", cell_type, "library_size", *more),
        validation=validation_codes(cells["validation"], sources, settings),
        save=start.save or save,
        fingerprint=fingerprint(sources.info, weights_digest(start.tokenizer), *digests, *sources.order()),
        named_cells=partial(named_cells, sources),
        keep=keep,
    )
    batches = training_codes(cells["train"], sources, settings, accelerator)
    return train(prior, batches, settings, accelerator=accelerator, run=run, stage=stage)


def save_prior(
    prior: Any,
    folder: Path,
    *,
    processor: EvaeProcessor,
    cells: EncodedCells,
    datasets: Sequence[Dataset],
    run: RunFolder,
    settings: PriorSettings,
) -> None:
    """Write the finished prior and the effects that its training cells show; one that reads controls gets its default
    guidance scale and temperature first."""
    if prior.config.reads_controls and prior.config.control_id >= 0:
        set_sampling_defaults(prior, cells, run, settings)
    save_with_processor(prior, folder, processor)
    keep_effects(datasets, processor, folder)


def set_sampling_defaults(prior: Any, cells: EncodedCells, run: RunFolder, settings: PriorSettings) -> None:
    """Choose the guidance scale and the temperature on validation cells, and say by what."""
    perturbed = PerturbedCells.of(prior.eval(), cells, prior.config.control_id, settings.seed)
    scale, curve = choose_guidance(perturbed)
    temperature, spread = choose_temperature(perturbed, scale)
    prior.config.guidance_scale, prior.config.guidance_curve = scale, curve
    prior.config.sampling_temperature = temperature
    found = {"guidance_scale": scale, "guidance_curve": curve, "temperature": temperature, "temperature_curve": spread}
    run.log(step=settings.max_steps, **found)
    few = "too few validation cells to choose another"
    LOG.info(f"default guidance scale {scale:g}; {_by('distance of the means', 'scale', curve) or few}")
    if spread:
        by = _by("spread of drawn over that of real ones", "temperature", spread)
        LOG.info(f"default temperature {temperature:g}; {by}")


def _by(measure: str, option: str, curve: Mapping[str, float]) -> str:
    values = ", ".join(f"{name} {value:.3g}" for name, value in curve.items())
    return f"{measure} on validation cells by {option}: {values}" if curve else ""


def keep_effects(
    datasets: Sequence[Dataset], processor: EvaeProcessor, folder: Path, before: KnownEffects | None = None
) -> None:
    """Write what the training cells show of every perturbation into the folder of a prior.

    Args:
        datasets: whose training cells are read.
        processor: of the prior.
        folder: of the prior.
        before: what a prior that is trained on had.
    """
    known = measure_effects(datasets, processor.genes, before)
    if known is None:
        return
    known.save(folder)
    if known.calibration:
        LOG.info(
            f"of what other cell types tell of an effect {known.calibration:.0%} is found; predictions are moved "
            "towards it"
        )


def _further_inputs(config: Any) -> list[str]:
    told = ["treatments"] * config.reads_treatments + ["batch_ids"] * config.condition_on_batch
    sources = ["source_latents", "source_library_size"] if config.source_cells else []
    return told + sources + (["effect"] if config.condition_on_effect else [])


def _of_each(cells: EncodedCells, sources: Sources, split: str) -> list[EncodedCells]:
    """The encoded cells dataset by dataset."""
    sizes = [info.n_cells[split] for info in sources.infos]
    copies = len(cells) // sum(sizes)
    ends = np.cumsum([0, *(copies * n for n in sizes)]).tolist()
    return [cells.part(slice(start, stop)) for start, stop in pairwise(ends)]


def training_codes(
    cells: EncodedCells, sources: Sources, settings: PriorSettings, accelerator: Accelerator
) -> CodeBatches | Mixture:
    """An endless source of this rank's training batches."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    if len(sources) == 1:
        return CodeBatches(cells, settings.batch_size, settings.seed, rank, ranks)
    quotas = sources.batch_quotas(settings.batch_size, ranks)
    parts = zip(_of_each(cells, sources, "train"), quotas, strict=True)
    return Mixture([CodeBatches(part, quota, settings.seed, rank, ranks) for part, quota in parts], ranks)


def validation_codes(cells: EncodedCells, sources: Sources, settings: PriorSettings) -> list[Batch]:
    """At most `eval_cells` validation cells, of each dataset its share."""
    taken = []
    quotas = sources.quotas(settings.eval_cells, "eval_cells")
    for part, quota in zip(_of_each(cells, sources, "validation"), quotas, strict=True):
        taken += take_cells(cells_batches(part, settings.batch_size), quota)
    return taken
