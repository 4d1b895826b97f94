"""Row groups are decoded once while there is room for them, and read from few open files."""

import os
import platform
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import evae.data.streaming.loader as dataset
from evae.data.rows import RowFormat
from evae.data.streaming import row_groups
from evae.data.streaming.loader import CellLoader


class Reads:
    """What was read from which shard, and how many shards were open at once."""

    def __init__(self):
        self.groups: list[tuple[str, int]] = []
        self.checks = self.open = self.most_open = 0


@pytest.fixture
def reads(monkeypatch) -> Reads:
    seen = Reads()

    class Counted(pq.ParquetFile):
        def __init__(self, path, **kwargs):
            super().__init__(path, **kwargs)
            self.name = path.name
            seen.open += 1
            seen.most_open = max(seen.most_open, seen.open)

        def read_row_group(self, i, **kwargs):
            seen.groups.append((self.name, i))
            return super().read_row_group(i, **kwargs)

        def close(self, force=False):
            seen.open -= 1
            super().close(force)

    check = RowFormat.check

    def counted(*args):
        seen.checks += 1
        check(*args)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    monkeypatch.setattr(RowFormat, "check", counted)
    return seen


def _counts(loader) -> list:
    return [batch["counts"].numpy().tolist() for batch in loader]


def test_cells_that_fit_are_decoded_once(folder, reads):
    """Eight lanes cut the sequence of eight shards inside of them, and each epoch elsewhere."""
    list(CellLoader(folder, batch_size=56, epochs=3, prefetch=0))
    assert len(reads.groups) == len(set(reads.groups)) == 8


@pytest.mark.parametrize("groups", [0, 3])
def test_no_more_is_kept_than_there_is_room_for(folder, reads, monkeypatch, groups):
    options = {"batch_size": 56, "epochs": 3, "prefetch": 0}
    whole = _counts(CellLoader(folder, **options))
    shard = "data/train-00000-of-00008.parquet"
    size = CellLoader(folder)._groups.read(shard, 0, pq.read_metadata(folder / shard).num_rows).nbytes
    monkeypatch.setattr(dataset, "KEPT_BYTES", int(groups * 1.1 * size))
    reads.groups, reads.checks = [], 0
    loader = CellLoader(folder, **options)
    assert _counts(loader) == whole
    assert sum(table.nbytes for table in loader._groups._kept.values()) <= groups * 1.1 * size
    assert len(loader._groups._kept) == groups
    assert len(reads.groups) == groups + 3 * (8 - groups)  # eight lanes, yet none twice in an epoch
    assert reads.checks == 8  # once each, however often it was read


def test_a_single_pass_keeps_nothing(folder):
    loader = CellLoader(folder, batch_size=56, epochs=1)
    list(loader)
    assert not loader._groups._kept


def test_few_shards_are_open_at_once(folder, reads, monkeypatch):
    monkeypatch.setattr(row_groups, "OPEN_SHARDS", 3)
    list(CellLoader(folder, batch_size=56, epochs=1, prefetch=0))
    assert reads.most_open == 4  # the new one is open before the oldest is closed
    assert {name for name, _ in reads.groups} == {f"train-{i:05d}-of-00008.parquet" for i in range(8)}


FREED = """
import resource
import numpy as np
from evae.data.streaming.batches import keep_freed_memory

def used(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        for array in [np.empty(3 << 20, np.uint8) for _ in range(4)]:
            array[:] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
used(2)
print(used(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of the C library glibc")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_TRIM_THRESHOLD_": "65536"}], ids=["alone", "as Dask sets it"])
def test_memory_that_was_freed_is_used_again(environment):
    """Without page faults: 20 times 3,072 pages otherwise (numpy asks for huge pages from 4 MiB on).

    distributed 2026.8 sets the variable for its workers and leaves it in its own process; glibc then no longer learns
    from what is freed which memory to keep.
    """
    environment = os.environ | environment
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 3_072
