"""Stage 1: train the tokenizer `EvaeModel` on the cells of a dataset folder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from evae.common.files import explain_disk_errors
from evae.common.logs import logger
from evae.data.format import DatasetInfo
from evae.data.streaming.mixture import Sources
from evae.data.streaming.stream import StreamedSources
from evae.models.configuration_evae import EvaeConfig
from evae.models.modeling_evae import EvaeModel
from evae.models.processing_evae import EvaeProcessor
from evae.training.batch_cells import named_cells
from evae.training.feature_tables import FeatureTable
from evae.training.labels import FROM_DATASET as LABELS_GIVEN
from evae.training.labels import label_fields, set_targets, table_of
from evae.training.loop.claim import claimed_folder
from evae.training.loop.setup import make_accelerator, say_where
from evae.training.loop.stage import Stage
from evae.training.loop.steps import train
from evae.training.loop.stopping import StopCheck, stopping_together
from evae.training.loop.validation import Batch, Tally, codebook_statistics, mean_loss, take_cells, tally_loss
from evae.training.resume.checkpoint import THEN_RESUME
from evae.training.resume.run_folder import FINISHED, RunFolder
from evae.training.settings import Settings, TokenizerSettings, check_model_settings

LOG = logger(__name__)

if TYPE_CHECKING:
    from datasets import IterableDataset

INPUTS = ("counts", "gene_ids", "library_size")
FROM_DATASET = ("n_genes", "median_library_size", *LABELS_GIVEN)


def train_tokenizer(settings: TokenizerSettings, cells: "IterableDataset | None" = None) -> Path:
    """Train a tokenizer and save it with its processor.

    Args:
        settings: see `evae.training.settings`; `dataset` and `output_dir` must be set.
        cells: an `IterableDataset` of HF `datasets` to train on instead of the training cells of `dataset`; gene panel,
            vocabularies, library sizes and validation cells stay the dataset's. See `evae.data.CellStream`.

    Returns:
        The run folder; `EvaeModel.from_pretrained` and `EvaeProcessor.from_pretrained` read it.

    Raises:
        EvaeError: bad settings, an output folder that holds a run or that another training uses, a loss that is not
            finite, a full disk.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C, with a checkpoint or before the first step.
    """
    fields = check_model_settings(settings.model, EvaeConfig, FROM_DATASET)
    table = table_of(settings, fields)
    accelerator = make_accelerator(settings)
    with claimed_folder(settings, accelerator) as run:
        if run.status == FINISHED:
            return report_finished(run)
        with stopping_together(run, accelerator, settings.compile) as check_stop:
            datasets, weights = settings.datasets, settings.dataset_weights
            sources = Sources(datasets, weights) if cells is None else StreamedSources(datasets, cells)
            return _train_on(settings, sources, fields, table, accelerator, run, check_stop)


def _train_on(
    settings: TokenizerSettings, sources: Sources, fields: dict[str, Any], table: FeatureTable,
    accelerator: Accelerator, run: RunFolder, check_stop: StopCheck,
) -> Path:  # fmt: skip
    """Build the tokenizer, set its bottleneck's scale and train."""
    info = sources.info
    set_seed(settings.seed)
    model, processor = EvaeModel(build_config(info, fields, table)), make_processor(info)
    set_targets(model, processor, table)
    if run.latest_checkpoint() is None or settings.overwrite:
        calibrate(model.to(accelerator.device), sources, settings)
    return train_from(model, processor, sources, settings, accelerator, run, check_stop)


def train_from(
    model: EvaeModel, processor: EvaeProcessor, sources: Sources, settings: TokenizerSettings, accelerator: Accelerator,
    run: RunFolder, check_stop: StopCheck, weights: str = "",
) -> Path:  # fmt: skip
    """Train a tokenizer, new or trained before; `weights` is the digest of the latter's."""
    info = sources.info
    loader = sources.training_batches(
        settings.batch_size, settings.seed, accelerator.process_index, accelerator.num_processes
    )
    stage = Stage(
        title="tokenizer",
        inputs=INPUTS + model.config.training_labels,
        validation=validation_cells(sources, settings),
        save=lambda trained, folder: save_with_processor(trained, folder, processor),
        tally=tally_codes(model.config.codebook_size if model.config.quantizer != "gaussian" else None),
        summarise=summarise_codes,
        fingerprint=fingerprint(info, *[weights] * bool(weights), *sources.order()),
        named_cells=partial(named_cells, sources),
    )
    say_where(accelerator)
    check_stop()
    return train(model, loader, settings, accelerator=accelerator, run=run, stage=stage)


