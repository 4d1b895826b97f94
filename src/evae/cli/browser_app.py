"""`evae app`: predicted beside control cells in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from evae.cli.files import need_cells
from evae.cli.options import Device, check_model
from evae.cli.terminal import quiet_transformers


def browser_app(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of trained models, Hub ids, or example, which is offered if left out."),
    ] = None,
    controls: Annotated[
        Path | None, typer.Option(help="File of control cells for your models; the example has its own.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; the first free one from 7860 on if left out.", min=0, max=65535)
    ] = None,
    max_upload: Annotated[int, typer.Option(help="Largest file that may be uploaded, MB.", min=1)] = 100,
    device: Device = None,
) -> None:
    """Serve an app in which one chooses a perturbation and sees predicted beside control cells.

    Pictures, the genes that change, and files to download; also as tools for agents (MCP). Whoever opens the page
    may upload control cells: they are read with limits of time and memory, and not kept. The page asks nothing of other
    machines. Needs the extra `app`.

    Example: evae app runs/prior example --controls cells.h5ad
    """
    places = models or ["example"]
    for place in places:
        check_model(place)
    if controls is not None:
        need_cells(controls)
    quiet_transformers()
    from evae.app import serve
    from evae.app.uploads import Bounds

    bounds = Bounds(megabytes=max_upload)
    serve(places, controls=controls, host=host, port=port, device=device, bounds=bounds, tell=typer.echo)
