"""Stage 2: train a prior over the codes of a frozen tokenizer, conditioned on perturbation and cell type."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from evae.common.digests import weights_digest
from evae.common.progress import console
from evae.data.format import AnyDataset, Dataset, DatasetInfo
from evae.data.streaming.mixture import Mixture, Sources
from evae.models.configuration_evae import EvaeConfig
from evae.models.configuration_evae_prior import EvaeARConfig, EvaeFlowConfig, EvaeMDLMConfig
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.modeling_evae import EvaeModel
from evae.models.modeling_evae_ar import EvaeARForCausalLM
from evae.models.modeling_evae_flow import EvaeFlowModel
from evae.models.modeling_evae_mdlm import EvaeMDLMModel
from evae.models.no_tokenizer_evae import NoTokenizer
from evae.models.processing_evae import EvaeProcessor
from evae.training.batch_cells import named_cells
from evae.training.codes import CodeBatches, EncodedCells, cells_batches
from evae.training.conditions import Vocabulary, perturbation_vocabulary, set_conditions
from evae.training.controls import set_prompts
from evae.training.encoder import Encoder
from evae.training.guidance import choose_guidance
from evae.training.library import fit_library_sizes
from evae.training.loop.claim import claimed_folder
from evae.training.loop.setup import make_accelerator, say_where
from evae.training.loop.stage import Stage
from evae.training.loop.steps import train
from evae.training.loop.stopping import StopCheck, stopping_together
from evae.training.loop.validation import Batch, take_cells
from evae.training.resume.run_folder import FINISHED, RunFolder
from evae.training.settings import PriorSettings, check_model_settings
from evae.training.tokenizer import fingerprint, make_processor, report_finished, save_with_processor

PRIORS: dict[str, tuple[Any, Any]] = {
    "evae_ar": (EvaeARConfig, EvaeARForCausalLM),
    "evae_mdlm": (EvaeMDLMConfig, EvaeMDLMModel),
    "evae_flow": (EvaeFlowConfig, EvaeFlowModel),
}
FROM_DATASET = (
    *("tokenizer_config", "n_perturbations", "n_perturbation_features", "perturbation_feature_size", "n_cell_types"),
    *("control_id", "n_effects", "guidance_curve"),
)
NO_TOKENIZER = "counts"  # in the place of a tokenizer's folder: the prior works on the counts themselves


def train_prior(settings: PriorSettings) -> Path:
    """Train a prior and save it, tokenizer and processor included.

    The dataset is encoded once, by every rank in full, so that all ranks hold the same cells in the same
    order.

    Args:
        settings: see `evae.training.settings`; `dataset`, `tokenizer` and `output_dir` must be set.

    Returns:
        The run folder, which needs neither the tokenizer's folder nor the dataset.

    Raises:
        EvaeError: bad settings, a tokenizer that is damaged or of another gene panel, an output folder that
            holds a run or that another training uses, a loss that is not finite, a full disk.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C, with a checkpoint or before the first step.
    """
    settings.require("dataset", "tokenizer", "output_dir")
    if settings.model_type not in PRIORS:
        raise EvaeError(
            f"unknown model_type '{settings.model_type}'. {near_matches(settings.model_type, list(PRIORS))}"
        )
    fields = check_model_settings(settings.model, PRIORS[settings.model_type][0], FROM_DATASET)
    accelerator = make_accelerator(settings)
    settings, datasets = held_to_epochs(settings, accelerator)
    with claimed_folder(settings, accelerator) as run:
        if run.status == FINISHED:
            return report_finished(run)
        with stopping_together(run, accelerator, settings.compile) as check_stop:
            return _train_on(settings, datasets, fields, accelerator, run, check_stop)


def held_to_epochs(settings: PriorSettings, accelerator: Accelerator) -> tuple[PriorSettings, list[AnyDataset]]:
    """The settings with `max_steps` held to `max_epochs`, and their datasets, open where that needs their sizes.

    Says so where it is less.
    """
    if not settings.max_epochs:
        return settings, list(settings.datasets)
    datasets = [Dataset.open(dataset) for dataset in settings.datasets]
    n_cells = sum(dataset.info.n_cells["train"] for dataset in datasets)
    held = settings.within_epochs(n_cells, accelerator.num_processes)
    if held.max_steps < settings.max_steps:
        console(accelerator.is_main_process).print(
            f"{held.max_steps:,} steps, which are max_epochs={settings.max_epochs:g} passes over {n_cells:,} training "
            "cells; name max_steps to train longer",
            highlight=False,
        )
    return held, list(datasets)


def _train_on(
    settings: PriorSettings, datasets: list[AnyDataset], fields: dict[str, Any], accelerator: Accelerator,
    run: RunFolder, check_stop: StopCheck,
) -> Path:  # fmt: skip
    """Build the prior, encode the dataset and train."""
    config_class, model_class = PRIORS[settings.model_type]
    sources = Sources(datasets, settings.dataset_weights)
    info = sources.info
    if settings.tokenizer == NO_TOKENIZER:
        tokenizer: Any = counts_as_latents(info, model_class)
    else:
        tokenizer = load_tokenizer(settings.tokenizer, info)
    set_seed(settings.seed)
    vocabulary = perturbation_vocabulary(info, settings.perturbation_features, settings.combination_sign)
    processor = make_processor(info, vocabulary.units, settings.combination_sign)
    config = build_config(config_class, tokenizer.config, vocabulary, processor, info, fields)
    prior = model_class(config)
    prior.set_tokenizer(tokenizer)
    say_where(accelerator)
    splits = ("train", "validation")
    encoder = Encoder(sources, tokenizer, config.reads_controls, accelerator, check_stop)
    cells = {split: encoder.split(split, settings.thinned_copies * (split == "train")) for split in splits}
    prior.set_statistics(torch.from_numpy(cells["train"].codes))
    processor.library_model = fit_library_sizes(cells["train"], encoder.whole_rows(settings.thinned_copies), info)
    keep = set_prompts(prior, cells, encoder, settings, run.path) if config.reads_controls else None
    set_conditions(prior, cells, processor, vocabulary, settings, accelerator.device, check_stop)
    check_stop()
    cell_type = "context" if config.cell_type_context else "cell_type_ids"
    stage = Stage(
        title="prior",
        inputs=(prior.training_input, "perturbation_ids", cell_type, "library_size", *_inputs_from_controls(config)),
        validation=validation_codes(cells["validation"], sources, settings),
        save=partial(save_prior, processor=processor, cells=cells["validation"], run=run, settings=settings),
        fingerprint=fingerprint(info, weights_digest(tokenizer), *vocabulary.digest(), *sources.order()),
        named_cells=partial(named_cells, sources),
        keep=keep,
    )
    batches = training_codes(cells["train"], sources, settings, accelerator)
    return train(prior, batches, settings, accelerator=accelerator, run=run, stage=stage)


def build_config(
    config_class: Any,
    tokenizer_config: Any,
    vocabulary: Vocabulary,
    processor: EvaeProcessor,
    info: DatasetInfo,
    fields: dict[str, Any],
) -> Any:
    """The configuration of a prior over a tokenizer and a dataset; `fields` are those that the settings name."""
    if config_class is EvaeFlowConfig and fields.get("source_cells"):
        fields = {"start_from": "source"} | fields  # better than from noise; a config.json without it means noise
    return config_class(
        tokenizer_config=tokenizer_config,
        n_perturbations=vocabulary.n_units,
        n_perturbation_features=len(vocabulary.features),
        perturbation_feature_size=vocabulary.features.shape[1],
        n_cell_types=len(info.cell_types),
        control_id=int(processor.perturbation_ids([str(info.control)])[0]),
        n_effects=len(info.perturbations) if fields.get("condition_on_effect") else 0,
        **fields,
    )


def counts_as_latents(info: DatasetInfo, model_class: Any) -> NoTokenizer:
    """What a prior without latents has for a tokenizer: bins for codes, log1p counts for continuous latents."""
    return NoTokenizer(
        EvaeConfig(
            n_genes=len(info.genes),
            quantizer="bins" if model_class.training_input == "codes" else "log1p",
            sample_within_bins=True,
            condition_on_library=True,
            median_library_size=float(info.statistics["median_library_size"]),
        )
    )


def load_tokenizer(path_or_id: str, info: DatasetInfo) -> EvaeModel:
    """Load a trained tokenizer and check that it reads the dataset's gene panel.

    Raises:
        EvaeError: nothing there, a damaged file, another panel.
    """
    try:
        tokenizer = EvaeModel.from_pretrained(path_or_id)
        genes = list(EvaeProcessor.from_pretrained(path_or_id).genes)
    except (OSError, SafetensorError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EvaeError(
            f"the tokenizer '{path_or_id}' cannot be loaded ({reason}); finish, repeat or copy its run."
        ) from None
    if genes != list(info.genes):
        raise EvaeError(
            f"the tokenizer '{path_or_id}' reads another gene panel than the dataset ({len(genes)} and "
            f"{len(info.genes)} genes); prepare the dataset with the tokenizer's panel, or train a "
            "tokenizer on it."
        )
    return tokenizer.eval().requires_grad_(False)


def save_prior(
    prior: Any, folder: Path, *, processor: EvaeProcessor, cells: EncodedCells, run: RunFolder, settings: PriorSettings
) -> None:
    """Write the finished prior; one that reads controls gets its default guidance scale first."""
    if prior.config.reads_controls and prior.config.control_id >= 0:
        scale, curve = choose_guidance(prior.eval(), cells, prior.config.control_id, settings.seed)
        prior.config.guidance_scale, prior.config.guidance_curve = scale, curve
        run.log(step=settings.max_steps, guidance_scale=scale, guidance_curve=curve)
        console().print(
            f"default guidance scale {scale:g}; distance of the means on validation cells by scale: "
            + ", ".join(f"{name} {value:.3g}" for name, value in curve.items()),
            highlight=False,
        )
    save_with_processor(prior, folder, processor)


def _inputs_from_controls(config: Any) -> list[str]:
    sources = ["source_latents", "source_library_size"] if config.source_cells else []
    return sources + (["effect"] if config.condition_on_effect else [])


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
