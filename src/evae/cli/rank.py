"""`evae rank`: which perturbation explains cells best."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evae.cli.files import check_free, need_cells, write_table
from evae.cli.options import (
    Device,
    Layer,
    Model,
    OptionalCellTypeKey,
    Overwrite,
    PerturbationKey,
    Seed,
    check_model,
    example_controls_of,
)
from evae.cli.terminal import quiet_transformers, say
from evae.common.messages import number_of
from evae.common.progress import watched
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 3  # perturbations of a group


def rank(
    model: Model,
    cells: Annotated[Path, typer.Argument(help="h5ad file of raw counts, the cells to explain.", metavar="CELLS.h5ad")],
    out: Annotated[Path, typer.Option(help="csv, tsv or parquet file to write.")],
    controls: Annotated[
        Path | None, typer.Option(help="h5ad file of unperturbed cells of the same types, for a prior that reads them.")
    ] = None,
    groupby: Annotated[
        str | None, typer.Option(help="obs column of the cells: each group is ranked by itself.")
    ] = None,
    perturbation: Annotated[
        list[str] | None, typer.Option(help="Only this one and the control; may be repeated. All if left out.")
    ] = None,
    cell_type: Annotated[str | None, typer.Option(help="The cell type of all cells, if no column tells it.")] = None,
    n_prompts: Annotated[int, typer.Option(help="Controls that each cell is scored from in turn.", min=1)] = 4,
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: OptionalCellTypeKey = "cell_type",
    control: Annotated[str | None, typer.Option(help="Label of the controls; the model's if left out.")] = None,
    layer: Layer = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Cells scored at once.", min=1)] = 256,
    confusion: Annotated[
        Path | None,
        typer.Option(help="PNG to draw where --groupby names true perturbations: these against the ranked ones."),
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank the perturbations by how likely they make the cells: what happened to them?

    The table has one row a group and perturbation, best first: the mean log-likelihood of the cells' codes, that less
    the control's, and the share of the cells that the perturbation explains best.

    The control is level with the best perturbation on the controls that are given.

    Example: evae rank runs/prior sorted.h5ad --controls controls.h5ad --groupby sample --out ranking.csv
    """
    check_free(out, overwrite)
    if confusion is not None:
        check_free(confusion, overwrite, "--confusion")
        if groupby is None:
            raise EvaeError("--confusion needs --groupby, the column of true perturbations.")
    check_model(model)
    controls = example_controls_of(model, controls)
    for path in (cells, *([controls] if controls else [])):
        need_cells(path)
    from evae.inference.pipeline import pipeline

    quiet_transformers()
    how: dict[str, Any] = {"cell_type": cell_type, "n_prompts": n_prompts, "seed": seed, "batch_size": batch_size}
    how |= {"cell_type_key": cell_type_key or None, "perturbation_key": perturbation_key, "control": control}
    table = pipeline(model, device).rank_perturbations(
        cells, controls, perturbation, groupby, layer=layer, progress=watched(), **how
    )
    write_table(table, out)
    for group, rows in table.groupby("group", sort=False):
        best = ", ".join(f"{r.perturbation} {r.over_control:+.2f}" for r in rows.head(SHOWN).itertuples())
        say(f"{group}: {best} (nats a cell over the control)")
    say(f"{number_of(len(table), 'row')}: {out}")
    if confusion is not None:
        _draw(table, confusion)


def _draw(table: "pd.DataFrame", path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from evae.common.figures import look, save
    from evae.common.files import explain_disk_errors
    from evae.plot.results import confusion

    mpl.use("agg")
    drawn = confusion(table)
    with explain_disk_errors(str(path)), look():
        save(drawn.figure, path)  # type: ignore[arg-type]
    plt.close(drawn.figure)  # type: ignore[arg-type]
    say(f"{drawn.get_title(loc='left')}: {path}")
