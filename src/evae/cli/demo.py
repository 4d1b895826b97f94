"""`evae demo`: the whole way on a small scale, from counts to predicted cells and their numbers."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from evae.cli.demo_plan import MAX_GENES, choose_data, claim_folder, stage_settings
from evae.cli.evaluate import save_result
from evae.cli.files import write_h5ad
from evae.cli.prepare import CellTypeKey, PerturbationKey, SourceLayer
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.split_anndata import read_split
from evae.evaluation import evaluate, summary_table
from evae.inference.held_out import dataset_cells, predict_held_out
from evae.inference.pipeline import pipeline
from evae.models import EvaeError
from evae.training.prior import train_prior
from evae.training.resume.run_folder import FINISHED, RunFolder
from evae.training.settings import (
    PriorSettings,
    Settings,
    TokenizerSettings,
)
from evae.training.tokenizer import train_tokenizer

N_PHASES = 6
SIMULATED_PRESET, DATA_PRESET = "tiny", "small"
READING = (
    "How to read it: a perfect model comes near the real cells' own split half; a model that ignores the\n"
    "perturbation gives the control copy; what the tokenizer alone loses, no prior can bring back."
)


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your h5ad file of raw counts; simulated cells if left out.")
    ] = None,
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: CellTypeKey = "cell_type",
    control: Annotated[str, typer.Option(help="Label of unperturbed cells.")] = "control",
    split: Annotated[Path | None, typer.Option(help="JSON file of what to hold out.")] = None,
    hold_out_cell_type: Annotated[str | None, typer.Option(help="Instead: the held-out cell type.")] = None,
    hold_out_perturbations: Annotated[
        str | None, typer.Option(help="Instead: its held-out perturbations, separated by commas.")
    ] = None,
    genes: Annotated[
        str | None, typer.Option(help=f"all, hvg:N or a panel file; at most {MAX_GENES:,} if left out.")
    ] = None,
    layer: SourceLayer = None,
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("runs/demo"),
    preset: Annotated[
        str | None, typer.Option(help=f"Of both trainings; {SIMULATED_PRESET}, or {DATA_PRESET} with --data.")
    ] = None,
    tokenizer: Annotated[
        list[str] | None, typer.Option(help="Setting of the tokenizer's training, key=value; repeatable.")
    ] = None,
    prior: Annotated[
        list[str] | None, typer.Option(help="Setting of the prior's training, key=value; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew, deleting this demo.")] = False,
) -> None:
    """Go the whole way on a small scale: data, tokenizer, prior, held-out predictions, numbers, plots.

    A stopped demo goes on where it was when the same command is given again.

    Where nothing is said about what to hold out, a public file that is recognised gets its stored split; of
    any other file every third perturbation of the cell type with the most perturbed cells is held out.

    Example: evae demo --data screen.h5ad --perturbation-key gene --cell-type-key line --control non-targeting
    """
    given = {
        "data": None if data is None else str(data.resolve()),
        "perturbation_key": perturbation_key,
        "cell_type_key": cell_type_key,
        "control": control,
        "split": None if split is None else str(split),
        "hold_out_cell_type": hold_out_cell_type,
        "hold_out_perturbations": hold_out_perturbations,
        "genes": genes,
        "layer": layer,
        "preset": preset or (SIMULATED_PRESET if data is None else DATA_PRESET),
        "tokenizer": tokenizer,
        "prior": prior,
        "seed": seed,
    }
    settings = {
        stage: stage_settings(stage, out, given, overrides)
        for stage, overrides in (("tokenizer", tokenizer or []), ("prior", prior or []))
    }
    claim_folder(out, given, overwrite)
    run = Demo(out, given, settings)
    try:
        run.data()
    except EvaeError:
        if not run.dataset.exists():  # nothing was made yet that a further try could use
            shutil.rmtree(out)
        raise
    run.tokenizer()
    run.prior()
    run.predict()
    run.evaluate()


@dataclass
class Demo:
    """One demo in its folder; every method is a phase that is left out where its result is there already.

    Attributes:
        out: the folder.
        given: the options.
        settings: of the two trainings.
    """

    out: Path
    given: dict[str, Any]
    settings: dict[str, Settings]

    def __post_init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.dataset = self.out / "dataset"

    def data(self) -> None:
        """Phases 1 and 2: cells, and the dataset folder."""
        with self.phase(1, "Cells"):
            source = self._source()
        with self.phase(2, "Dataset folder: what is held out, gene panel, Parquet shards"):
            if not self.dataset.exists():
                self._prepare(source)
            info = DatasetInfo.load(self.dataset)
            self.say(info.summary())
            if "cell_type" in info.split:
                self.say(f"held out: {', '.join(info.split['cell_type'])} x {', '.join(info.split['pert'])}")

    def tokenizer(self) -> None:
        """Phase 3."""
        settings = cast(TokenizerSettings, self.settings["tokenizer"])
        with self.phase(3, f"Tokenizer: learns to write a cell as a few codes ({settings.max_steps:,} steps)"):
            folder = train_tokenizer(settings) if self.is_new(settings) else self.out / "tokenizer"
            last = _last_line(folder / "log.jsonl", "validation_codebook_use")
            if last is not None:
                self.say(f"{last['validation_codebook_use']:.0%} of the codes are in use")

    def prior(self) -> None:
        """Phase 4."""
        settings = cast(PriorSettings, self.settings["prior"])
        with self.phase(
            4,
            f"Prior: learns which codes follow a perturbation in a cell type ({settings.max_steps:,} steps)",
        ):
            if self.is_new(settings):
                train_prior(settings)

    def predict(self) -> None:
        """Phase 5."""
        with self.phase(5, "Prediction of the held-out cells; reconstruction by the tokenizer alone"):
            self.pipe = pipeline(self.out / "prior")
            seed = self.given["seed"]
            self.predicted = predict_held_out(self.pipe, self.dataset, seed=seed)
            write_h5ad(self.predicted, self.out / "predicted.h5ad")
            self.say(f"{self.predicted.n_obs:,} cells: {self.out / 'predicted.h5ad'}")
            self.cells = dataset_cells(self.dataset)
            self.reconstructed = self.pipe.reconstruct(read_split(self.dataset, "test"), seed=seed)

    def evaluate(self) -> None:
        """Phase 6."""
        with self.phase(6, "Evaluation beside baselines"):
            bars = self.console.is_terminal
            result = evaluate(self.predicted, **self.cells, progress=bars)
            ceiling = evaluate(self.reconstructed, **self.cells, with_baselines=False, progress=bars)
            self.console.print(summary_table(result, ceiling))
            save_result(result, self.out / "evaluation", overwrite=True)
            ceiling.to_json(self.out / "evaluation" / "tokenizer_alone.json")
            self.say(READING)
            self.say(f"all tables and plots: {self.out / 'evaluation' / 'report.html'}")
        self.say(
            f"\nTo use the model:\n  evae predict {self.out / 'prior'} --controls FILE.h5ad --perturbation "
            f"{self.predicted.obs['perturbation'].iloc[0]} --out predicted.h5ad"
        )

    @contextmanager
    def phase(self, number: int, title: str) -> Iterator[None]:
        """Announce a phase, and how long it took."""
        self.console.print(f"\n[bold]{number}/{N_PHASES}  {title}[/]")
        started = time.perf_counter()
        yield
        self.console.print(f"done in {_duration(time.perf_counter() - started)}", style="dim")

    def is_new(self, settings: Settings) -> bool:
        """Whether there is still something to train."""
        finished = RunFolder(settings).status == FINISHED
        if finished:
            self.say("trained before")
        return not finished

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _source(self) -> Path:
        if self.given["data"] is not None:
            self.say(f"your cells: {self.given['data']}")
            return Path(self.given["data"])
        path = self.out / "simulated.h5ad"
        if not path.exists():
            write_h5ad(simulate_perturb_seq(effect_size=1.5, seed=self.given["seed"]), path)
        self.say(f"simulated Perturb-seq with known effects: {path}")
        return path

    def _prepare(self, source: Path) -> None:
        given = self.given
        keys = {k: given[k] for k in ("perturbation_key", "cell_type_key", "control", "layer")}
        split, reason, genes = choose_data(source, given)
        self.say(f"to hold out: {reason}; genes: {genes}")
        prepare_dataset(source, self.dataset, split=split, genes=genes, seed=given["seed"], **keys)


def _last_line(log: Path, key: str) -> dict[str, Any] | None:
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    return next((line for line in reversed(lines) if key in line), None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
