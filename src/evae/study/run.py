"""Run a study: train what is missing, evaluate all alike, write the tables. Interrupted, the same call goes on.

Several processes may run the same study at once: each takes what no other is training, and the last writes the tables.
Under torchrun or `accelerate launch` all ranks train together, and share out the evaluations.
"""

import logging
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import anndata as ad
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from evae.common.digests import file_digest
from evae.common.logs import logger
from evae.common.messages import number_of
from evae.data.format import Dataset
from evae.data.streaming.leakage import leakage
from evae.data.streaming.split_anndata import read_split
from evae.effects import estimate_effects
from evae.evaluation import SUITES, check_extra_baselines, evaluate
from evae.inference.held_out import dataset_cells, held_out_cells, predict_held_out
from evae.inference.pipeline import pipeline
from evae.models.contract_evae import EvaeError, look_up
from evae.study.plan import EFFECTS_BY, Study, Training, plan
from evae.study.questions import with_questions
from evae.study.results import Evaluated, Results, keep_result, read_results, result_name, result_path
from evae.study.splits import split_datasets
from evae.study.write import write_study
from evae.training.loop.setup import make_accelerator
from evae.training.prior import train_prior
from evae.training.resume.folder_lock import FolderTaken
from evae.training.resume.former_run import is_finished
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

LOG = logger(__name__)


def run_study(study: Study) -> Path:
    """Train, evaluate and write a study; what is there already is not done again.

    Args:
        study: from `read_study`.

    Returns:
        The study's folder: study.md, study.csv, plots/, results/, tokenizers/, priors/, and datasets/ where it
        prepares the splits itself.

    Raises:
        EvaeError: settings that do not exist or do not fit, a dataset that holds nothing out, a training that
            failed.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C, and a checkpoint.
    """
    look_up([name.strip() for name in study.suite.split(",")], list(SUITES), "suite")
    check_extra_baselines(study.extra_baselines, study.features or None, study.suite)
    ranks = PartialState(cpu=int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available())
    datasets = {"": study.dataset}
    if study.splits:
        with ranks.main_process_first():  # the others then find what it prepared
            datasets = split_datasets(study.splits, study.prepare, Path(study.output_dir), LOG.info)
    return _Run(study, [_Part.of(study, name, dataset) for name, dataset in datasets.items()]).to_end()


@dataclass
class _Part:
    """One split of a study: its dataset and all that is trained over it.

    Attributes:
        name: of the split; "" where the study has a single dataset.
        dataset, trainings, left_out: see `plan`.
        how: the settings of its evaluations.
        baselines: name of the result of its baselines.
        leaks: sentences on what stands both in training and among the held-out cells.
    """

    name: str
    dataset: Dataset
    trainings: list[Training]
    left_out: list[str]
    how: dict[str, Any]
    baselines: str
    leaks: list[str]

    @classmethod
    def of(cls, study: Study, name: str, place: str) -> "_Part":
        dataset = Dataset.open(place)
        if not held_out_cells(dataset.info):
            raise EvaeError(f"{place} holds out no perturbed cells; prepare it with --split.")
        trainings, left_out = plan(replace(study, dataset=place, splits={}), dataset, name)
        how: dict[str, Any] = {"suite": study.suite, "seeds": study.evaluation_seeds}
        more: dict[str, Any] = {"extra": sorted(study.extra_baselines)} if study.extra_baselines else {}
        more |= {"features": file_digest(Path(study.features))} if study.features else {}
        baselines = result_name(Path("baselines"), how | more | {"data": trainings[0].data})
        return cls(name, dataset, trainings, left_out, how, baselines, leakage(dataset))

    def asked_of(self, training: Training, ways: dict[str, dict[str, Any]]) -> list[Evaluated]:
        """What is to be evaluated of a training: a tokenizer alone, or a prior in every way of sampling."""
        labels = {"prior": None, "sampling": None, **training.labels}
        drawn: dict[str, dict[str, Any] | None] = {**ways} if training.stage == "prior" else {"": None}
        return [
            Evaluated(
                labels | {"sampling": way}, result_name(training.folder, self.how | {"options": options}),
                training.folder, options,
            )
            for way, options in drawn.items()
        ]  # fmt: skip

    @cached_property
    def cells(self) -> dict[str, Any]:
        return dataset_cells(self.dataset)

    def draw(self, evaluated: Evaluated, features: str) -> ad.AnnData:
        """One cell for every held-out cell; of a tokenizer alone the held-out cells themselves, passed through it."""
        pipe, seed = pipeline(evaluated.folder), int(evaluated.labels["seed"])
        if evaluated.options is None:
            return pipe.reconstruct(read_split(self.dataset, "test"), seed=seed, progress=False)
        options = dict(evaluated.options)
        method = options.pop(EFFECTS_BY, None)
        if method is not None:
            names = dict.fromkeys(p for _, p in held_out_cells(self.dataset.info))
            found = estimate_effects(self.dataset, names, features=features or None, method=method)
            options["effects"] = found.log2_fold_changes
        return predict_held_out(pipe, self.dataset, seed=seed, progress=False, **options)


