"""Stored tiles are decoded about once, however wide the slide: the order and the cache."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.geometry import Size
from preprocessing.slides.direct_order import reading_order
from preprocessing.slides.tile_cache import TileCache
from preprocessing.slides.tile_memory import SpareArrays

STORED = Size(256, 256)


def lattice(*, box: int, across: int, down: int, kept: float = 1.0):
    """(N, 4) boxes edge to edge, or that share of them, and the raster they lie in."""
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(down)), axis=-1).reshape(-1, 2) * box
    grid = grid[np.random.default_rng(0).random(len(grid)) < kept]
    return np.concatenate([grid, grid + box], axis=1), Size(across * box, down * box)


def tiles_under(box, raster: Size):
    left, top, right, bottom = (int(n) for n in box)
    for row in range(top // STORED.height, (bottom - 1) // STORED.height + 1):
        for col in range(left // STORED.width, (right - 1) // STORED.width + 1):
            yield row * -(-raster.width // STORED.width) + col


def decoded(boxes, raster: Size, *, order, uses, held: int) -> tuple[list[int], int]:
    """The tiles that had to be made, and the most that were held at a time."""
    cache, made = TileCache(held * TILE.nbytes), []
    cache.expect("family", uses)
    most = 0
    for box in boxes[order]:
        for number in tiles_under(box, raster):
            get(cache, "family", number, lambda number=number: made.append(number) or TILE)
        most = max(most, cache._held_bytes // TILE.nbytes)
    return made, most


@pytest.mark.parametrize("box", [224, 256, 448, 700])
@pytest.mark.parametrize("kept", [1.0, 0.4])
def test_every_tile_is_decoded_once_and_let_go_with_its_last_use(box, kept):
    boxes, raster = lattice(box=box, across=40, down=20, kept=kept)
    order = reading_order(boxes, raster=raster, tile=STORED, most_held=1300)
    assert sorted(order.boxes) == list(range(len(boxes)))
    made, most = decoded(boxes, raster, order=order.boxes, uses=order.uses.tolist(), held=1300)
    under = [number for each in boxes for number in tiles_under(each, raster)]
    assert sorted(made) == sorted(set(under))
    assert order.uses.tolist() == np.bincount(under, minlength=len(order.uses)).tolist()
    row_of_tiles = -(-raster.width // STORED.width)
    assert most <= row_of_tiles * -(-box // STORED.height) + 1


@pytest.mark.parametrize("box", [224, 448])
def test_a_slide_too_wide_for_the_memory_is_read_in_bands(box):
    """Row by row over the whole width, tiles are lost before the next row wants them."""
    boxes, raster = lattice(box=box, across=400, down=60)
    order = reading_order(boxes, raster=raster, tile=STORED, most_held=300)
    uses = order.uses.tolist()
    made, most = decoded(boxes, raster, order=order.boxes, uses=uses, held=300)
    assert len(made) < 1.03 * len(set(made))
    assert most <= 300
    plain = np.arange(len(boxes))
    made, _ = decoded(boxes, raster, order=plain, uses=uses, held=300)
    assert len(made) > 1.1 * len(set(made))


@settings(max_examples=60)
@given(
    corners=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=60),
    held=st.integers(0, 40),
)
def test_any_boxes_are_read_once_each_and_always_in_the_same_order(corners, held):
    starts = np.array(corners, dtype=np.int64).reshape(-1, 2)
    boxes = np.concatenate([starts, starts + np.array([300, 120])], axis=1)
    how = {"raster": Size(5300, 5120), "tile": Size(256, 240), "most_held": held}
    order, again = reading_order(boxes, **how), reading_order(boxes, **how)
    assert sorted(order.boxes) == list(range(len(corners)))
    assert order.boxes.tolist() == again.boxes.tolist()
    assert len(order.uses) == 21 * 22


def tile(value: int = 0):
    return np.full((10, 10, 3), value, dtype=np.uint8)


TILE = tile()


def get(cache: TileCache, family: str, number: int, make):
    found = cache.found(family, number)
    return cache.made(family, number, make) if found is None else found


class TestCache:
    def held(self, cache, numbers):
        """Which of those tiles need not be made."""
        return [n for n in numbers if get(cache, "a", n, lambda: None) is not None]

    def test_what_was_used_longest_ago_goes_first(self):
        cache = TileCache(3 * TILE.nbytes)
        for number in (1, 2, 3):
            get(cache, "a", number, lambda number=number: tile(number))
        assert get(cache, "a", 1, lambda: None).max() == 1
        get(cache, "a", 4, tile)
        assert self.held(cache, (1, 2, 3, 4)) == [1, 3, 4]

    def test_families_are_apart(self):
        cache = TileCache(3 * TILE.nbytes)
        cache.expect("a", [1, 1])
        for family in ("a", "b"):
            get(cache, family, 1, lambda: tile(7))
        assert get(cache, "a", 1, lambda: None) is None
        assert get(cache, "b", 1, lambda: None) is not None

    def test_a_tile_goes_with_its_last_use(self):
        cache = TileCache(1000 * TILE.nbytes)
        cache.expect("a", [3, 1])
        for _ in range(2):
            get(cache, "a", 0, tile)
            assert cache._held_bytes == TILE.nbytes
        get(cache, "a", 0, tile)
        get(cache, "a", 1, tile)
        assert cache._held_bytes == 0
        get(cache, "a", 0, tile)  # once more than was expected
        assert cache._held_bytes == 0
        cache.expect("a", None)
        get(cache, "a", 0, tile)
        assert self.held(cache, (0, 1)) == [0]

    def test_a_tile_wanted_once_need_not_be_held(self):
        cache = TileCache(10_000)
        assert not cache.sole_use("a", 0)
        cache.expect("a", [1, 2, 1])
        get(cache, "a", 1, tile)
        assert [cache.sole_use("a", number) for number in (0, 0, 1, 2)] == [
            True,
            False,  # that was its one use
            False,  # its last use, but it is here
            True,
        ]
        assert get(cache, "a", 1, lambda: None) is not None

    def test_a_tile_that_cannot_be_made_is_tried_again(self):
        cache = TileCache(10_000)
        assert get(cache, "a", 1, lambda: None) is None
        assert get(cache, "a", 1, lambda: tile(7)) is not None
        assert get(cache, "a", 1, lambda: None).max() == 7

    def test_an_error_leaves_the_cache_usable(self):
        cache = TileCache(10_000)

        def failing():
            raise OSError("disk is gone")

        with pytest.raises(OSError, match="disk is gone"):
            get(cache, "a", 1, failing)
        assert get(cache, "a", 1, tile) is not None

    @pytest.mark.parametrize("known", [True, False])
    def test_threads_that_want_one_tile_make_it_once(self, known):
        cache, made, together = TileCache(10_000), [], threading.Barrier(8)
        if known:
            cache.expect("a", [8 * 5] * 10)

        def make():
            made.append(threading.get_ident())
            return tile()

        def want():
            together.wait()
            for number in range(50):
                assert get(cache, "a", number % 10, make) is not None

        threads = [threading.Thread(target=want) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 10
        assert cache._held_bytes == (0 if known else 10 * TILE.nbytes)


class TestSpareArrays:
    def test_an_array_is_given_again_once_nobody_has_it(self):
        spares = SpareArrays((4, 3), most=5)
        first = spares.take(4)
        at = first.ctypes.data
        assert spares.take(4).ctypes.data != at
        view = first[1:, 0]
        del first
        assert spares.take(4).ctypes.data != at
        del view
        part = spares.take(2)
        assert (part.ctypes.data, part.shape) == (at, (2, 3))
        assert spares.take(4).ctypes.data != at  # its first part is taken

    def test_no_more_are_kept_than_that(self):
        spares = SpareArrays((4, 3), most=2)
        taken = [spares.take(4) for _ in range(6)]
        assert len({each.ctypes.data for each in taken}) == 6
        assert len(spares._arrays) == 2
