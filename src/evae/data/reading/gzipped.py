"""Files that were gzipped as a whole, as GEO serves them: unpacked once, beside the conversion or for the while.

HDF5 jumps about in a file, and a gzip stream can only be read from its start, so it is not read in place.
"""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from evae.common.files import atomic_write
from evae.models.contract_evae import EvaeError

START = b"\x1f\x8b"
ENDINGS = (".h5ad.gz", ".h5.gz", ".h5mu.gz", ".loom.gz")


def is_gzipped(path: Path) -> bool:
    """Whether it is an HDF5 file in gzip, by its name and first bytes."""
    if not path.is_file() or not path.name.lower().endswith(ENDINGS):
        return False
    with path.open("rb") as file:
        return file.read(len(START)) == START


def unpacked(path: Path, scratch: Path | None) -> tuple[Path, Callable[[], None]]:
    """The unpacked file, and what removes it.

    Args:
        path: the gzipped file.
        scratch: a folder that keeps it for other processes and a later run; a temporary one if None.

    Raises:
        EvaeError: the file is cut or damaged.
    """
    if scratch is not None:
        file = scratch / path.name[: -len(".gz")]
        if not file.is_file():
            with atomic_write(file) as temporary:
                _unpack(path, temporary)
        return file, _keep
    folder = TemporaryDirectory(prefix="evae-")
    file = Path(folder.name) / path.name[: -len(".gz")]
    try:
        _unpack(path, file)
    except BaseException:
        folder.cleanup()
        raise
    return file, folder.cleanup


def _unpack(path: Path, target: Path) -> None:
    try:
        with gzip.open(path) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 22)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise  # the disk
        raise EvaeError(f"{path} is damaged, or was not fetched to its end ({error}); fetch it anew.") from error


def _keep() -> None:
    """A scratch folder is removed by whoever made it."""
