"""Decoded tiles of one slide in memory, shared by the threads that read it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Raster = NDArray[np.uint8]
_LOCKS = 64  # far more than threads, so that two of them rarely wait for different tiles


class TileCache:
    """Holds at most `most_bytes`; what was used longest ago goes first. Safe for threads.

    Tiles are numbered within families (a level at a scale). Where it is known how often each of a
    family will be wanted, a tile goes with its last use: its memory, still warm in the processor's
    caches, then takes the next tile.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._tiles: OrderedDict[tuple[Hashable, int], Raster] = OrderedDict()
        self._uses: dict[Hashable, list[int]] = {}
        self._lock = Lock()
        self._making = [Lock() for _ in range(_LOCKS)]

    def expect(self, family: Hashable, uses: Sequence[int] | None) -> None:
        """How often each tile will be wanted from now on; None: nobody knows."""
        with self._lock:
            if uses is None:
                self._uses.pop(family, None)
            else:
                self._uses[family] = list(uses)

    def found(self, family: Hashable, number: int) -> Raster | None:
        """The tile if it is here, which is one use of it; not to be written to."""
        key = (family, number)
        with self._lock:
            tile = self._tiles.get(key)
            if tile is None:
                return None
            if self._last_use(family, number):
                del self._tiles[key]
                self._held_bytes -= tile.nbytes
            else:
                self._tiles.move_to_end(key)
            return tile

    def made(
        self, family: Hashable, number: int, make: Callable[[], Raster | None]
    ) -> Raster | None:
        """The same, made if it is still not here: threads that miss a tile together make it once.

        What `make` has no tile for is not remembered.
        """
        with self._making[hash((family, number)) % _LOCKS]:
            tile = self.found(family, number)
            if tile is None:
                tile = make()
                if tile is not None:
                    self._keep(family, number, tile)
            return tile

    def sole_use(self, family: Hashable, number: int) -> bool:
        """Whether the tile will be wanted just once and is not here: it need not come here then.

        That one use is over with the answer.
        """
        with self._lock:
            uses = self._uses.get(family)
            if uses is None or uses[number] != 1 or (family, number) in self._tiles:
                return False
            uses[number] = 0
            return True

    def _keep(self, family: Hashable, number: int, tile: Raster) -> None:
        with self._lock:
            if self._last_use(family, number):
                return
            self._tiles[family, number] = tile
            self._held_bytes += tile.nbytes
            while self._held_bytes > self._most_bytes:
                _, oldest = self._tiles.popitem(last=False)
                self._held_bytes -= oldest.nbytes

    def _last_use(self, family: Hashable, number: int) -> bool:
        uses = self._uses.get(family)
        if uses is None:
            return False
        uses[number] -= 1
        return uses[number] <= 0
