import logging
import threading
import time

import pytest

from preprocessing.extraction.pipeline import Ahead, Behind

SECONDS = 20  # far more than anything here takes, so that a deadlock is a failure and no hang


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    ends = time.monotonic() + SECONDS
    while (left := set(threading.enumerate()) - before) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not left


def wait_until(condition):
    ends = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < ends:
        time.sleep(0.001)
    assert condition()


class Counting:
    """A generator that tells how far it got and whether it was closed."""

    def __init__(self, count, *, fails_at=None):
        self.made, self.closed_in = 0, None
        self.items = self._run(count, fails_at)

    def _run(self, count, fails_at):
        try:
            for number in range(count):
                if number == fails_at:
                    raise RuntimeError(f"item {number}")
                self.made += 1
                yield number
        finally:
            self.closed_in = threading.current_thread().name


class TestAhead:
    def test_gives_the_same_in_the_same_order(self):
        with Ahead(Counting(100).items, limit=3, name="ahead") as items:
            assert list(items) == list(range(100))
            assert list(items) == []

    @pytest.mark.parametrize("limit", [1, 4])
    def test_runs_ahead_as_far_as_it_may_and_no_farther(self, limit):
        source = Counting(100)
        with Ahead(source.items, limit=limit, name="ahead") as items:
            wait_until(lambda: source.made == limit)
            assert items.waiting
            for taken in range(1, 10):
                next(items)
                wait_until(lambda done=taken + limit: source.made == done)
                time.sleep(0.002)
                assert source.made == taken + limit

    def test_error_comes_after_the_items_before_it_and_again(self):
        source = Counting(10, fails_at=3)
        with Ahead(source.items, limit=8, name="ahead") as items:
            assert [next(items) for _ in range(3)] == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(RuntimeError, match="item 3"):
                    next(items)

    @pytest.mark.parametrize("taken", [0, 1, 5])
    def test_closing_early_ends_the_thread_and_the_generator_in_it(self, taken):
        source, discarded = Counting(10**9), []
        with Ahead(source.items, limit=2, name="ahead", discard=discarded.append) as items:
            for _ in range(taken):
                next(items)
            wait_until(lambda: source.made == taken + 2)
        assert source.closed_in == "ahead"
        assert discarded == [taken, taken + 1]

    def test_failing_consumer_leaves_nothing_behind(self):
        source = Counting(10**9)

        def consume():
            with Ahead(source.items, limit=2, name="x") as items:
                return [1 / (number - 3) for number in items]

        with pytest.raises(ZeroDivisionError):
            consume()
        assert source.closed_in == "x"

    def test_closing_while_an_item_is_being_made(self):
        begun, go_on = threading.Event(), threading.Event()

        def slow():
            yield 1
            begun.set()
            go_on.wait(SECONDS)
            yield 2

        discarded = []
        with Ahead(slow(), limit=1, name="ahead", discard=discarded.append) as items:
            assert next(items) == 1
            assert begun.wait(SECONDS)
            threading.Timer(0.05, go_on.set).start()
        assert discarded == [2]

    def test_one_behind_another_ends_with_it(self):
        source = Counting(10**9)

        def doubled():
            with Ahead(source.items, limit=1, name="inner") as inner:
                for number in inner:
                    yield 2 * number

        with Ahead(doubled(), limit=2, name="outer") as items:
            assert [next(items) for _ in range(3)] == [0, 2, 4]
        assert source.closed_in == "inner"


class TestBehind:
    def test_results_come_one_late(self):
        with Behind("behind") as behind:
            assert behind.submit(lambda: 1) is None
            assert behind.submit(lambda: 2) == 1
            assert behind.result() == 2
            assert behind.result() is None

    def test_only_one_piece_waits(self):
        go_on, began = threading.Event(), []

        def work():
            began.append(threading.current_thread().name)
            go_on.wait(SECONDS)

        with Behind("behind") as behind:
            behind.submit(work)
            wait_until(lambda: len(began) == 1)
            threading.Timer(0.05, go_on.set).start()
            behind.submit(work)  # returns only when the first is done
            assert go_on.is_set()
        assert began[0].startswith("behind")

    def test_error_is_raised_where_the_next_piece_is_handed_over(self):
        with Behind("behind") as behind:
            behind.submit(lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                behind.submit(lambda: 2)
            assert behind.result() is None

    def test_of_two_errors_the_second_is_told_in_the_log(self, caplog):
        def both():
            with Behind("behind") as behind:
                behind.submit(lambda: 1 / 0)
                raise KeyError("first")

        with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match="first"):
            both()
        assert "ZeroDivisionError" in caplog.text
