"""Files that are no slides, or hold levels that are none, and files that go away."""

import os
from math import ceil, floor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from tiff_files import TILE_PX, damage_tile, noise, write_tiff

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Size
from preprocessing.manifest import SlideRow
from preprocessing.slides.slide import Slide, levels_of, open_slide


def row_of(path: Path, mpp: float | None = None) -> SlideRow:
    return SlideRow(path.stem, "patient", path, mpp)


@pytest.mark.parametrize("sizes", [[(800, 820), (200, 200)], [(800, 800), (200, 100)]])
def test_a_level_that_is_no_picture_of_the_whole_slide_is_refused(tmp_path, sizes):
    """openslide takes it for one, and every tile read there would lie elsewhere."""
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as tiff:
        for n, size in enumerate(sizes):
            tiff.write(noise(*size), tile=(256, 256), subfiletype=min(n, 1), metadata=None)
    wrong = r"level 1 of 200 x .* px is 4 times smaller than level 0 in width and .* in height"
    with pytest.raises(UnreadableSlide, match=f"slide 's'.*s\\.tif: .*{wrong}"):
        Slide(row_of(path, 0.5))


@given(
    whole=st.tuples(st.integers(64, 10**6), st.integers(64, 10**6)),
    factors=st.lists(st.integers(2, 256), max_size=4, unique=True).map(sorted),
    round_to=st.sampled_from([floor, round, ceil]),
)
def test_sizes_rounded_to_whole_pixels_make_levels(whole, factors, round_to):
    sizes = [whole, *(tuple(max(1, round_to(n / f)) for n in whole) for f in factors)]
    means = [(whole[0] / w + whole[1] / h) / 2 for w, h in sizes]
    handle = SimpleNamespace(level_dimensions=sizes, level_downsamples=means)
    assert [level.downsample for level in levels_of(cast(openslide.OpenSlide, handle))] == means


def test_the_slide_outlives_that_its_file_is_away_for_a_while(tmp_path):
    """After an error the file is opened again, which may fail as well."""
    image = np.full((3 * TILE_PX, 3 * TILE_PX, 3), 180, dtype=np.uint8)
    path = write_tiff(tmp_path / "s.tif", image, compression="jpeg")
    damage_tile(path, col=1, row=1)
    size = Size(20, 20)
    with open_slide(row_of(path)) as slide:
        assert slide.reader.startswith("direct")
        path.rename(tmp_path / "away.tif")
        for _ in range(2):
            with pytest.raises(UnreadableSlide, match=r"no file at .*s\.tif"):
                slide.read_region(0, 300, 300, size)
        (tmp_path / "away.tif").rename(path)
        with pytest.raises(UnreadableSlide, match="cannot be read"):
            slide.read_region(0, 300, 300, size)
        assert slide._draw(0, 0, 0, size).shape == (20, 20, 3)


def test_what_may_not_be_read_or_is_no_file_is_named(tmp_path, monkeypatch):
    pipe = tmp_path / "s.svs"
    os.mkfifo(pipe)
    with pytest.raises(UnreadableSlide, match=r"slide 's': no file at .*s\.svs that may be read"):
        Slide(row_of(pipe))
    locked = write_tiff(tmp_path / "locked.tif", noise(300, 300))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UnreadableSlide, match=r"no file at .*locked\.tif that may be read"):
        Slide(row_of(locked))
