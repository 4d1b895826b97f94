"""Prefetching changes when items are made, not which."""

import threading

import pytest

from evae.common.prefetch import prefetch


def test_items_come_in_order_from_another_thread():
    made = []

    def source():
        for i in range(50):
            made.append(threading.current_thread())
            yield i

    assert list(prefetch(source(), 3)) == list(range(50))
    assert threading.current_thread() not in made


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        raise KeyError("lost")

    items = prefetch(source(), 5)
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)


def test_no_more_than_so_many_are_made_ahead_and_none_after_the_end():
    made, full = [], threading.Event()

    def source():
        for i in range(1000):
            made.append(i)
            if i == 5:
                full.set()
            yield i

    before = threading.active_count()
    items = prefetch(source(), 4)
    assert next(items) == 0
    assert full.wait(10)  # one in hand here, four in the queue, one waiting for room
    items.close()
    assert threading.active_count() == before
    assert len(made) <= 7
