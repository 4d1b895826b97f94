import numpy as np
import pyarrow as pa
import pytest

from evae.data.preparing.shards import MAX_SHARDS, SHARD_BYTES, plan_rows, shard_count
from evae.data.rows import binary_rows, flat_values


@pytest.mark.parametrize(
    ("n_rows", "row_bytes", "wanted"),
    [
        (0, 1e3, 0),
        (3, 1e3, 1),
        (8, 1e3, 8),
        (262_144, 1e3, 8),
        (640_000, 1e3, 64),
        (10_000_000, 1e3, 128),
        (1_300_000, 13e3, 64),
        (200_000, 100e3, 128),
        (100_000_000, 13e3, MAX_SHARDS),
    ],
)
def test_shard_count(n_rows, row_bytes, wanted):
    assert shard_count(n_rows, row_bytes) == wanted
    if 0 < wanted < MAX_SHARDS:
        assert n_rows * row_bytes / wanted <= SHARD_BYTES


def test_every_kept_row_has_one_place():
    rng = np.random.default_rng(0)
    kept, held_out = rng.random(1000) < 0.9, rng.random(1000) < 0.2
    plan = plan_rows(kept, held_out, seed=0)
    assert ((plan.split >= 0) == kept).all()
    assert ((plan.split == 2) == (kept & held_out)).all()
    for s in range(3):
        assert sorted(plan.place[plan.split == s]) == list(range((plan.split == s).sum()))
    sizes = np.bincount(plan.shard[kept], minlength=len(plan.shards))
    assert [(p, n) for p, n in plan.shards] == [(p, n) for (p, _), n in zip(plan.shards, sizes, strict=True)]
    order = np.lexsort((plan.place, plan.split))
    order = order[plan.split[order] >= 0]
    assert (np.diff(plan.shard[order]) >= 0).all()  # places rise through the shards


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<u4"])
def test_binary_columns_are_the_bytes_and_come_back_from_slices_and_chunks(dtype):
    values = np.random.default_rng(0).integers(0, 200, 50).astype(dtype)
    indptr = np.array([0, 3, 3, 20, 21, 50])
    column = binary_rows(values, indptr)
    assert column[2].as_py() == values[3:20].tobytes()
    assert column[1].as_py() == b""
    chunked = pa.chunked_array([column.slice(2, 3), column.slice(0, 2)])
    flat, ends = flat_values(chunked, np.dtype(dtype))
    np.testing.assert_array_equal(flat, np.concatenate([values[3:], values[:3]]))
    assert ends.tolist() == [0, 17, 18, 47, 50, 50]
    flat, ends = flat_values(pa.chunked_array([column.slice(3, 1)]), np.dtype(dtype))
    np.testing.assert_array_equal(flat, values[20:21])
