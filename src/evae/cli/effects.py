"""`evae effects`: what is known of perturbations, as a table that `evae predict --effects` reads."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import check_free, write_table
from evae.cli.options import Overwrite
from evae.cli.terminal import join_names, say
from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError

SHOWN = 5  # names of a kind


def effects(
    dataset: Annotated[str, typer.Argument(help="Folder made by `evae prepare`, or a Hub id.", metavar="DATASET")],
    out: Annotated[Path, typer.Option(help="csv or parquet file to write.")],
    perturbation: Annotated[
        list[str] | None, typer.Option(help="Of which one; may be repeated. All that are known, if left out.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="npz, csv, tsv or parquet with a vector for each perturbation: also for those never seen."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How vectors tell effects: ridge, nearest (mean of 5), kernel (ridge) or bilinear.")
    ] = "ridge",
    leave_out: Annotated[
        list[str] | None, typer.Option(help="A cell type that is not read; may be repeated. For a trial.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate the effects of perturbations from the training cells: log2 fold changes, shrunk by their errors.

    The mean over the cell types that saw a perturbation; for a combination that none saw, the sum of its parts; for a
    perturbation never seen, what its vector tells.

    Example: evae effects data/screen --out effects.csv && evae predict runs/prior --controls cells.h5ad --perturbation
    STAT1 --effects effects.csv --match-effects --out predicted.h5ad
    """
    check_free(out, overwrite)
    if out.suffix not in (".csv", ".parquet"):
        raise EvaeError(f"{out} is no csv or parquet file; name one.")
    from evae.effects import estimate_effects

    found = estimate_effects(dataset, perturbation, features=features, method=method, leave_out=leave_out or ())
    table = found.log2_fold_changes
    write_table(table.reset_index(), out)
    for source, names in found.source.groupby(found.source, sort=False).groups.items():
        say(f"{source}: {len(names):,} ({join_names(list(names), SHOWN)})")
    if found.unknown:
        say(f"left out, for nothing is known of them: {len(found.unknown):,} ({join_names(found.unknown, SHOWN)})")
    say(f"log2 fold changes of {number_of(len(table), 'perturbation')} over {number_of(table.shape[1], 'gene')}: {out}")
