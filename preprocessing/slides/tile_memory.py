"""Memory for batches of tiles, used again: the system clears new memory, which takes time."""

import sys
from threading import Lock

import numpy as np
from numpy.typing import NDArray


def _holders(arrays: list[NDArray[np.uint8]], number: int) -> int:
    return sys.getrefcount(arrays[number])


_NOBODY_ELSE = _holders([np.empty(0, dtype=np.uint8)], 0)


class SpareArrays:
    """uint8 arrays of one shape, each given out again once nobody holds it or a view of it.

    At most `most` are kept; what is asked for beyond them is new. Safe for threads.
    """

    def __init__(self, shape: tuple[int, ...], most: int) -> None:
        self._shape, self._most = shape, most
        self._arrays: list[NDArray[np.uint8]] = []
        self._lock = Lock()

    def take(self, length: int) -> NDArray[np.uint8]:
        """The first `length` entries of an array; what is in them means nothing."""
        with self._lock:
            for number in range(len(self._arrays)):
                if _holders(self._arrays, number) == _NOBODY_ELSE:
                    array = self._arrays[number]
                    break
            else:
                array = np.empty(self._shape, dtype=np.uint8)
                if len(self._arrays) < self._most:
                    self._arrays.append(array)
            return array if length == len(array) else array[:length]
