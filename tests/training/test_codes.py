"""The in-memory stream of codes: order, ranks, resume."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from evae.models.contract_evae import EvaeError
from evae.training.codes import CodeBatches, EncodedCells, encode_cells, joined, thinned


def cells(n=10):
    ids = np.arange(n)
    return EncodedCells(
        codes=np.stack([ids, ids + 60_000], 1).astype(np.uint16),
        perturbation_ids=(ids % 3).astype(np.int32),
        cell_type_ids=(ids % 2).astype(np.int32),
        library_size=ids.astype(np.float32) + 0.5,
    )


def rows(stream, n):
    source = iter(stream)
    return [next(source)["codes"][:, 0].tolist() for _ in range(n)]


def test_every_epoch_holds_every_cell_once_in_another_order():
    seen = [row for batch in rows(CodeBatches(cells(), 4), 5) for row in batch]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_columns_stay_together():
    batch = next(iter(CodeBatches(cells(), 8)))
    ids = batch["codes"][:, 0]
    assert torch.equal(batch["codes"][:, 1], ids + 60_000)
    assert torch.equal(batch["perturbation_ids"], ids % 3)
    assert torch.equal(batch["cell_type_ids"], ids % 2)
    assert torch.equal(batch["library_size"], ids + 0.5)


def test_two_ranks_see_what_one_with_twice_the_batch_sees():
    one = rows(CodeBatches(cells(), 6, seed=2), 7)
    ranks = [rows(CodeBatches(cells(), 3, seed=2, rank=r, world_size=2), 7) for r in (0, 1)]
    assert one == [a + b for a, b in zip(*ranks, strict=True)]


@pytest.mark.parametrize("after", [0, 2, 3, 6])
def test_resume_is_exact_with_other_ranks_and_batch_sizes(after):
    whole = rows(CodeBatches(cells(), 4, seed=1), 12)
    stream = CodeBatches(cells(), 4, seed=1)
    rows(stream, after)
    state = json.loads(json.dumps(stream.state_dict()))
    halves = [CodeBatches(cells(), 2, seed=1, rank=r, world_size=2) for r in (0, 1)]
    for half in halves:
        half.load_state_dict(state)
    a, b = (rows(half, 12 - after) for half in halves)
    assert [x + y for x, y in zip(a, b, strict=True)] == whole[after:]


def test_a_batch_larger_than_the_data_spans_epochs():
    (batch,) = rows(CodeBatches(cells(3), 7), 1)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


class FirstGenes(nn.Module):
    def encode(self, counts, gene_ids=None):
        return (counts[:, :2] + gene_ids[:, :2]).long()


def test_encoding_keeps_order_and_large_codes():
    def batch(start):
        ids = torch.arange(start, start + 2)
        return {
            "counts": torch.full((2, 2), 65_000.0),
            "gene_ids": torch.stack([ids, ids], 1),
            "library_size": ids.float(),
            "perturbation_ids": ids,
            "cell_type_ids": ids,
        }

    encoded = encode_cells(FirstGenes(), [batch(0), batch(2)], Accelerator(cpu=True))
    assert encoded.codes.dtype == np.uint16
    assert encoded.codes[:, 0].tolist() == [65_000, 65_001, 65_002, 65_003]
    assert encoded.perturbation_ids.tolist() == [0, 1, 2, 3]


RANKS = """
import sys
import numpy as np
import torch
from accelerate import Accelerator
from evae.training.codes import encode_cells
from toy_run import fork_ranks

class Doubled(torch.nn.Module):
    calls = 0

    def tokens_and_latents(self, counts, gene_ids):
        self.calls += 1
        return (2 * counts[:, :3]).long(), counts[:, :3, None] / 3

def batches():
    for start in range(0, 23, 4):  # six batches, the last of three cells
        ids = torch.arange(start, min(start + 4, 23))
        counts = ids[:, None] + torch.arange(5.0)
        yield {"counts": counts, "gene_ids": counts.long(), "library_size": counts.sum(1)} | dict.fromkeys(
            ("perturbation_ids", "cell_type_ids"), ids)

def work(folder, ranks):
    accelerator, tokenizer = Accelerator(cpu=True), Doubled()
    found = encode_cells(tokenizer, batches(), accelerator, with_latents=True)
    labels = np.stack([found.perturbation_ids, found.cell_type_ids, found.library_size])
    name = f"{folder}/{ranks}-{accelerator.process_index}.npz"
    np.savez(name, codes=found.codes, latents=found.latents, labels=labels, calls=tokenizer.calls)

for world in (1, 2, 4):
    codes = fork_ranks(world, {}, work, folder=sys.argv[1], ranks=world)
    assert codes == [0] * world, codes
"""


def test_ranks_share_the_encoding_and_have_the_same_cells(run_with_ranks, tmp_path):
    run_with_ranks(RANKS)
    alone = np.load(tmp_path / "1-0.npz")
    assert alone["calls"] == 6
    for world in (2, 4):
        for rank in range(world):
            shared = np.load(tmp_path / f"{world}-{rank}.npz")
            assert shared["calls"] == -(-6 // world)
            for name in ("codes", "latents", "labels"):
                np.testing.assert_array_equal(shared[name], alone[name])


def test_no_cells_is_an_error():
    with pytest.raises(EvaeError, match="no cells"):
        encode_cells(FirstGenes(), [], Accelerator(cpu=True))


def test_thinning_takes_whole_molecules_away_and_nothing_else():
    ids = torch.arange(400)
    batch = {"counts": torch.full((400, 50), 10.0), "library_size": ids.float(), "perturbation_ids": ids}
    (once,), (again,), (other,) = (list(thinned([batch], seed)) for seed in (1, 1, 2))
    kept = once["counts"]
    assert torch.equal(kept, kept.round())
    assert 0 <= kept.min() < kept.max() <= 10
    shares = kept.mean(1) / 10  # of 500 molecules a cell: the noise is at most 0.022
    assert 0.4 < shares.min() < 0.55
    assert 0.95 < shares.max() <= 1
    assert abs(shares.mean() - 0.75) < 0.03
    assert torch.equal(again["counts"], kept)
    assert not torch.equal(other["counts"], kept)
    assert all(torch.equal(once[name], batch[name]) for name in ("library_size", "perturbation_ids"))


def test_joined_encodings_follow_one_another():
    both = joined([cells(4), cells(3)])
    assert both.codes[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert both.library_size.tolist() == [0.5, 1.5, 2.5, 3.5, 0.5, 1.5, 2.5]
