"""`evae predict`: perturbed cells as an h5ad file of raw counts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evae.cli.files import check_free, need_cells, write_h5ad
from evae.cli.options import (
    Dask,
    Device,
    Layer,
    Model,
    OptionalCellTypeKey,
    Overwrite,
    PerturbationKey,
    check_model,
    example_controls_of,
    numbers,
)
from evae.cli.terminal import quiet_transformers, say
from evae.common.cluster import on_dask
from evae.common.messages import number_of
from evae.common.progress import watched
from evae.models.contract_evae import EvaeError, split_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anndata as ad
    import pandas as pd

    from evae.inference.pipeline import Pipeline


def predict(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="h5ad file to write.")],
    controls: Annotated[
        Path | None,
        typer.Option(
            help="h5ad file of raw counts. The prediction starts from its control cells; other cells are left out."
        ),
    ] = None,
    perturbation: Annotated[
        list[str] | None, typer.Option(help="Perturbation; repeat it, or separate several by commas.")
    ] = None,
    cell_type: Annotated[
        list[str] | None, typer.Option(help="Cell type, likewise; those of the controls if left out.")
    ] = None,
    dose: Annotated[
        str | None, typer.Option(help="Dose, or several as 0.5,1,10: each with every perturbation. Unseen ones too.")
    ] = None,
    dose_unit: Annotated[str | None, typer.Option(help="Its unit, as nM; the model's if left out.")] = None,
    time: Annotated[str | None, typer.Option(help="Hours after treatment, or several, likewise.")] = None,
    n_cells: Annotated[
        int | None, typer.Option(help="Cells for each pair; as many as controls if left out.", min=1)
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="In place of these: csv, tsv or parquet with columns perturbation, cell_type, n_cells, dose ..."
        ),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Instead: predict all that this dataset folder holds out.")
    ] = None,
    counterfactual: Annotated[
        bool, typer.Option("--counterfactual", help="Each control once, after the perturbation, in the same order.")
    ] = False,
    effects: Annotated[
        Path | None,
        typer.Option(help="Table of log2 fold changes that you know, genes by perturbations: csv, tsv, parquet."),
    ] = None,
    match_effects: Annotated[
        bool, typer.Option("--match-effects", help="Change the drawn cells until their mean follows --effects exactly.")
    ] = False,
    effect_transfer: Annotated[
        float | None,
        typer.Option(
            help="How far to move means towards what training cells tell, 0 to 1; found for each pair if left out."
        ),
    ] = None,
    library_size: Annotated[
        str | None,
        typer.Option(help="Molecules of the predicted cells: predicted, controls, training; the best if left out."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to draw: the controls, what they become, and arrows between them.")
    ] = None,
    dose_plot: Annotated[
        Path | None, typer.Option(help="PNG to draw: how the predicted cells change with the dose.")
    ] = None,
    gene: Annotated[
        str | None, typer.Option(help="Of --dose-plot: the gene to draw; if left out the change as a whole.")
    ] = None,
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: OptionalCellTypeKey = "cell_type",
    batch_key: Annotated[
        str | None, typer.Option(help="obs column of the batch of the controls, for a prior that reads it.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="Label of the controls; the model's if left out.")] = None,
    layer: Layer = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cells.", min=0)] = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How much to stress the perturbation; 1 is the model as trained.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1, cells differ less from each other; what training chose if left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of a diffusion or flow prior.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at once.")] = 256,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the prior: for many cells on a GPU.")] = False,
    device: Device = None,
    dask: Dask = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict perturbed cells as an h5ad file of raw counts.

    Either for perturbations of your choice in your own cells, or, with --held-out, for all that a dataset
    folder holds out, ready for `evae evaluate`. A file without a column of perturbations is taken to hold
    controls only. The model `example` comes with the package, and with control cells of its own.

    Example: evae predict example --perturbation STAT1 --out stat1.h5ad

    Example: evae predict runs/prior --controls cells.h5ad --perturbation STAT1,JAK2 --out predicted.h5ad

    Example: evae predict runs/drugs --controls cells.h5ad --perturbation DrugA --dose 0.5,1,10 --out doses.h5ad
    """
    check_free(out, overwrite)
    if sum(given is not None for given in (held_out, perturbation, requests)) != 1:
        raise EvaeError("give one of --perturbation, --requests and --held-out.")
    amounts = {"dose": numbers(dose, "--dose"), "dose_unit": dose_unit, "time": numbers(time, "--time")}
    if perturbation is None and any(amounts.values()):
        raise EvaeError("--dose, --dose-unit and --time go with --perturbation; in --requests they are columns.")
    if requests is not None and (counterfactual or cell_type or n_cells is not None):
        raise EvaeError("--requests names cell types and numbers; leave --cell-type, --n-cells, --counterfactual out.")
    if held_out is None:
        controls = example_controls_of(model, controls)
    if plot is not None:
        _check_plot(plot, controls, held_out, overwrite)
    _check_dose_plot(dose_plot, gene, None if held_out else controls, overwrite)
    check_model(model)
    if controls is not None:
        need_cells(controls)
    from evae.inference.effects import log_fold_changes
    from evae.inference.held_out import predict_held_out
    from evae.inference.pipeline import pipeline
    from evae.inference.sampling import source_cells

    quiet_transformers()
    pipe = pipeline(model, device)
    context.with_resource(on_dask(dask))
    if plot is not None and not source_cells(pipe.checkpoint):
        raise EvaeError(f"{model} reads no source cells, from which --plot leads; train it with model.source_cells=1.")
    options: dict[str, Any] = {"guidance_scale": guidance_scale, "temperature": temperature}
    options |= {"num_steps": steps, "compile": compile or None}
    options |= {"library_size": library_size}
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "progress": watched()}
    how |= {name: value for name, value in options.items() if value is not None}
    how |= {"effects": effects, "match_effects": match_effects, "effect_transfer": effect_transfer}
    if held_out is not None:
        predicted = predict_held_out(pipe, held_out, n_cells, **how)
    else:
        folds = {} if effects is None else log_fold_changes(effects, pipe.processor)
        names = [*folds, *pipe.processor.perturbations, *pipe.processor.known_units()]
        wanted = _names(perturbation or [], names)
        kinds = _names(cell_type, pipe.processor.cell_types) if cell_type else None
        keys = (perturbation_key, cell_type_key)
        cells = None if controls is None else _controls(controls, pipe, layer, keys, control)
        how |= {"cell_type_key": cell_type_key or None, "perturbation_key": perturbation_key, "control": control}
        how |= {"batch_key": batch_key, **amounts}
        if requests is not None:
            predicted = pipe.predict(cells, requests=requests, **how)
        elif counterfactual:
            predicted = _counterfactual(pipe, cells, wanted, kinds, n_cells, how)
        else:
            predicted = pipe.predict(cells, wanted, kinds, n_cells, **how)
    write_h5ad(predicted, out)
    _say_predicted(predicted, out)
    if plot is not None:
        from evae.evaluation import plot_counterfactual

        say(f"picture: {plot_counterfactual(cells, predicted, plot, seed=seed)}")
    if dose_plot is not None:
        from evae.plot import save_dose_response

        say(f"dose-response: {save_dose_response(dose_plot, predicted, cells, gene=gene)}")


