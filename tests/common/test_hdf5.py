"""HDF5 on a disk that is full: one error, and no crash when the process ends."""

import subprocess
import sys

import h5py
import numpy as np

from evae.common.hdf5 import writable_hdf5

FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from evae.common.hdf5 import writable_hdf5
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))  # as if the disk had no more
try:
    with writable_hdf5(Path(sys.argv[1])) as file:
        for i in range(20):
            group = file.create_group(f"group {i}")
            group.attrs["name"] = "x" * 1000
            noise = np.random.default_rng(i).random(5_000)
            group.create_dataset("numbers", data=noise, chunks=(100,), compression="gzip")
except OSError as error:
    print("error", error.strerror)
"""


def test_a_full_disk_is_one_error_and_no_crash(tmp_path):
    for limit in (500, 30_000, 400_000):
        done = subprocess.run(
            [sys.executable, "-c", FULL, tmp_path / "a.h5", str(limit)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "error File too large\n", ""), done.stderr


def test_what_is_written_is_read_and_may_be_added_to(tmp_path):
    path, numbers = tmp_path / "a.h5", np.arange(100_000.0)
    with writable_hdf5(path) as file:
        file.create_dataset("numbers", data=numbers, compression="gzip")
    with writable_hdf5(path, new=False) as file:
        file["more"] = numbers[:5]
        del file["numbers"]
        file["numbers"] = numbers + 1
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["numbers"], numbers + 1)
        np.testing.assert_array_equal(file["more"], numbers[:5])
