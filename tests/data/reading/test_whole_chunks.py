"""Runs of compressed data sets are those that HDF5 reads."""

import zlib

import h5py
import numpy as np
import pytest

from evae.data.reading.whole_chunks import read_run

SIZE = 7
STORED = {
    "gzip": {"chunks": (SIZE,), "compression": "gzip"},
    "shuffled": {"chunks": (SIZE,), "compression": "gzip", "shuffle": True},
    "checked": {"chunks": (SIZE,), "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (SIZE,), "compression": "lzf"},
    "chunks": {"chunks": (SIZE,)},
    "plain": {},
}


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "runs.h5", "w") as file:
        yield file


@pytest.mark.parametrize("dtype", ["<f4", ">i8", "<u2"])
@pytest.mark.parametrize("how", STORED)
def test_every_run(file, how, dtype, monkeypatch):
    values = np.random.default_rng(0).integers(0, 50, 30).astype(dtype)
    stored = file.create_dataset("values", data=values, **STORED[how])
    if how in ("gzip", "shuffled"):  # not by HDF5, which inflates one chunk at a time
        monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    for low, high in ((0, 30), (0, 1), (6, 8), (7, 14), (13, 29), (28, 30), (29, 30)):
        found = read_run(stored, low, high)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values[low:high])


@pytest.mark.parametrize("how", STORED)
def test_what_was_never_written_and_nothing(file, how):
    stored = file.create_dataset("values", (30,), "f4", fillvalue=3, **STORED[how])
    stored[:5] = 1
    np.testing.assert_array_equal(read_run(stored, 3, 30), [1, 1, *[3] * 25])
    assert len(read_run(stored, 4, 4)) == 0


def test_a_chunk_that_a_filter_skipped(tmp_path):
    """As HDF5 writes chunks that a filter does not make smaller; its mask says which filters."""
    values = np.arange(30, dtype="f4")
    for mask, packed in ((1, zlib.compress(values[:SIZE].tobytes())), (3, values[:SIZE].tobytes())):
        with h5py.File(tmp_path / "skipped.h5", "w") as file:
            stored = file.create_dataset("values", data=values, **STORED["shuffled"])
            stored.id.write_direct_chunk((0,), packed, filter_mask=mask)
        with h5py.File(tmp_path / "skipped.h5") as file:  # until then HDF5 takes it for one that was not skipped
            np.testing.assert_array_equal(read_run(file["values"], 2, 12), values[2:12])


def test_a_damaged_chunk_is_an_error_of_hdf5(file):
    stored = file.create_dataset("values", data=np.arange(30.0), **STORED["gzip"])
    stored.id.write_direct_chunk((SIZE,), b"no gzip")
    with pytest.raises(OSError, match="filter"):
        read_run(stored, 0, 30)
    np.testing.assert_array_equal(read_run(stored, 0, SIZE), np.arange(SIZE))
