"""Run a study: train what is missing, evaluate all alike, write the tables. Interrupted, the same call goes on.

Under torchrun or `accelerate launch` all ranks train together, and share out the evaluations.
"""

import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import anndata as ad
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from evae.data.format import Dataset
from evae.data.streaming.split_anndata import read_split
from evae.evaluation import SUITES, evaluate
from evae.inference.held_out import dataset_cells, held_out_cells, predict_held_out
from evae.inference.pipeline import pipeline
from evae.models.contract_evae import EvaeError, look_up
from evae.study.plan import Study, Training, plan
from evae.study.results import Evaluated, keep_result, read_results, result_name, result_path
from evae.study.write import write_study
from evae.training.loop.setup import make_accelerator
from evae.training.prior import train_prior
from evae.training.resume.former_run import is_finished
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer


def run_study(study: Study) -> Path:
    """Train, evaluate and write a study; what is there already is not done again.

    Args:
        study: from `read_study`.

    Returns:
        The study's folder: study.md, study.csv, plots/, results/, tokenizers/, priors/.

    Raises:
        EvaeError: settings that do not exist or do not fit, a dataset that holds nothing out, a training that
            failed.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C, and a checkpoint.
    """
    dataset = Dataset.open(study.dataset)
    if not held_out_cells(dataset.info):
        raise EvaeError(f"{study.dataset} holds out no perturbed cells; prepare it with --split.")
    look_up([study.suite], list(SUITES), "suite")
    trainings, left_out = plan(study, dataset)
    return _Run(study, dataset, trainings, left_out).to_end()


@dataclass
class _Run:
    """One call of `run_study`."""

    study: Study
    dataset: Dataset
    trainings: list[Training]
    left_out: list[str]
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        make_accelerator(self.trainings[0].settings)  # joins the ranks
        self.ranks = PartialState()
        self.out = Path(self.study.output_dir)
        self.console = Console(highlight=False, soft_wrap=True, quiet=not self.ranks.is_main_process)
        self.how = {"suite": self.study.suite, "seeds": self.study.evaluation_seeds}
        self.baselines = result_name(Path("baselines"), self.how | {"data": self.trainings[0].data})

    def to_end(self) -> Path:
        self.console.print(f"{len(self.trainings)} trainings on {self.ranks.num_processes} ranks", markup=False)
        for sentence in self.left_out:
            self.console.print(sentence, style="dim", markup=False)
        for seed in self.study.seeds:  # all of the first seed first: a table early
            mine = [t for t in self.trainings if t.labels["seed"] == seed]
            self._evaluate([e for t in mine if self._train(t) for e in self._asked_of(t)])
            self.ranks.wait_for_everyone()
            if self.ranks.is_main_process:
                wanted = [e for t in self.trainings for e in self._asked_of(t)]
                write_study(self.study, read_results(self.out, wanted, self.baselines), self.out)
            self.ranks.wait_for_everyone()
        return self.out

    def _train(self, training: Training) -> bool:
        """Train unless it is done; whether it is done now."""
        settings = training.settings
        if is_finished(training.folder):
            return True
        no_tokenizer = training.tokenizer is not None and not is_finished(training.tokenizer.folder)
        if no_tokenizer or self._out_of_time():
            return False
        self.console.print(f"training {training.folder.name}", style="bold", markup=False)
        if isinstance(settings, TokenizerSettings):
            train_tokenizer(settings)
        else:
            train_prior(cast(PriorSettings, settings))
        if self.ranks.is_main_process:  # a finished run needs no checkpoints
            shutil.rmtree(training.folder / "checkpoints", ignore_errors=True)
        self.ranks.wait_for_everyone()
        return True

    def _late(self) -> bool:
        return bool(self.study.max_minutes) and time.monotonic() - self.started > 60 * self.study.max_minutes

    def _out_of_time(self) -> bool:
        """The same answer on all ranks."""
        return bool(broadcast_object_list([self._late()])[0])

    def _asked_of(self, training: Training) -> list[Evaluated]:
        """What is to be evaluated of a training: a tokenizer alone, or a prior in every way of sampling."""
        labels = {"prior": None, "sampling": None, **training.labels}
        ways: dict[str, dict[str, Any] | None] = {**self.study.sampling} if training.stage == "prior" else {"": None}
        return [
            Evaluated(
                labels | {"sampling": way}, result_name(training.folder, self.how | {"options": options}),
                training.folder, options,
            )
            for way, options in ways.items()
        ]  # fmt: skip

    def _evaluate(self, wanted: list[Evaluated]) -> None:
        """Evaluate what is missing; every rank takes its share."""
        missing = [e for e in wanted if not result_path(self.out, e.name).is_file()]
        for evaluated in missing[self.ranks.process_index :: self.ranks.num_processes]:
            if self._late():
                return
            self.console.print(f"evaluating {evaluated.name}", style="bold", markup=False)
            first = self.ranks.is_main_process and not result_path(self.out, self.baselines).is_file()
            found = evaluate(
                self._draw(evaluated), **self._cells, suite=self.study.suite, with_baselines=first,
                seeds=tuple(range(self.study.evaluation_seeds)), progress=False,
            )  # fmt: skip
            if first:
                keep_result(self.out, self.baselines, found, own=False)
            keep_result(self.out, evaluated.name, found, own=True)

    def _draw(self, evaluated: Evaluated) -> ad.AnnData:
        """One cell for every held-out cell; of a tokenizer alone the held-out cells themselves, passed through it."""
        pipe, seed = pipeline(evaluated.folder), int(evaluated.labels["seed"])
        if evaluated.options is None:
            return pipe.reconstruct(read_split(self.dataset, "test"), seed=seed, progress=False)
        return predict_held_out(pipe, self.dataset, seed=seed, progress=False, **evaluated.options)

    @cached_property
    def _cells(self) -> dict[str, Any]:
        return dataset_cells(self.dataset)