def _check_dose_plot(plot: Path | None, gene: str | None, controls: Path | None, overwrite: bool) -> None:
    if plot is None:
        if gene is not None:
            raise EvaeError("--gene is that of --dose-plot; name its file.")
        return
    if controls is None:
        raise EvaeError("--dose-plot draws changes over your control cells; give --controls.")
    if plot.suffix != ".png":
        raise EvaeError(f"--dose-plot is {plot}; name a .png file.")
    check_free(plot, overwrite, "--dose-plot")


def _check_plot(plot: Path, controls: Path | None, held_out: str | None, overwrite: bool) -> None:
    if controls is None or held_out is not None:
        raise EvaeError("--plot draws your own control cells and what they become; give --controls.")
    if plot.suffix != ".png":
        raise EvaeError(f"--plot is {plot}; name a .png file.")
    check_free(plot, overwrite, "--plot")


def _controls(
    path: Path, pipe: "Pipeline", layer: str | None, keys: tuple[str, str], label: str | None
) -> "ad.AnnData":
    from evae.inference.control_files import read_controls

    label, named = label or str(pipe.processor.control), label is not None
    cells, notes = read_controls(path, keys, label, named=named, layer=layer)
    for note in notes:
        say(note)
    return cells


def _counterfactual(
    pipe: "Pipeline",
    cells: "ad.AnnData | None",
    names: list[str],
    kinds: list[str] | None,
    n_cells: Any,
    how: dict[str, Any],
) -> "ad.AnnData":
    if cells is None:
        raise EvaeError("--counterfactual changes your own control cells; give --controls.")
    if n_cells is not None or len(names) != 1 or len(kinds or []) > 1:
        raise EvaeError("--counterfactual changes every control once; give one --perturbation and no --n-cells.")
    return pipe.counterfactual(cells, names[0], kinds[0] if kinds else None, **how)


