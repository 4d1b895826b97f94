"""An uploaded file becomes control cells in memory, and is gone; `evae.app.reader` is the process that reads it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata as ad

from evae.app.controls import LabelColumns
from evae.app.reader import FAULT, unpacked
from evae.models.contract_evae import EvaeError

READER = "evae.app.reader"


@dataclass(frozen=True)
class Bounds:
    """What an upload may take.

    Attributes:
        megabytes: size of the file.
        seconds: to read it.
        memory: bytes that reading may take.
        cells: control cells that are kept of it.
    """

    megabytes: int = 100
    seconds: float = 60.0
    memory: int = 2_000_000_000
    cells: int = 2_000


def take_upload(path: Path, folder: Path, columns: LabelColumns, bounds: Bounds) -> tuple[ad.AnnData, list[str]]:
    """Read the control cells of an uploaded file, and remove it, whatever comes of it.

    Args:
        path: the file, as the server stored it.
        folder: where uploads are stored; a file elsewhere was not uploaded, and is left alone.
        columns: how its cells are labelled.
        bounds: what it may take.

    Returns:
        the cells, and notes on what was chosen.

    Raises:
        EvaeError: a file that is too large, takes too long, or is no h5ad file of raw counts; messages call it by its
            own name.
    """
    path = path.resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise EvaeError("there is no such upload; upload the file again.")
    try:
        if path.stat().st_size > bounds.megabytes * 1_000_000:
            raise EvaeError(f"{path.name} is larger than {bounds.megabytes} MB; upload control cells only, or fewer.")
        return _read(path, columns, bounds)
    except EvaeError as error:
        raise EvaeError(str(error).replace(str(path), path.name)) from None
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the server gives each upload a folder of its own
            path.parent.rmdir()


def _read(path: Path, columns: LabelColumns, bounds: Bounds) -> tuple[ad.AnnData, list[str]]:
    options = json.dumps({"memory": bounds.memory, "most": bounds.cells, "columns": asdict(columns)})
    with tempfile.TemporaryDirectory() as scratch:  # of what reading unpacks, also if it is stopped
        try:
            done = subprocess.run(
                [sys.executable, "-m", READER, str(path), options],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=bounds.seconds,
                env=os.environ | {"TMPDIR": scratch, "OMP_NUM_THREADS": "1"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EvaeError(
                f"{path.name} took longer than {bounds.seconds:g} seconds to read; upload control cells only, or fewer."
            ) from None
    if done.returncode == 0:
        return unpacked(done.stdout)
    if done.returncode == FAULT:
        raise EvaeError(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    raise EvaeError(f"{path.name} cannot be read, or takes too much memory; upload control cells only, or fewer.")
