"""Runs of a one-dimensional HDF5 data set that was compressed by gzip: its chunks are inflated without HDF5's lock.

HDF5 inflates one chunk at a time in a process, whatever the number of threads; here every thread inflates its own.
What was compressed in another way, or not at all, is read by HDF5.
"""

import zlib
from typing import Any

import h5py
import numpy as np

DEFLATE, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
READ_HERE = ([DEFLATE], [SHUFFLE, DEFLATE])  # the filters, in the order in which they were applied


def read_run(stored: Any, low: int, high: int) -> np.ndarray:
    """The values low..high of an array, as `stored[low:high]`.

    Raises:
        OSError: they cannot be read.
    """
    filters = _filters(stored) if isinstance(stored, h5py.Dataset) and stored.dtype.kind in "iuf" else []
    if filters not in READ_HERE or low >= high:
        return np.asarray(stored[low:high])
    size, kind = stored.chunks[0], stored.dtype
    values = np.empty(high - low, dtype=kind)
    for start in range(low // size * size, high, size):
        chunk = _chunk(stored.id, start, size, kind, SHUFFLE in filters)
        if chunk is None:
            return np.asarray(stored[low:high])
        own = chunk[max(0, low - start) : high - start]
        first = max(low, start) - low
        values[first : first + len(own)] = own
    return values


def _chunk(stored: h5py.h5d.DatasetID, start: int, size: int, kind: np.dtype, shuffled: bool) -> np.ndarray | None:
    """The values of the chunk that begins at `start`; None where it is not stored as the others."""
    try:
        skipped, packed = stored.read_direct_chunk((start,))
        content = zlib.decompress(packed, bufsize=size * kind.itemsize)
    except (OSError, RuntimeError, zlib.error):  # never written, or damaged: HDF5 says which
        return None
    if skipped or len(content) != size * kind.itemsize:
        return None
    if shuffled:  # the first bytes of all values, then the second ones, ...
        return np.frombuffer(content, np.uint8).reshape(-1, size).T.copy().view(kind).ravel()
    return np.frombuffer(content, kind)


def _filters(stored: h5py.Dataset) -> list[int]:
    made = stored.id.get_create_plist()
    return [made.get_filter(i)[0] for i in range(made.get_nfilters())]