@dataclass
class _Run:
    """One call of `run_study`."""

    study: Study
    parts: list[_Part]
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        make_accelerator(self.parts[0].trainings[0].settings)  # joins the ranks
        self.ranks = PartialState()
        self.out = Path(self.study.output_dir)

    def to_end(self) -> Path:
        n_trainings = sum(len(part.trainings) for part in self.parts)
        self._say(f"{number_of(n_trainings, 'training')} on {number_of(self.ranks.num_processes, 'rank')}")
        for part in self.parts:
            for sentence in [*part.left_out, *part.leaks]:
                self._say(f"{part.name}: {sentence}" if part.name else sentence, logging.WARNING)
        for seed in self.study.seeds:  # all of the first seed first: a table early
            for part in self.parts:
                mine = [t for t in part.trainings if t.labels["seed"] == seed]
                trained = [t for t in mine if self._train(t)]
                self._evaluate(part, [e for t in trained for e in part.asked_of(t, self.study.sampling)])
                self.ranks.wait_for_everyone()
                if self.ranks.is_main_process:
                    self._write()
                self.ranks.wait_for_everyone()
        return self.out

    def _say(self, text: str, level: int = logging.INFO) -> None:
        if self.ranks.is_main_process:
            LOG.log(level, text)

    def _write(self) -> None:
        numbers, pairs = [], []
        for part in self.parts:
            wanted = [e for t in part.trainings for e in part.asked_of(t, self.study.sampling)]
            found = read_results(self.out, wanted, part.baselines)
            numbers.append(found.numbers.assign(split=part.name))
            pairs.append(with_questions(found.pairs.assign(split=part.name), part.dataset.info))
        leaks = {part.name: part.leaks for part in self.parts}
        results = Results(*(pd.concat(frames, ignore_index=True) for frames in (numbers, pairs)))
        write_study(self.study, results, leaks, self.out)

    def _train(self, training: Training) -> bool:
        """Train unless it is done; whether it is done now."""
        settings = training.settings
        if is_finished(training.folder):
            return True
        no_tokenizer = training.tokenizer is not None and not is_finished(training.tokenizer.folder)
        if no_tokenizer or self._out_of_time():
            return False
        self._say(f"training {training.folder.name}")
        try:
            if isinstance(settings, TokenizerSettings):
                train_tokenizer(settings)
            else:
                train_prior(cast(PriorSettings, settings))
        except FolderTaken:
            if self.ranks.num_processes > 1:
                raise
            self._say("another process trains it; going on with the next")
            return False
        if self.ranks.is_main_process:  # a finished run needs no checkpoints
            shutil.rmtree(training.folder / "checkpoints", ignore_errors=True)
        self.ranks.wait_for_everyone()
        return True

    def _late(self) -> bool:
        return bool(self.study.max_minutes) and time.monotonic() - self.started > 60 * self.study.max_minutes

    def _out_of_time(self) -> bool:
        """The same answer on all ranks."""
        return bool(broadcast_object_list([self._late()])[0])

    def _evaluate(self, part: _Part, wanted: list[Evaluated]) -> None:
        """Evaluate what is missing; every rank takes its share."""
        missing = [e for e in wanted if not result_path(self.out, e.name).is_file()]
        if not result_path(self.out, part.baselines).is_file():
            missing = missing or wanted[:1]  # other baselines are asked for than before
        for evaluated in missing[self.ranks.process_index :: self.ranks.num_processes]:
            if self._late():
                return
            self._say(f"evaluating {evaluated.name}")
            first = self.ranks.is_main_process and not result_path(self.out, part.baselines).is_file()
            found = evaluate(
                part.draw(evaluated, self.study.features), **part.cells, suite=self.study.suite, with_baselines=first,
                seeds=tuple(range(self.study.evaluation_seeds)), progress=False,
                extra_baselines=self.study.extra_baselines if first else (),
                features=(self.study.features or None) if first else None,
            )  # fmt: skip
            if first:
                keep_result(self.out, part.baselines, found, own=False)
            keep_result(self.out, evaluated.name, found, own=True)
