"""Streams of random numbers: their distributions, their independence, and what decides them."""

import numpy as np
import pytest
import torch
from scipy import stats

from evae.models.randomness_evae import EXACT, CellStreams, _mixed, draw_binomial, draw_normal, draw_uniform


def splitmix64(state):
    """The generator as published, on Python's whole numbers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    for state in (0, 1, 1234567, 2**63 + 5):
        x = (state + golden) % 2**64
        signed = x - 2**64 if x >= 2**63 else x
        assert int(_mixed(torch.tensor([signed]))[0]) % 2**64 == splitmix64(state)


@pytest.mark.parametrize(("kind", "law"), [("uniform", "uniform"), ("normal", "norm")])
def test_distribution_and_independence(kind, law):
    drawn = getattr(CellStreams(5, range(1000)), kind)(400)
    assert drawn.dtype == torch.float32
    assert stats.kstest(drawn.flatten().double().numpy(), law).pvalue > 1e-3
    for table in (drawn[:200], drawn.T[:200]):  # between cells, between draws
        correlation = torch.corrcoef(table).fill_diagonal_(0)
        assert correlation.abs().max() < 6 / table.shape[1] ** 0.5
    assert drawn.unique().numel() > 0.97 * drawn.numel()  # 24 bits repeat themselves, streams do not


def test_ends_of_the_range(monkeypatch):
    streams = CellStreams(0, range(1))
    for bits, low, high in ((0, -5.3, -5.1), (2**24 - 1, 5.1, 5.3)):
        monkeypatch.setattr(streams, "_bits", lambda n, device, bits=bits: torch.full((1, n), bits))
        assert 0 <= float(streams.uniform(1)) < 1
        assert low < float(streams.normal(1)) < high


def test_seed_and_place_decide():
    whole = CellStreams(3, range(10)).uniform(5)
    assert torch.equal(CellStreams(3, range(4, 6)).uniform(5), whole[4:6])
    assert torch.equal(CellStreams(3, range(0, 10, 3)).uniform(5), whole[::3])
    for other in (CellStreams(4, range(10)), CellStreams(3, range(10, 20))):
        assert not torch.isclose(other.uniform(5), whole).any()
    assert CellStreams(3, range(0)).uniform(5).shape == (0, 5)


def test_draws_follow_each_other():
    """Numbers depend on how many were drawn before, not on how they were asked for."""
    whole, pieces = CellStreams(3, range(4)).uniform(9), CellStreams(3, range(4))
    drawn = torch.cat([pieces.uniform(1), pieces.uniform(2, 2).flatten(1), pieces.uniform(4)], dim=1)
    assert torch.equal(drawn, whole)


def test_forks_go_on_where_their_parent_is():
    whole, parent = CellStreams(3, range(6)).uniform(7), CellStreams(3, range(6))
    parent.uniform(2)
    parts = [parent.fork(slice(0, 4)), parent.fork(slice(4, 6))]
    assert torch.equal(torch.cat([part.uniform(3) for part in parts]), whole[:, 2:5])
    parent.join(parts[-1])
    assert torch.equal(parent.uniform(2), whole[:, 5:])
    torch.rand(1, generator=parent.generators()[5])
    assert parent.fork(slice(4, 6)).generators()[1] is parent.generators()[5]


@pytest.mark.parametrize(("draw", "kind"), [(draw_uniform, "uniform"), (draw_normal, "normal")])
def test_one_stream_or_many(draw, kind):
    shape, device = (4, 3), torch.device("cpu")
    generator, whole = torch.Generator().manual_seed(1), {"uniform": torch.rand, "normal": torch.randn}[kind]
    assert torch.equal(draw(shape, device, generator), whole(4, 3, generator=generator.manual_seed(1)))
    assert torch.equal(draw(shape, device, CellStreams(1, range(4))), getattr(CellStreams(1, range(4)), kind)(3))


def test_branches_are_streams_of_their_own():
    parent = CellStreams(3, range(6), 2)
    parent.uniform(2)
    branches = [parent.branch(number).uniform(50) for number in range(3)]
    drawn = torch.stack([*branches, CellStreams(3, range(6)).uniform(50)])
    assert drawn.unique().numel() == drawn.numel()
    assert torch.equal(parent.branch(1)[2:4].uniform(50), branches[1][2:4])


def test_the_cells_of_a_batch_share_one_stream_wherever_they_are():
    first, second, other = CellStreams(3, range(4), 7), CellStreams(3, range(4, 8), 7), CellStreams(3, range(4), 8)
    assert first.of_batch().uniform(5).shape == (1, 5)
    assert torch.equal(first.branch(0).of_batch().uniform(5), second.branch(0).of_batch().uniform(5))
    assert not torch.isclose(first.of_batch().uniform(5), other.of_batch().uniform(5)).any()
    assert not torch.isclose(first.of_batch().uniform(5), first.uniform(5)).any()


@pytest.mark.parametrize("n", [8, 100, 4096])
def test_spread_numbers_leave_no_gap(n):
    for start in (0, 12345, 10**12):
        drawn = CellStreams(5, range(start, start + n)).spread().double().sort().values
        gaps = torch.cat([drawn.diff(), drawn[:1] + 1 - drawn[-1:]])
        assert gaps.max() < 2 / n
    once = torch.cat([CellStreams(seed, range(9, 10)).spread() for seed in range(2000)])
    assert stats.kstest(once.numpy(), "uniform").pvalue > 1e-3
    whole = CellStreams(5, range(20)).spread()
    assert torch.equal(CellStreams(5, range(10, 20)).spread(), whole[10:])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
@pytest.mark.parametrize("n", [0, 1, 2, 7, EXACT, EXACT + 1, 100, 3000])
def test_binomial_draws_have_their_distribution(n, share):
    counts = torch.full((200, 500), float(n))
    drawn = draw_binomial(counts, torch.full((200, 1), share), CellStreams(1, range(200)))
    assert drawn.min() >= 0
    assert drawn.max() <= n
    values, frequency = np.unique(drawn.numpy(), return_counts=True)
    expected = stats.binom.pmf(np.arange(n + 1), n, share)
    found = np.zeros(n + 1)
    found[values.astype(int)] = frequency / drawn.numel()
    noise = (expected * (1 - expected) / drawn.numel()) ** 0.5  # of the share of each number
    apart = np.abs(found - expected)
    assert (apart < 6 * noise + (3e-5 if n <= EXACT else 4e-3)).all()
    if n > EXACT:
        assert drawn.double().mean() == pytest.approx(n * share, rel=4e-3)
        assert drawn.double().var() == pytest.approx(n * share * (1 - share), rel=0.03)
