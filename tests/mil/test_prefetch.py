"""Loads in order, a bounded number ahead, whatever each of them takes."""

import threading
import time
from contextlib import closing
from functools import partial

import pytest

from mil.training.prefetch import ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads):
    def load(i):
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i

    assert list(ahead((partial(load, i) for i in range(20)), threads=threads)) == list(range(20))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_no_more_are_made_than_can_wait(threads):
    made, surplus = [], []
    loads = (partial(made.append, i) for i in range(20))
    for taken, _ in enumerate(ahead(loads, threads=threads)):
        time.sleep(0.02)  # the loads would run on if nothing held them
        surplus.append(len(made) - taken - 1)
    assert max(surplus) == threads


def test_the_next_is_made_while_the_last_is_used():
    started = threading.Event()
    with closing(ahead([lambda: 0, started.set], threads=2)) as loads:
        next(loads)
        assert started.wait(timeout=10)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_failed_load_is_raised_where_it_was_to_be_used(threads):
    def fail():
        raise OSError("gone")

    with closing(ahead([lambda: 0, fail, lambda: 2], threads=threads)) as loads:
        assert next(loads) == 0
        with pytest.raises(OSError, match="gone"):
            next(loads)


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    with closing(ahead((partial(int, i) for i in range(1000)), threads=3)) as loads:
        next(loads)
    assert threading.active_count() == before
