"""Fine-tune a trained prior on a dataset: grow its vocabularies, train it on, measure how far what it knew moves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from evae.common.digests import weights_digest
from evae.common.files import write_json
from evae.common.logs import logger
from evae.common.messages import first_of
from evae.data.format import AnyDataset, Dataset
from evae.data.streaming.mixture import Sources
from evae.data.streaming.onto import Onto
from evae.finetuning.drift import measure_drift, said
from evae.finetuning.growth import grown_prior, grown_processor, vocabulary_of
from evae.finetuning.lora import add_adapter, check_peft, save_adapter
from evae.finetuning.settings import FinetuneSettings, finetune_settings
from evae.finetuning.tokenizer import finetune_tokenizer
from evae.inference.adapter import ADAPTER, FACTS
from evae.inference.checkpoint import Checkpoint, load_checkpoint
from evae.models.contract_evae import EvaeError
from evae.models.modeling_evae import EvaeModel
from evae.models.processing_evae import EvaeProcessor
from evae.training.conditions import check_learnable
from evae.training.from_codes import Beginning, keep_effects, train_from
from evae.training.loop.claim import claimed_folder
from evae.training.loop.setup import make_accelerator
from evae.training.loop.stopping import stopping_together
from evae.training.resume.run_folder import FINISHED
from evae.training.tokenizer import report_finished, save_with_processor

LOG = logger(__name__)

RANK = 16  # of an adapter, where none is named


def finetune(
    checkpoint: str | Path,
    dataset: AnyDataset,
    output_dir: str | Path,
    *,
    lora: bool | int = False,
    tokenizer: bool = False,
    replay: AnyDataset | None = None,
    replay_share: float = 0.5,
    revision: str | None = None,
    **settings: Any,
) -> Path:
    """Train a prior on with new cells, whose perturbations, cell types and batches may be new to it.

    Args:
        checkpoint: folder or Hub id of a trained prior.
        dataset: folder or Hub id of a dataset, prepared over the checkpoint's genes
            (`evae prepare --genes CHECKPOINT`); it may measure only some of them.
        output_dir: where the run goes; the finished folder is what `evae.pipeline` takes.
        lora: train an adapter of a few megabytes (True, or its rank) instead of all weights; needs the extra
            `finetune`.
        tokenizer: train the tokenizer too, first, in a folder beside `output_dir`; else it stays as it is.
        replay: a dataset that the checkpoint was trained on, shown beside the new one against forgetting.
        replay_share: of the cells of a batch that are replayed.
        revision: branch, tag or commit of a Hub id.
        **settings: see `evae.finetuning.settings`, such as `max_steps` and `learning_rate`; those left out go by the
            number of new cells.

    Returns:
        The run folder: the whole model, or the adapter; `finetune.json` tells how far old perturbations moved.

    Raises:
        EvaeError: a checkpoint that is no prior, a dataset over other genes or with another control, bad settings, and
            what training raises.
    """
    before = load_checkpoint(checkpoint, revision)
    _check(before, lora, tokenizer, replay_share)
    data = Dataset.open(dataset)
    sources = Sources(
        [data] if replay is None else [data, replay],
        [] if replay is None else [1 - replay_share, replay_share],
        Onto(before.processor, before.name),
    )
    known = before.processor.names().known
    units, sign = set(before.processor.known_units()), before.processor.combination_sign
    check_learnable(sources.info, units, sign, known.kinds())
    names = [str(dataset) for dataset in sources.datasets]
    own = {
        "checkpoint": str(checkpoint), "model_type": before.model.config.model_type, "output_dir": str(output_dir),
        "dataset": names[0] if replay is None else names, "lora_rank": RANK if lora is True else int(lora),
        "dataset_weights": [] if replay is None else sources.shares,
    }  # fmt: skip
    chosen = finetune_settings(data.info.n_cells["train"], settings, own)
    accelerator = make_accelerator(chosen)
    chosen = chosen.suited_to(data.info.n_cells["train"], accelerator.num_processes)
    if tokenizer:
        chosen.tokenizer = str(finetune_tokenizer(before, sources, chosen, accelerator))
    with claimed_folder(chosen, accelerator) as run:
        if run.status == FINISHED:
            return report_finished(run)
        with stopping_together(run, accelerator, chosen.compile) as check_stop:
            start = _begin(before, sources, chosen, accelerator)
            return train_from(start, chosen, accelerator, run, check_stop)


def _check(before: Checkpoint, lora: bool | int, tokenizer: bool, replay_share: float) -> None:
    if not before.is_prior:
        raise EvaeError(f"{before.name} is a tokenizer; give a prior, which holds its tokenizer.")
    if lora:
        check_peft()
        if tokenizer:
            raise EvaeError("an adapter leaves the tokenizer as it is; leave out tokenizer or lora.")
        if (Path(before.name) / ADAPTER).is_file():
            raise EvaeError(f"{before.name} is an adapter itself; fine-tune the checkpoint that it stands on.")
    if not 0 < replay_share < 1:
        raise EvaeError(f"replay_share is {replay_share}; give a number between 0 and 1.")


def _begin(before: Checkpoint, sources: Sources, settings: FinetuneSettings, accelerator: Accelerator) -> Beginning:
    """The grown prior, and what is done with it before and after its training."""
    processor = grown_processor(before.processor, sources.info)
    vocabulary = vocabulary_of(before.model, processor, before.name)
    prior = grown_prior(before.model, processor)
    if settings.tokenizer:
        prior.set_tokenizer(EvaeModel.from_pretrained(settings.tokenizer))
    _tell_growth(before.processor, processor, accelerator.is_main_process)
    work = _Work(before, processor, sources.datasets, settings)
    weights = weights_digest(before.model)
    return Beginning(prior, prior.tokenizer, processor, vocabulary, sources, weights, work.adapt, work.save)


@dataclass
class _Work:
    """What is done with a prior before its first step and after its last one."""

    before: Checkpoint
    processor: EvaeProcessor
    datasets: Sequence[Dataset]
    settings: FinetuneSettings
    adapters: list[Any] = field(default_factory=list)

    def adapt(self, prior: Any) -> None:
        """Put an adapter into the prior, where one is asked for."""
        if self.settings.lora_rank:
            self.adapters.append(
                add_adapter(prior, self.settings.lora_rank, _lasting(self.before), self.before.revision)
            )

    def save(self, prior: Any, folder: Path) -> None:
        """Write the whole prior or its adapter, and how far old perturbations moved."""
        name = self.before.name if self.before.revision else Path(self.before.name).name  # the folder's alone
        facts = {"checkpoint": name, "revision": self.before.revision} | self._drift(prior)
        if self.adapters:
            facts["base_digest"] = weights_digest(self.before.model)
        save_with_processor(prior, folder, self.processor, lambda place: self._write(prior, place))
        known = self.before.effects  # those of the dataset that is replayed among them
        keep_effects(self.datasets if known is None else self.datasets[:1], self.processor, folder, known)
        write_json(folder / FACTS, facts)

    def _write(self, prior: Any, folder: Path) -> None:
        if self.adapters:
            save_adapter(self.adapters[0], folder)
        else:
            prior.save_pretrained(folder)

    def _drift(self, prior: Any) -> dict[str, Any]:
        n_cells = self.settings.drift_cells
        if not n_cells:
            return {}
        after = Checkpoint(prior.eval(), self.processor, self.settings.output_dir, "")
        self.before.model.to(prior.device)
        table = measure_drift(self.before, after, self.datasets[-1], n_cells, self.settings.seed)
        LOG.info(said(table, n_cells))
        return {"drift": table.astype(object).where(table.notna(), None).to_dict("records"), "drift_cells": n_cells}


def _lasting(before: Checkpoint) -> str:
    """A name by which an adapter finds its checkpoint from any folder."""
    return str(Path(before.name).resolve()) if Path(before.name).is_dir() else before.name  # of the Hub, or the example


def _tell_growth(former: EvaeProcessor, grown: EvaeProcessor, main: bool) -> None:
    for what, old, new in (
        ("perturbations", former.perturbations, grown.perturbations),
        ("cell types", former.cell_types, grown.cell_types),
    ):
        more = new[len(old) :]
        names = f": {first_of(more, 5)}" if more else ""
        if main:
            LOG.info(f"{len(old):,} {what} known, {len(more):,} new{names}")
