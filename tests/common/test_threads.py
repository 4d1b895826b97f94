"""Work in threads: in order, bounded, with its errors."""

import threading
import time

import pytest

from evae.common.threads import in_threads, usable_cores


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    def slow_first(i):
        time.sleep(0.02 * (i == 0))
        return i * i

    assert list(in_threads(slow_first, iter(range(20)), workers)) == [i * i for i in range(20)]


def test_no_more_items_are_made_than_threads_and_one_are_ahead():
    made = []
    results = in_threads(lambda i: i, (made.append(i) or i for i in range(100)), 2)
    for i in range(50):
        next(results)
        assert len(made) <= i + 4


def test_an_error_comes_where_its_item_stands():
    def fail_at_two(i):
        if i == 2:
            raise ValueError("two")
        return i

    results = in_threads(fail_at_two, range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_several_threads_are_at_work():
    meet = threading.Barrier(2, timeout=20)  # breaks unless two come
    assert len(list(in_threads(lambda i: meet.wait(), range(2), 2))) == 2


def test_no_more_threads_than_were_asked_for(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for asked, cores in (("1", 1), ("3", 3), ("64", 8), ("", 8), ("4,2", 8), ("0", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert usable_cores() == cores
