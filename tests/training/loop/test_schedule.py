"""The learning rate against its formula."""

import math

import pytest

from evae.training.loop.schedule import learning_rate_at


def rates(warmup, total):
    return [learning_rate_at(s, peak=2.0, warmup_steps=warmup, max_steps=total) for s in range(total + 1)]


def test_warm_up_rises_in_equal_steps_to_the_peak():
    assert rates(4, 10)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_cosine_falls_from_the_peak_to_zero():
    values = rates(4, 10)
    assert values[4:] == pytest.approx([1 + math.cos(math.pi * s / 6) for s in range(7)])
    assert values[10] == 0.0
    assert min(values[:10]) > 0


def test_no_warm_up_starts_at_the_peak():
    assert rates(0, 5)[0] == 2.0


def test_warm_up_longer_than_the_run_is_only_warm_up():
    assert rates(20, 5)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
