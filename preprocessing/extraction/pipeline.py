"""Two ways to do work beside the main thread: ahead of it, and behind it. Both are bounded.

Whoever fails, nobody waits for ever: an error of the thread ahead is raised where its next item
is asked for, closing ends its thread before anything else goes on, and an error of the thread
behind is raised where the next piece of work is handed over.
"""

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class Ahead(Generic[T]):
    """A generator run by a thread of its own, at most `limit` items ahead of who takes them.

    The next item is begun only when fewer than `limit` wait. `discard` gets every item that was
    made and never taken. Use it as a context manager; the generator is closed in its own thread.
    """

    def __init__(
        self,
        items: Generator[T],
        *,
        limit: int,
        name: str,
        discard: Callable[[T], object] = lambda _: None,
    ) -> None:
        self._items = items
        self._discard = discard
        self._free = threading.Semaphore(limit)
        self._made: SimpleQueue[T | _End] = SimpleQueue()
        self._closed = threading.Event()
        self._end: _End | None = None
        # A daemon: `close` waits for it, but once that is interrupted the process may end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._end is None:
            item = self._made.get()
            if not isinstance(item, _End):
                self._free.release()
                return item
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        raise StopIteration

    @property
    def waiting(self) -> bool:
        """Whether the next item can be had at once."""
        return not self._made.empty()

    def close(self) -> None:
        """Ends the thread after the item that it is at."""
        self._closed.set()
        self._free.release()
        self._thread.join()
        while not self._made.empty():
            item = self._made.get()
            if not isinstance(item, _End):
                self._discard(item)

    def _run(self) -> None:
        try:
            with closing(self._items):
                self._make_all()
        except BaseException as error:  # noqa: BLE001 - raised where the next item is asked for
            self._made.put(_End(error))
        else:
            self._made.put(_End(None))

    def _make_all(self) -> None:
        while True:
            self._free.acquire()
            if self._closed.is_set():
                return
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._made.put(item)


class Behind(Generic[T]):
    """Work done by one thread, of which at most one piece waits or runs at a time."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._running: Future[T] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        unseen = self._running.exception() if self._running is not None else None
        if unseen is not None:
            # Only one of two errors can be raised, and the other came first.
            _log.error("besides, this failed", exc_info=unseen)

    def submit(self, work: Callable[[], T]) -> T | None:
        """Waits for the piece before and gives its result, if there was one; raises its error."""
        before = self.result()
        self._running = self._pool.submit(work)
        return before

    def result(self) -> T | None:
        """Waits for what was submitted last; None where nothing was, or it was given already."""
        running, self._running = self._running, None
        return None if running is None else running.result()
