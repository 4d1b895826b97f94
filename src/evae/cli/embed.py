"""`evae embed`: cells of a file of any size become vectors."""

import time
from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import check_free, need_cells
from evae.cli.options import EMBEDDINGS, Dask, Device, Layer, Model, Overwrite, check_known, check_model
from evae.cli.terminal import quiet_transformers, say
from evae.common.cluster import on_dask
from evae.common.messages import number_of
from evae.common.progress import watched


def embed(
    context: typer.Context,
    model: Model,
    file: Annotated[Path, typer.Argument(help="h5ad file of raw counts.", metavar="FILE.h5ad")],
    out: Annotated[Path, typer.Option(help="h5ad, zarr or parquet file to write.")],
    kind: Annotated[str, typer.Option(help="latents (before quantization), pooled or codes.")] = "latents",
    layer: Layer = None,
    device: Device = None,
    dask: Dask = None,
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
    check_model(model)
    need_cells(file)
    check_known([kind], EMBEDDINGS, "kind of embedding")
    check_known([out.suffix], (".h5ad", ".zarr", ".parquet"), "ending of --out")
    if out.suffix != ".zarr":  # which is a folder
        check_free(out, overwrite)
    from evae.inference.checkpoint import load_checkpoint
    from evae.inference.embedding_files import embed_file

    quiet_transformers()
    context.with_resource(on_dask(dask))
    result = embed_file(
        load_checkpoint(model), file, out, kind, layer=layer, device=device, overwrite=overwrite, progress=watched()
    )
    if result is None:  # another process speaks
        return
    seconds = max(time.monotonic() - started, 1e-3)
    new = result.n_cells - result.n_resumed
    if result.n_resumed:
        say(f"{number_of(result.n_resumed, 'cell was', 'cells were')} embedded before the run was stopped")
    if new:
        say(f"{number_of(new, 'cell')} in {seconds:,.1f} s, {new / seconds:,.0f} cells/s", style="dim")
    if result.coverage < 1:
        say(f"the cells measure {result.coverage:.1%} of the model's gene panel", style="yellow")
    if result.n_empty:
        say(
            f"{number_of(result.n_empty, 'cell has', 'cells have')} no counts over the gene panel; NaN stands for "
            "their vectors",
            style="yellow",
        )
    say(f"{number_of(result.n_cells, 'cell')} of {result.width} values: {out}", style="bold")
