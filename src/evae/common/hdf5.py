"""HDF5 files that are closed in peace when the disk is full.

HDF5 keeps what it could not write and tries again when it closes its objects and when the process ends: objects then
complain one by one, and the process may end in a segmentation fault. So HDF5 writes through a Python file that takes
everything, remembers the first error and raises it once the HDF5 file is closed.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class _PatientFile(io.FileIO):
    """A file whose writes never fail; `error` holds the first error there was, after which nothing is written."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        size = left.nbytes
        while left and self.error is None:
            try:
                left = left[super().write(left) :]  # a disk that fills takes a part
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextmanager
def writable_hdf5(path: Path, new: bool = True) -> Iterator[h5py.File]:
    """An open HDF5 file to write to; closed when the block ends.

    Args:
        path: the file.
        new: make it, or write into the one that is there.

    Raises:
        OSError: the disk could not take all of it. The file is damaged then.
    """
    with _PatientFile(path, "w+b" if new else "r+b") as disk:
        try:
            with h5py.File(disk, "w" if new else "r+") as file:
                yield file
        finally:
            if disk.error is not None:
                raise disk.error
