"""Stage 2: train a prior over the codes of a frozen tokenizer, conditioned on perturbation and cell type."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from evae.common.logs import logger
from evae.common.messages import first_line, number_of
from evae.data.format import AnyDataset, Dataset, DatasetInfo
from evae.data.streaming.mixture import Sources
from evae.models.configuration_evae import EvaeConfig
from evae.models.configuration_evae_prior import EvaeARConfig, EvaeFlowConfig, EvaeMDLMConfig
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.modeling_evae import EvaeModel
from evae.models.modeling_evae_ar import EvaeARForCausalLM
from evae.models.modeling_evae_flow import EvaeFlowModel
from evae.models.modeling_evae_mdlm import EvaeMDLMModel
from evae.models.no_tokenizer_evae import NoTokenizer
from evae.models.processing_evae import EvaeProcessor
from evae.training.batches import batch_names
from evae.training.conditions import Vocabulary, perturbation_vocabulary, treatment_fields
from evae.training.from_codes import Beginning, train_from
from evae.training.loop.claim import claimed_folder
from evae.training.loop.setup import make_accelerator
from evae.training.loop.stopping import StopCheck, stopping_together
from evae.training.resume.run_folder import FINISHED, RunFolder
from evae.training.settings import PriorSettings, check_model_settings
from evae.training.tokenizer import make_processor, report_finished

LOG = logger(__name__)

PRIORS: dict[str, tuple[Any, Any]] = {
    "evae_ar": (EvaeARConfig, EvaeARForCausalLM),
    "evae_mdlm": (EvaeMDLMConfig, EvaeMDLMModel),
    "evae_flow": (EvaeFlowConfig, EvaeFlowModel),
}
FROM_DATASET = (
    *("tokenizer_config", "n_perturbations", "n_perturbation_features", "perturbation_feature_size", "n_cell_types"),
    "perturbation_feature_source",
    *("control_id", "n_effects", "guidance_curve", "perturbation_kinds", "dose_unit", "dose_range", "time_range"),
    *("further_doses", "n_batches"),
)
NO_TOKENIZER = "counts"  # in the place of a tokenizer's folder: the prior works on the counts themselves


def train_prior(settings: PriorSettings) -> Path:
    """Train a prior and save it, tokenizer and processor included.

    The dataset is encoded once: the ranks share the work, and each then holds all cells in the same order.

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
    settings, datasets = suited_to_cells(settings, accelerator)
    with claimed_folder(settings, accelerator) as run:
        if run.status == FINISHED:
            return report_finished(run)
        with stopping_together(run, accelerator, settings.compile) as check_stop:
            return _train_on(settings, datasets, fields, accelerator, run, check_stop)


def suited_to_cells(settings: PriorSettings, accelerator: Accelerator) -> tuple[PriorSettings, list[AnyDataset]]:
    """The settings that follow from the number of training cells, and the datasets, open where that is needed.

    Says so where the steps are fewer than `max_steps`.
    """
    if not settings.follow_cells:
        return settings, list(settings.datasets)
    datasets = [Dataset.open(dataset) for dataset in settings.datasets]
    n_cells = sum(dataset.info.n_cells["train"] for dataset in datasets)
    suited = settings.suited_to(n_cells, accelerator.num_processes)
    if suited.max_steps < settings.max_steps and accelerator.is_main_process:
        copies = number_of(suited.thinned_copies, "thinned copy", "thinned copies")
        shown = f"{n_cells:,} training cells" + f" and {copies} of each" * (suited.thinned_copies > 0)
        LOG.info(
            f"{number_of(suited.max_steps, 'step')}, which are max_epochs={settings.max_epochs:g} passes over "
            f"{shown}; name max_steps to train longer"
        )
    return suited, list(datasets)


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
    batches = batch_names(sources) if fields.get("condition_on_batch") else None
    processor = make_processor(info, vocabulary.units, settings.combination_sign, batches)
    config = build_config(config_class, tokenizer.config, vocabulary, processor, info, fields)
    prior = model_class(config)
    prior.set_tokenizer(tokenizer)
    return train_from(
        Beginning(prior, tokenizer, processor, vocabulary, sources), settings, accelerator, run, check_stop
    )


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
        perturbation_feature_source=vocabulary.source,
        **treatment_fields(info, processor),
        n_batches=len(processor.batches or []),
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
        reason = first_line(error)
        raise EvaeError(
            f"the tokenizer '{path_or_id}' cannot be loaded ({reason}); finish, repeat or copy its run."
        ) from None
    if genes != list(info.genes):
        raise EvaeError(
            f"the tokenizer '{path_or_id}' reads another gene panel than the dataset ({len(genes)} and "
            f"{number_of(len(info.genes), 'gene')}); prepare the dataset with the tokenizer's panel, or train a "
            "tokenizer on it."
        )
    return tokenizer.eval().requires_grad_(False)
