"""Results of slow loads in order, the next ones being made while the last one is used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(loads: Iterable[Callable[[], T]], *, threads: int) -> Generator[T]:
    """The results of `loads`; beside the one in use, `threads` are under way or wait to be taken.

    0 threads: each is made when it is asked for. Close the generator if it is left early.
    """
    if threads == 0:
        for load in loads:
            yield load()
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for load in loads:
                waiting.append(pool.submit(load))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for load in waiting:
                load.cancel()
