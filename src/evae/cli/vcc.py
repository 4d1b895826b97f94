"""`evae vcc predict` and `evae vcc score`: an entry for the Virtual Cell Challenge, and how a model would do in it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evae.cli.files import check_free, need_cells, need_file
from evae.cli.options import (
    CellTypeKey,
    Device,
    Model,
    Overwrite,
    PerturbationKey,
    check_known,
    check_model,
    names_of,
)
from evae.cli.terminal import console, join_names, quiet_transformers, say
from evae.common.messages import number_of
from evae.common.progress import watched
from evae.models.contract_evae import EvaeError

vcc = typer.Typer(no_args_is_help=True, help="Entries for the Virtual Cell Challenge 2026.")
ENDINGS = (".vcc", ".h5ad")
MISSING = ("refuse", "controls")


@vcc.command("predict")
def predict(
    model: Model,
    controls: Annotated[Path, typer.Option(help="h5ad file of raw counts with the control cells of all contexts.")],
    perts: Annotated[Path, typer.Option(help="pert_counts.csv of the challenge.")],
    genes: Annotated[Path, typer.Option(help="gene_names.csv of the challenge.")],
    out: Annotated[Path, typer.Option(help="The entry to write: .vcc, or .h5ad for vcc prep.")],
    contexts: Annotated[
        str | None, typer.Option(help="Contexts, separated by commas; from PERTS or its manifest.json if left out.")
    ] = None,
    context_key: Annotated[str, typer.Option(help="obs column of the controls that names the context.")] = "context",
    perturbation_key: Annotated[
        str, typer.Option(help="obs column of their perturbation, if there is one.")
    ] = "target_gene",
    control: Annotated[str, typer.Option(help="Label of the controls there.")] = "non-targeting",
    cell_type: Annotated[
        str | None, typer.Option(help="Cell type of the model that stands for all contexts, if it knows them by name.")
    ] = None,
    effects: Annotated[
        Path | None,
        typer.Option(
            help="csv or parquet: log2 fold changes for targets unknown to the model; a row each, genes as columns."
        ),
    ] = None,
    missing: Annotated[str, typer.Option(help="What to do with other unknown targets: refuse, controls.")] = "refuse",
    seed: Annotated[int, typer.Option(help="The same seed gives the same cells.", min=0)] = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How much to stress the perturbation; 1 is the model as trained.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1, cells differ less from each other; what training chose if left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of a diffusion or flow prior.")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at once.")] = 256,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, predict nothing.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Predict an entry of raw counts from control cells alone, ready for `vcc submit`.

    Genes outside the model's panel keep the counts of the control cell that a predicted cell stands for. Limits are
    checked first; the file is written block by block.

    Example: evae vcc predict runs/prior --controls controls.h5ad --perts pert_counts.csv --genes gene_names.csv
    --out entry.vcc
    """
    if out.suffix not in ENDINGS:
        raise EvaeError(f"{out} ends neither in .vcc nor in .h5ad; name it entry.vcc.")
    check_free(out, overwrite)
    check_known([missing], MISSING, "choice for --missing")
    check_model(model)
    need_cells(controls)
    for path in (perts, genes, *([] if effects is None else [effects])):
        need_file(path)
    from evae.challenge.entry_file import write_entry
    from evae.challenge.lists import read_plan
    from evae.challenge.predict import EntryPredictor
    from evae.challenge.sources import Controls, effects_of_entry
    from evae.inference.effects import read_table
    from evae.inference.pipeline import pipeline

    plan = read_plan(genes, perts, control, list(names_of(contexts)) or None)
    found = Controls.open(controls, plan, control, context_key, perturbation_key)
    table = None if effects is None else effects_of_entry(read_table(effects), plan)
    quiet_transformers()
    options: dict[str, Any] = {"guidance_scale": guidance_scale, "temperature": temperature, "num_steps": steps}
    predictor = EntryPredictor(
        pipeline(model, device), plan, found, cell_type, table, missing == "controls", seed, batch_size,
        {name: value for name, value in options.items() if value is not None},
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    stand_ins = predictor.check(out)
    say(f"{number_of(plan.n_cells, 'cell')} of {number_of(len(plan.targets), 'target gene')} in "
        f"{', '.join(plan.contexts)}, {number_of(len(plan.genes), 'gene')}")  # fmt: skip
    for what, targets in stand_ins.items():
        if targets:
            say(
                f"· no value of the model for {len(targets)} of them; {what} stand in: {join_names(targets)}",
                style="dim",
            )
    if perturbation_key not in list(found.source.obs):
        say(f"· no obs column '{perturbation_key}' in {controls}: all its cells are taken for controls", style="dim")
    unused = [] if table is None or predictor.told else [t for t in table.index if t not in stand_ins["given effects"]]
    if unused:
        say(
            f"· effects of {number_of(len(unused), 'name')} are not used, for the model knows them or the entry does "
            "not",
            style="dim",
        )
    if dry_run:
        return
    stored = write_entry(plan, predictor.blocks(watched()), out)
    say(f"{out}: {number_of(stored, 'stored count')}", style="bold")


@vcc.command("score")
def score(
    model: Model,
    cells: Annotated[Path, typer.Argument(help="h5ad file of perturbed and control cells.", metavar="CELLS.h5ad")],
    control: Annotated[str, typer.Option(help="Label of the controls.")] = "non-targeting",
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: CellTypeKey = "cell_type",
    context: Annotated[
        list[str] | None, typer.Option(help="Context to leave out; repeat it. All in turn if left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many split halves to average over.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at once.", min=1)] = 256,
    out: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Leave each context (cell type) out, predict it from its controls, and score it as the challenge does.

    Beside the model stand the mean of the other contexts, a control copy, the other contexts' own cells and shrunken
    transfer of their effects. The model should not have been trained on the perturbed cells of these contexts.

    Example: evae vcc score runs/prior screen.h5ad --context K562
    """
    need_cells(cells)
    check_model(model)
    if out is not None:
        check_free(out, overwrite)
    from evae.challenge.score import LeaveOneOut
    from evae.data.reading.anndata_file import read_h5ad
    from evae.evaluation import main_tables
    from evae.inference.pipeline import pipeline

    quiet_transformers()
    keys = {"context_key": cell_type_key, "perturbation_key": perturbation_key}
    how: dict[str, Any] = {"seeds": tuple(range(seeds)), "batch_size": batch_size, "progress": watched(), **keys}
    result = LeaveOneOut(pipeline(model, device), read_h5ad(cells, needed=tuple(keys.values())), control, **how).score(
        context or ()
    )
    console().print(main_tables(result))
    for note in result.stamp["notes"]:
        say(f"· {note}", style="dim")
    if out is not None:
        say(f"all numbers: {result.to_json(out)}", style="bold")
