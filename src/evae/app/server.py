"""Serves the page and the tools: one line when it is ready, and no request to anyone else."""

import contextlib
import errno
import io
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evae.app.offered import load_offered
from evae.app.uploads import Bounds
from evae.common.logs import logger
from evae.models.contract_evae import EvaeError

LOG = logger(__name__)

# Read by Gradio when it is imported, so it is imported in `serve`, behind them.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
FIRST_PORT, PORTS = 7860, 100
SWEEP_SECONDS, KEPT_SECONDS = 30.0, 1_800.0
# The page takes everything from where it is served: no fonts, no counters, no scripts of others.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; worker-src 'self' blob:; "
    "form-action 'self'; base-uri 'self'; object-src 'none'"
)
TOOLS = "gradio_api/mcp/"


def serve(
    models: Sequence[str] = ("example",),
    *,
    controls: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str | None = None,
    bounds: Bounds | None = None,
    tell: Callable[[str], object] = LOG.info,
) -> None:
    """Serve the app until it is interrupted.

    Args:
        models: folders, Hub ids or "example", to choose from; nothing else can be chosen in a browser.
        controls: file of control cells for all but the example, which has its own.
        host: the address to listen on; "0.0.0.0" lets other machines in.
        port: the port; the first free one from 7860 on if None.
        device: where to compute; a GPU if there is one, if None.
        bounds: what an upload may take.
        tell: is told the address, once, when the app answers there; the log of evae if left out.

    Raises:
        EvaeError: Gradio is not installed, a checkpoint that does not load or does not predict, a file that cannot be
            read, or a port that is taken.
    """
    os.environ.update(QUIET)
    bounds = bounds or Bounds()
    with tempfile.TemporaryDirectory(prefix="evae-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost"]))
        try:
            import gradio as gr
            import mcp  # noqa: F401  # its server, without which Gradio serves no tools
            from fastapi.middleware import Middleware
        except ImportError as error:
            raise EvaeError(f"the app needs {error.name}, which is not installed: pip install 'evae[app]'") from error
        from evae.app.page import build

        chosen, shown = free_port(host, port), f"[{host}]" if ":" in host else host
        offered = load_offered(models, None if controls is None else Path(controls), device, bounds.cells)
        page = build(offered, bounds, Path(folder))
        look = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        with contextlib.redirect_stdout(io.StringIO()):  # Gradio prints lines of its own, asked to be quiet or not
            page.queue(max_size=32).launch(
                server_name=shown, server_port=chosen, prevent_thread_lock=True, quiet=True, inline=False, share=False,
                max_file_size=bounds.megabytes * 1_000_000, mcp_server=True, ssr_mode=False, run_history=False,
                footer_links=[], show_error=False, enable_monitoring=False, pwa=False, theme=look,
                css_paths=Path(__file__).with_name("page.css"), app_kwargs={"middleware": [Middleware(Policy)]},
            )  # fmt: skip
        address = f"http://{'127.0.0.1' if host == '0.0.0.0' else shown}:{chosen}/"
        tell(f"evae app: {address} (tools for agents: {address}{TOOLS}); Ctrl+C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, _end)
            while True:
                time.sleep(SWEEP_SECONDS)
                sweep(Path(folder), KEPT_SECONDS)


def _end(number: int, frame: Any) -> None:
    """A signal to end: what was uploaded goes too, undisturbed by a second signal, as some programs send it twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def sweep(folder: Path, seconds: float) -> None:
    """Remove what has lain in the folder of uploads and downloads for longer: Gradio keeps what a browser broke off."""
    before = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        with contextlib.suppress(OSError):  # it is gone, or a folder that holds something younger
            if path.stat().st_mtime < before:
                path.rmdir() if path.is_dir() else path.unlink()


def free_port(host: str, port: int | None) -> int:
    """The port that was named, or the first free one; raises `EvaeError` where it is taken."""
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in candidates:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, number))
            except PermissionError:
                raise EvaeError(f"port {number} may not be used; name one from 1024 on.") from None
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise EvaeError(
                        f"cannot listen on {host} ({error.strerror}); name an address of this machine."
                    ) from None
                continue
            return int(probe.getsockname()[1])
    raise EvaeError(
        f"port {candidates[0]} is taken"
        + (
            "; name another, or leave it out."
            if port is not None
            else f", and so are those to {candidates[-1]}; name a free one."
        )
    )


class Policy:
    """Tells browsers, with every answer, to take nothing from elsewhere."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
                headers = [(name.encode(), value.encode()) for name, value in given.items()]
                message = message | {"headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)
