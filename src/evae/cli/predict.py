"""`evae predict` and `evae embed`."""

import time
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import typer
from rich.console import Console

from evae.cli.files import check_free, write_h5ad
from evae.cli.prepare import CellTypeKey, PerturbationKey
from evae.data.reading.anndata_file import read_h5ad
from evae.data.reading.labels import label_texts
from evae.inference.checkpoint import load_checkpoint
from evae.inference.embedding_files import embed_file
from evae.inference.held_out import predict_held_out
from evae.inference.pipeline import Pipeline, pipeline
from evae.models.contract_evae import EvaeError, near_matches, split_names

Model = Annotated[str, typer.Argument(help="Folder of a trained model, or a Hub id.", metavar="MODEL")]
Layer = Annotated[str | None, typer.Option(help="Layer of raw counts; X if left out.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one, if left out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Out = Annotated[Path, typer.Option(help="h5ad file to write.")]


def predict(
    model: Model,
    out: Out,
    controls: Annotated[
        Path | None,
        typer.Option(help="h5ad file of raw counts, with your control cells: they give the library sizes."),
    ] = None,
    perturbation: Annotated[
        list[str] | None, typer.Option(help="Perturbation; repeat it, or separate several by commas.")
    ] = None,
    cell_type: Annotated[
        list[str] | None, typer.Option(help="Cell type, likewise; those of the controls if left out.")
    ] = None,
    n_cells: Annotated[int | None, typer.Option(help="Cells for each pair; as many as controls if left out.")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Instead: predict all that this dataset folder holds out.")
    ] = None,
    perturbation_key: PerturbationKey = "perturbation",
    cell_type_key: CellTypeKey = "cell_type",
    control: Annotated[str | None, typer.Option(help="Label of the controls; the model's if left out.")] = None,
    layer: Layer = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cells.")] = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How much to stress the perturbation; 1 is the model as trained.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of a diffusion or flow prior.")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at once.")] = 256,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the prior: for many cells on a GPU.")] = False,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict perturbed cells as an h5ad file of raw counts.

    Either for perturbations of your choice in your own cells, or, with --held-out, for all that a dataset
    folder holds out, ready for `evae evaluate`. A file without a column of perturbations is taken to hold
    controls only.

    Example: evae predict runs/prior --controls cells.h5ad --perturbation STAT1,JAK2 --out predicted.h5ad
    """
    check_free(out, overwrite)
    if (held_out is None) == (perturbation is None):
        raise EvaeError("give either --perturbation or --held-out.")
    pipe = pipeline(model, device)
    options = {"guidance_scale": guidance_scale, "num_steps": steps, "compile": compile or None}
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    how |= {name: value for name, value in options.items() if value is not None}
    if held_out is not None:
        predicted = predict_held_out(pipe, held_out, **how)
    else:
        predicted = pipe.predict(
            None if controls is None else _controls(controls, pipe, perturbation_key, control),
            _names(perturbation or [], [*pipe.processor.perturbations, *pipe.processor.known_units()]),
            _names(cell_type, pipe.processor.cell_types) if cell_type else None,
            n_cells,
            cell_type_key=cell_type_key,
            perturbation_key=perturbation_key,
            layer=layer,
            **how,
        )
    write_h5ad(predicted, out)
    _say_predicted(predicted, out)


def embed(
    model: Model,
    file: Annotated[Path, typer.Argument(help="h5ad file of raw counts.", metavar="FILE.h5ad")],
    out: Annotated[Path, typer.Option(help="h5ad, zarr or parquet file to write.")],
    kind: Annotated[str, typer.Option(help="latents (before quantization), pooled or codes.")] = "latents",
    layer: Layer = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed cells in a stream, whatever the size of the file.

    --out FILE.h5ad is a copy of the input with obsm["X_evae"], ready for scanpy; FILE.zarr holds obs and
    obsm["X_evae"] only; FILE.parquet has the columns cell_id and embedding. A run that was killed goes on when
    the same command is given again. On several GPUs:
    torchrun --nproc_per_node 4 -m evae.cli embed ...

    Example: evae embed runs/tokenizer cells.h5ad --out embedded.h5ad
    """
    started = time.monotonic()
    result = embed_file(load_checkpoint(model), file, out, kind, layer=layer, device=device, overwrite=overwrite)
    if result is None:  # another process speaks
        return
    console = Console(highlight=False, soft_wrap=True)
    seconds = max(time.monotonic() - started, 1e-3)
    new = result.n_cells - result.n_resumed
    if result.n_resumed:
        console.print(f"{result.n_resumed:,} cells were embedded before the run was stopped", markup=False)
    console.print(f"{new:,} cells in {seconds:,.1f} s, {new / seconds:,.0f} cells/s", style="dim", markup=False)
    if result.coverage < 1:
        console.print(f"the cells measure {result.coverage:.1%} of the model's gene panel", style="yellow")
    if result.n_empty:
        console.print(
            f"{result.n_empty:,} cells have no counts over the gene panel; their rows are NaN", style="yellow"
        )
    console.print(f"{result.n_cells:,} cells of {result.width} values: {out}", style="bold", markup=False)


def _controls(path: Path, pipe: Pipeline, key: str, label: str | None) -> ad.AnnData:
    """The control cells of a file; all of its cells where it has no column of perturbations."""
    cells = read_h5ad(path, backed=True)
    if key not in cells.obs:
        if label is not None:
            raise EvaeError(f"{path} has no obs column '{key}'. {near_matches(key, list(cells.obs.columns))}")
        return cells.to_memory()
    labels = label_texts(cells.obs[key])
    label = label or str(pipe.processor.control)
    chosen = labels == label
    if not chosen.any():
        raise EvaeError(
            f"no cell of {path} has the control label '{label}' in obs column '{key}'; name the label with "
            f"--control. {near_matches(label, sorted(set(labels) - {''}))}"
        )
    return cells[chosen].to_memory()


def _names(given: list[str], known: list[str]) -> list[str]:
    """The names in options that may be repeated and may hold several names each."""
    return list(dict.fromkeys(name for text in given for name in split_names(text, set(known))))


def _say_predicted(predicted: ad.AnnData, out: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    pairs = predicted.obs.groupby(["support", "cell_type", "perturbation"], observed=True).size()
    by_support = ", ".join(f"{n} {s}" for s, n in pairs.groupby("support", observed=True).size().items())
    console.print(
        f"{predicted.n_obs:,} cells of {len(pairs)} (cell type, perturbation) pairs ({by_support} in "
        f"training), {predicted.n_vars:,} genes: {out}",
        markup=False,
    )
    coverage = predicted.uns["evae"].get("gene_coverage", 1.0)
    if coverage < 1:
        console.print(f"the controls measure {coverage:.0%} of the model's gene panel", style="yellow")
