"""`evae simulate`: cells with known effects, to try things out on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evae.cli.files import check_free, write_h5ad, write_table
from evae.cli.options import Overwrite, Seed, check_known, numbers
from evae.cli.terminal import say
from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError

SCREENS = ("perturbation", "reversion", "doses")


def simulate(
    out: Annotated[Path, typer.Argument(help="h5ad file to write.", metavar="OUT.h5ad")],
    screen: Annotated[
        str,
        typer.Option(help="perturbation: several cell types; reversion: with and without stress; doses: drugs."),
    ] = "perturbation",
    cells: Annotated[int | None, typer.Option(help="8,000 if left out, of a reversion screen 30,000.", min=1)] = None,
    genes: Annotated[int, typer.Option(help="How many.", min=1)] = 400,
    cell_types: Annotated[int | None, typer.Option(help="3 if left out, of a screen of doses 2.", min=1)] = None,
    perturbations: Annotated[
        int | None,
        typer.Option(help="Beside the control; 12 if left out, of reversion 200, of doses 6.", min=1),
    ] = None,
    effect_size: Annotated[
        float | None, typer.Option(help="How far a perturbation moves the genes it acts on, natural log units.")
    ] = None,
    context_dependence: Annotated[
        float | None,
        typer.Option(help="How far cells answer by their own state, 0 (as if left out) to 1: half of them oppositely."),
    ] = None,
    doses: Annotated[str | None, typer.Option(help="Of a screen of doses, uM: 0.01,0.1,1,10,100 if left out.")] = None,
    times: Annotated[str | None, typer.Option(help="Of a screen of doses, hours: 24 if left out.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="csv or parquet file to write: vectors that tell the perturbations' effects, noisily."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a screen of raw counts with known effects, as an h5ad file.

    The labels are in obs: perturbation (control, KO-GENE0012 ...) and cell_type (type_A ...), or condition and
    gene_target of a reversion screen; a screen of drugs has dose_value, dose_unit and time too. The truth is in
    uns["simulation"]: the log fold changes of every perturbation, the targets that revert the stress, or the dose
    curves. With --context-dependence 1 one half of the cell types answers in the opposite way, by a state that control
    cells show: the mean effect in other cell types then says nothing.

    Example: evae simulate screen.h5ad --cells 8000 --cell-types 3 --perturbations 12
    """
    check_free(out, overwrite)
    check_known([screen], SCREENS, "screen")
    _check_features(features, screen, overwrite)
    if context_dependence is not None and screen != "perturbation":
        raise EvaeError(f"cells of a screen '{screen}' do not answer by their state; leave --context-dependence out.")
    if (doses or times) and screen != "doses":
        raise EvaeError("--doses and --times are those of a screen of drugs: --screen doses.")
    given: dict[str, Any] = {"n_cells": cells, "n_genes": genes, "effect_size": effect_size, "seed": seed}
    if screen == "reversion":
        if cell_types is not None:
            raise EvaeError("a reversion screen has one cell type; leave --cell-types out.")
        from evae.data.simulation.screen import simulate_reversion_screen as draw

        given["n_targets"] = perturbations
    elif screen == "doses":
        from evae.data.simulation.dose_curves import simulate_dose_screen as draw  # type: ignore[assignment]

        given |= {"n_cell_types": cell_types, "n_drugs": perturbations}
        given |= {"doses": numbers(doses, "--doses"), "times": numbers(times, "--times")}
    else:
        from evae.data.simulation.perturb_seq import simulate_perturb_seq as draw  # type: ignore[assignment]

        given |= {"n_cell_types": cell_types, "n_perturbations": perturbations}
        given["context_dependence"] = context_dependence
    drawn = draw(**{name: value for name, value in given.items() if value is not None})
    vectors = None
    if features is not None:
        from evae.data.simulation.vectors import simulated_vectors

        vectors = simulated_vectors(drawn, seed=seed)
    write_h5ad(drawn, out)
    if vectors is not None and features is not None:
        write_table(vectors.reset_index(), features)
    labels = ", ".join(f"{drawn.obs[key].nunique()} of {key}" for key in drawn.obs.columns)
    say(f"{number_of(drawn.n_obs, 'simulated cell')}, {number_of(drawn.n_vars, 'gene')}; labels: {labels}: {out}")


def _check_features(features: Path | None, screen: str, overwrite: bool) -> None:
    if features is None:
        return
    check_free(features, overwrite, "--features")
    if screen != "perturbation":
        raise EvaeError(f"perturbations of a screen '{screen}' have no feature vectors; leave --features out.")
    if features.suffix not in (".csv", ".parquet"):
        raise EvaeError(f"{features} is no csv or parquet file; name one.")
