"""`evae evaluate`: predicted beside real cells."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evae.cli.files import check_folder, fresh_folder, need_cells, need_file
from evae.cli.options import (
    Dask,
    OptionalCellTypeKey,
    Overwrite,
    PerturbationKey,
    check_known,
    check_model,
    in_options,
    names_of,
)
from evae.cli.terminal import console, quiet_transformers, say
from evae.common.cluster import on_dask
from evae.common.progress import watched
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    from evae.evaluation import EvaluationResult

SUITES = ("paper", "robust", "perturbation", "extended", "cell-eval", "vcc2026", "full")
BASELINES = ("latent-additive", "scvi", "scgen")
TOKENIZER_ALONE = "tokenizer_alone.json"
RESULT = "result.json"
SCALES = ("auto", "counts", "log1p")


def evaluate(
    context: typer.Context,
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
    cell_type_key: OptionalCellTypeKey = "cell_type",
    scale: Annotated[
        str,
        typer.Option(help=f"Of the predicted values: {', '.join(SCALES)}. counts takes fractions as expected counts."),
    ] = "auto",
    real_scale: Annotated[str, typer.Option(help="The same of the real values.")] = "auto",
    predicted_perturbation_key: Annotated[
        str | None, typer.Option(help="The same of PRED.h5ad; if left out, the same name, else perturbation.")
    ] = None,
    predicted_cell_type_key: Annotated[
        str | None, typer.Option(help="The same of PRED.h5ad; if left out, the same name, else cell_type.")
    ] = None,
    suite: Annotated[str, typer.Option(help=f"{', '.join(SUITES)}; several with commas.")] = "robust",
    seeds: Annotated[int, typer.Option(help="How many seeds to average over.", min=1)] = 3,
    depth_matched: Annotated[
        bool | None,
        typer.Option(help="Compare at one depth too, both sides thinned; if left out, where depths differ."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="One more baseline, trained here for minutes: latent-additive, scvi, scgen (extras "
            "of these names). May be repeated."
        ),
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.h5ad, another model's predictions: one more row. May be repeated."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="npz, csv, tsv or parquet with a vector for each perturbation: for those that training never saw, the "
            "baselines nearest, kernel ridge and bilinear."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="One more row, the real cells passed through this model's tokenizer. Folder or Hub id."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report and plots; FILE_evaluation if left out.")] = None,
    plots: Annotated[bool, typer.Option(help="Write plots and a report.")] = True,
    dask: Dask = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare predicted with real cells, beside baselines and the real cells' own split half.

    Any model's predictions will do: raw counts or log1p values. Prints the main numbers and writes a
    report (HTML, Markdown, JSON) with plots. With --tokenizer the row "tokenizer alone" says what the codes
    keep, which is about the best that a prior over them reaches.

    Example: evae evaluate predicted.h5ad --dataset data/screen --tokenizer runs/tokenizer

    Example: evae evaluate predicted.h5ad real.h5ad --train training.h5ad --control non-targeting

    Example: evae evaluate predicted.h5ad --dataset data/screen --other scGen=scgen.h5ad --other CPA=cpa.h5ad
    """
    out = out or predicted.with_name(f"{predicted.stem}_evaluation")
    check_folder(out, RESULT, overwrite)
    files = {"real": real, "train": train, "controls": controls, "control": control}
    _check(predicted, dataset, files)
    check_known(names_of(suite), SUITES, "suite")
    check_known([scale, real_scale], SCALES, "scale")
    check_known(baseline or [], BASELINES, "baseline")
    others = _others(other or [])
    if features is not None:
        need_file(features)
    if tokenizer is not None:
        check_model(tokenizer)
    from evae.evaluation import evaluate as run_evaluation
    from evae.evaluation import main_tables
    from evae.inference.held_out import dataset_cells

    how: dict[str, Any] = files if dataset is None else dataset_cells(dataset)
    how |= {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key or None, "suite": suite}
    how |= {
        "predicted_perturbation_key": predicted_perturbation_key,
        "predicted_cell_type_key": predicted_cell_type_key,
    }
    how |= {"scale": scale, "real_scale": real_scale}
    how |= {"seeds": tuple(range(seeds)), "progress": watched()}
    how |= {"depth_matched": depth_matched}
    context.with_resource(on_dask(dask))
    result = run_evaluation(predicted, **how, extra_baselines=baseline or (), features=features, others=others)
    alone = None if tokenizer is None else _tokenizer_alone(tokenizer, dataset, how)
    if alone is not None:
        result = result.with_tokenizer_alone(alone)
    console().print(main_tables(result))
    for note in result.stamp["notes"]:
        say(f"· {in_options(note, context.command)}", style="dim")
    with fresh_folder(out, RESULT, overwrite) as folder:
        if plots:
            result.report(folder)
        else:
            result.write_numbers(folder)
        if alone is not None:
            alone.to_json(folder / TOKENIZER_ALONE)
    say(f"all numbers: {out / 'report.html' if plots else out / RESULT}", style="bold")


def _check(predicted: Path, dataset: str | None, files: dict[str, Any]) -> None:
    """The files are there, and say what the predictions are compared with."""
    need_cells(predicted)
    if (dataset is None) == (files["real"] is None):
        raise EvaeError("give either REAL.h5ad or --dataset.")
    if dataset is None and files["control"] is None:
        raise EvaeError("with REAL.h5ad, name the label of the controls with --control.")
    if dataset is not None and (files["train"] or files["controls"] or files["control"]):
        raise EvaeError("--train, --controls and --control go with REAL.h5ad; a dataset folder holds them.")
    for name in ("real", "train", "controls"):
        if files[name] is not None:
            need_cells(files[name])


def _others(given: list[str]) -> dict[str, Path]:
    """Name -> file of every NAME=FILE.h5ad."""
    files: dict[str, Path] = {}
    for text in given:
        name, _, file = text.partition("=")
        if not name or not file:
            raise EvaeError(f"--other {text} names no model and file; write for example scGen=scgen.h5ad.")
        if name in files:
            raise EvaeError(f"--other names {name} twice; give every model a name of its own.")
        need_cells(Path(file))
        files[name] = Path(file)
    return files


def _tokenizer_alone(model: str, dataset: str | None, how: dict[str, Any]) -> "EvaluationResult":
    """The real held-out cells, encoded and drawn back, evaluated as the predictions are."""
    from evae.data.reading.anndata_file import read_h5ad
    from evae.data.streaming.split_anndata import read_split
    from evae.evaluation import evaluate as run_evaluation
    from evae.inference.pipeline import pipeline

    quiet_transformers()
    # whole counts are drawn, with the real cells' labels
    how = how | {"scale": "auto", "predicted_perturbation_key": None, "predicted_cell_type_key": None}
    if dataset is not None:  # its labels have these names, whatever the predictions call theirs
        how = how | {"perturbation_key": "perturbation", "cell_type_key": how["cell_type_key"] and "cell_type"}
    needed = (how["perturbation_key"], how["cell_type_key"])
    cells = read_h5ad(how["real"], needed=needed) if dataset is None else read_split(dataset, "test")
    keys = {name: how[name] for name in ("perturbation_key", "cell_type_key") if how[name]}
    drawn = pipeline(model).reconstruct(cells, progress=how["progress"], **keys)
    return run_evaluation(drawn, **how, with_baselines=False)