def build_config(info: DatasetInfo, fields: dict[str, Any], table: FeatureTable | None = None) -> EvaeConfig:
    """The configuration of a tokenizer of a dataset.

    Args:
        info: the dataset.
        fields: those that the settings name.
        table: of feature vectors of perturbations, for the auxiliary head that learns them.
    """
    median = float(info.statistics["median_library_size"])
    labels = label_fields(info, fields, FeatureTable.without_any() if table is None else table)
    return EvaeConfig(n_genes=len(info.genes), median_library_size=median, **fields | labels)


def report_finished(run: RunFolder) -> Path:
    """Tell that there is nothing left to do."""
    anew = "a larger max_steps with resume=true trains it on, overwrite=true anew"
    LOG.info(f"the run in {run.path} is finished; {anew}")
    return run.path


def calibrate(model: EvaeModel, sources: Sources, settings: TokenizerSettings) -> None:
    """Set the bottleneck's scale from training cells; the same cells on every rank."""
    cells = sources.sample(settings.calibration_cells, settings.seed)
    device = next(model.parameters()).device
    model.train(False)
    model.calibrate(**{key: cells[key].to(device) for key in INPUTS})
    model.train()


def validation_cells(sources: Sources, settings: Settings) -> list[Batch]:
    """At most `eval_cells` validation cells, of each dataset its share, the same on every rank."""
    taken = []
    for number, quota in enumerate(sources.quotas(settings.eval_cells, "eval_cells")):
        taken += take_cells(sources.cells(number, "validation", settings.batch_size), quota)
    return taken


def tally_codes(codebook_size: int | None) -> Tally:
    """Sums of loss, reconstruction loss and, with a codebook, how often each code was drawn."""

    def tally(output: Any, batch: Batch) -> dict[str, Tensor]:
        sums = tally_loss(output, batch)
        sums["reconstruction_loss"] = output.reconstruction_loss.detach().double().cpu() * sums["cells"]
        if codebook_size is not None:
            codes = output.codes.flatten().clamp_min(0)  # NaN weights give codes below 0; the next step stops at them
            sums["code_counts"] = torch.bincount(codes, minlength=codebook_size).double()
        return sums

    return tally


def summarise_codes(sums: dict[str, Tensor]) -> dict[str, float]:
    """Mean losses, codebook use and perplexity."""
    metrics = mean_loss(sums)
    metrics["reconstruction_loss"] = float(sums["reconstruction_loss"] / sums["cells"])
    if "code_counts" in sums:
        metrics |= codebook_statistics(sums["code_counts"])
    return metrics


def save_with_processor(
    model: Any, folder: Path, processor: EvaeProcessor, write: Callable[[Path], None] | None = None
) -> None:
    """Write a self-contained model folder inside the run's: weights, configuration, code, processor.

    `write` writes the model otherwise, as an adapter.
    """
    with explain_disk_errors(f"the finished model to {folder.parent}", THEN_RESUME, folder):
        (write or model.save_pretrained)(folder)
        processor.save_pretrained(folder)


def make_processor(
    info: DatasetInfo, units: Sequence[str] | None = None, sign: str = "+", batches: Sequence[str] | None = None
) -> EvaeProcessor:
    """The processor of a model trained on a dataset; for `units`, `sign` and `batches` see `EvaeProcessor`."""
    return EvaeProcessor(
        genes=list(info.genes),
        ensembl_ids=list(info.ensembl_ids),
        perturbations=list(info.perturbations),
        cell_types=list(info.cell_types),
        perturbation_units=units,
        combination_sign=sign,
        treatments=None if units is None else [treatment.to_dict() for treatment in info.treatments.values()],
        batches=batches,
        control=info.control,
        library_size_quantiles=info.statistics["library_size_quantiles"],
        training_pairs={kind: list(row) for kind, row in info.statistics["cell_counts"]["train"].items()},
    )


def fingerprint(info: DatasetInfo, *more: Any) -> str:
    """What must stay the same for a run to be resumed: panel, vocabularies, numbers of cells, and `more`."""
    content = [info.genes, info.perturbations, info.cell_types, info.control, info.n_cells, more]
    text = json.dumps(content, default=list, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