def _names(given: list[str], known: list[str]) -> list[str]:
    """The names in options that may be repeated and may hold several names each."""
    return list(dict.fromkeys(name for text in given for name in split_names(text, set(known))))


def _said_transfer(facts: "Mapping[str, Any]", n_pairs: int) -> str:
    moved, new = facts["effect_transfer_pairs"], facts["effect_transfer_new_pairs"]
    if not moved + new:
        return "effect transfer: none, as no pair has 20 cells or more of a perturbation of which other cell types tell"
    told = ["training cells show"] * bool(moved)
    told += [f"other doses, the parts of combinations or feature vectors tell ({new} new to training)"] * bool(new)
    return (
        f"effect transfer: the means of {moved + new} of {number_of(n_pairs, 'pair')} are moved towards what "
        f"{' or '.join(told)}, by {facts['effect_transfer']:.0%} on average"
    )


def _say_predicted(predicted: "ad.AnnData", out: Path) -> None:
    pairs = predicted.obs.groupby(["support", "cell_type", "perturbation"], observed=True).size()
    by_support = ", ".join(f"{n} {s}" for s, n in pairs.groupby("support", observed=True).size().items())
    say(
        f"{number_of(predicted.n_obs, 'cell')} of {number_of(len(pairs), '(cell type, perturbation) pair')} "
        f"({by_support} in training), {number_of(predicted.n_vars, 'gene')}: {out}"
    )
    facts = predicted.uns["evae"]
    how = f"; temperature: {facts['temperature']:g}" if "temperature" in facts else ""
    say(f"library sizes: {facts['library_size_source']}; guidance scale: {facts['guidance_scale']:g}{how}")
    if "matched_effects" in facts:
        say(_said_match(facts["matched_effects"]))
    if "effect_transfer" in facts:
        say(_said_transfer(facts, len(pairs)))
    coverage = facts.get("gene_coverage", 1.0)
    if coverage < 1:
        say(f"the controls measure {coverage:.0%} of the model's gene panel", style="yellow")


def _said_match(found: "pd.DataFrame") -> str:
    worst = found.loc[found["error"].fillna(0).idxmax()]
    text = (
        f"the mean follows the given effects: log2 fold changes differ by {worst['error']:.2g} (as drawn "
        f"{worst['error_as_drawn']:.2g}; root mean square over {number_of(worst['genes'], 'gene')}"
    )
    text += f"; the largest of {number_of(len(found), 'pair')})" if len(found) > 1 else ")"
    lacking = int(found["genes_without_controls"].max())
    return text + (f"; {number_of(lacking, 'gene')} that the controls lack cannot change" if lacking else "")
