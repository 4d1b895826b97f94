"""`evae evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evae.cli.files import check_folder, fresh_folder
from evae.cli.predict import Overwrite
from evae.cli.prepare import CellTypeKey, PerturbationKey
from evae.evaluation import SUITES, EvaluationResult, summary_table
from evae.evaluation import evaluate as run_evaluation
from evae.inference.held_out import dataset_cells
from evae.models.contract_evae import EvaeError

RESULT = "result.json"


def evaluate(
    predicted: Annotated[Path, typer.Argument(help="h5ad file of predicted cells.", metavar="PRED.h5ad")],
    real: Annotated[
        Path | None, typer.Argument(help="h5ad file of the real held-out cells.", metavar="REAL.h5ad")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of REAL.h5ad: a dataset folder, whose test cells are the truth.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="With REAL.h5ad: h5ad file of training cells.")] = None,
    controls: Annotated[Path | None, typer.Option(help="With REAL.h5ad: h5ad file of control cells.")] = None,
    control: Annotated[str | None, typer.Option(help="With REAL.h5ad: label of the controls.")] = None,
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: CellTypeKey = "cell_type",
    suite: Annotated[str, typer.Option(help=f"{', '.join(SUITES)}.")] = "robust",
    seeds: Annotated[int, typer.Option(help="How many seeds to average over.", min=1)] = 3,
    baseline: Annotated[
        str | None, typer.Option(help="One more baseline, trained here for some minutes: scvi (extra scvi).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report and plots; FILE_evaluation if left out.")] = None,
    plots: Annotated[bool, typer.Option(help="Write plots and a report.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Compare predicted with real cells, beside baselines and the real cells' own split half.

    Any model's predictions will do: raw counts or log1p values. Prints the main numbers and writes a
    report (HTML, Markdown, JSON) with plots.

    Example: evae evaluate predicted.h5ad --dataset data/screen

    Example: evae evaluate predicted.h5ad real.h5ad --train training.h5ad --control non-targeting
    """
    out = out or predicted.with_name(f"{predicted.stem}_evaluation")
    check_folder(out, RESULT, overwrite)
    if not predicted.is_file():
        raise EvaeError(f"no such file: {predicted}")
    data = _truth(dataset, {"real": real, "train": train, "controls": controls, "control": control})
    console = Console(highlight=False, soft_wrap=True)
    result = run_evaluation(
        predicted,
        **data,
        perturbation_key=perturbation_key,
        cell_type_key=cell_type_key,
        suite=suite,
        seeds=tuple(range(seeds)),
        extra_baselines=() if baseline is None else (baseline,),
        progress=console.is_terminal,
    )
    console.print(summary_table(result))
    for note in result.stamp["notes"]:
        console.print(f"· {note}", style="dim", markup=False)
    save_result(result, out, plots, overwrite)
    shown = out / "report.html" if plots else out / RESULT
    console.print(f"all numbers: {shown}", style="bold", markup=False)


def _truth(dataset: str | None, files: dict[str, Any]) -> dict[str, Any]:
    """What the predictions are compared with: the files, or the cells of a dataset folder."""
    if (dataset is None) == (files["real"] is None):
        raise EvaeError("give either REAL.h5ad or --dataset.")
    if dataset is None:
        if files["control"] is None:
            raise EvaeError("with REAL.h5ad, name the label of the controls with --control.")
        return files
    if files["train"] or files["controls"] or files["control"]:
        raise EvaeError("--train, --controls and --control go with REAL.h5ad; a dataset folder holds them.")
    return dataset_cells(dataset)


def save_result(result: EvaluationResult, out: Path, plots: bool = True, overwrite: bool = False) -> None:
    """Write the report with its plots, or the numbers alone, into a folder, all or nothing."""
    with fresh_folder(out, RESULT, overwrite) as folder:
        if plots:
            result.report(folder)
        else:
            result.to_json(folder / RESULT)
