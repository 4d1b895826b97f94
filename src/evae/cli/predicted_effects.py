"""`evae predicted-effects`: which genes change in predicted cells, tested, and how sure the model is of each."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evae.cli.files import check_free, need_cells, write_h5ad, write_table
from evae.cli.options import Device, Layer, Model, OptionalCellTypeKey, Overwrite, PerturbationKey, check_model
from evae.cli.terminal import quiet_transformers, say
from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError

SUFFIXES = (".csv", ".tsv", ".parquet", ".h5ad")
SHOWN = 5  # genes of a pair
PAIRS = 10


def predicted_effects(
    model: Model,
    predicted: Annotated[Path, typer.Argument(help="h5ad file that `evae predict` wrote.", metavar="PREDICTED.h5ad")],
    controls: Annotated[Path, typer.Option(help="File of the control cells that they were predicted from.")],
    out: Annotated[
        Path,
        typer.Option(help="csv, tsv or parquet for a table; h5ad for the cells with the table as scanpy keeps it."),
    ],
    redraws: Annotated[int, typer.Option(help="Further predictions that tell the spread.", min=0)] = 3,
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: OptionalCellTypeKey = "cell_type",
    control: Annotated[str | None, typer.Option(help="Label of the controls; the model's if left out.")] = None,
    layer: Layer = None,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at once.", min=1)] = 256,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Say which genes change in predicted cells: fold changes, tests, shares of cells, and how sure the model is.

    (`evae effects` estimates the effects that training cells show; this one is of predicted cells.) The table has one
    row a cell type, perturbation and gene. An h5ad file holds it in uns["rank_genes_groups"], where scanpy and
    enrichment tools look.

    Example: evae predicted-effects runs/prior predicted.h5ad --controls screen.h5ad --out genes.csv
    """
    check_free(out, overwrite)
    if out.suffix not in SUFFIXES:
        raise EvaeError(f"{out} is no csv, tsv, parquet or h5ad file; name one.")
    check_model(model)
    for path in (predicted, controls):
        need_cells(path)
    from evae.data.reading.anndata_file import read_h5ad
    from evae.inference.pipeline import pipeline

    quiet_transformers()
    pipe = pipeline(model, device)
    cells: Any = predicted
    if out.suffix == ".h5ad":
        cells = read_h5ad(predicted)
    keys: dict[str, Any] = {
        "cell_type_key": cell_type_key or None,
        "perturbation_key": perturbation_key,
    }
    table = pipe.effects(cells, controls, redraws=redraws, layer=layer, batch_size=batch_size, control=control, **keys)
    if out.suffix == ".h5ad":
        write_h5ad(cells, out)
    else:
        write_table(table, out)
    for number, ((kind, name), rows) in enumerate(table.groupby(["cell_type", "perturbation"], sort=False)):
        if number < PAIRS:
            best = ", ".join(f"{row.gene} {row.log2_fold_change:+.2f}" for row in rows.head(SHOWN).itertuples())
            trust = _trust(rows.iloc[0], pipe.processor.calibration)
            say(
                f"{name} in {kind}: {number_of((rows['fdr'] < 0.05).sum(), 'gene')} with FDR < 5%; {best} (log2){trust}"
            )
    say(f"{number_of(len(table), 'row')}: {out}")


def _trust(pair: Any, calibration: Any) -> str:
    """How far a pair may be trusted, in words; nothing of a model that was not calibrated."""
    if not calibration:
        return ""
    if pair["remark"]:
        return f"; {pair['remark']}, so no confidence"
    return (
        f"; expect a correlation of {pair['expected_correlation']:.2f} with the real change (calibrated on "
        f"{number_of(calibration['pairs'], 'pair')}, orders them by {calibration['correlation']['orders']:.2f})"
    )
