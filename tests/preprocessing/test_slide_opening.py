"""Files that are no slides, or hold levels that are none, and files that go away."""

import os
import re
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
from preprocessing.inspection.examination import examine
from preprocessing.inspection.paths import Candidate
from preprocessing.manifest import SlideRow
from preprocessing.slides.direct import block_means
from preprocessing.slides.slide import Slide, levels_of, open_slide
from preprocessing.slides.tiff_claims import impossible_claim


def row_of(path: Path, mpp: float | None = None) -> SlideRow:
    return SlideRow(path.stem, "patient", path, mpp)


@pytest.mark.parametrize("sizes", [[(800, 820), (200, 200)], [(800, 800), (200, 100)]])
def test_a_level_that_is_no_picture_of_the_whole_slide_is_left_out(tmp_path, sizes, caplog):
    """openslide takes it for one, and every tile read there would lie elsewhere."""
    path = tmp_path / "s.tif"
    images = [noise(*size) for size in sizes]
    with tifffile.TiffWriter(path) as tiff:
        for n, image in enumerate([*images, noise(50, 50)]):
            tiff.write(image, tile=(256, 256), subfiletype=min(n, 1), metadata=None)
    with Slide(row_of(path, 0.5)) as slide:
        assert [level.size for level in slide.pyramid.levels] == [Size(*sizes[0])]
        view, _ = slide.overviews(mpp=2.0, longest_px=200)
        np.testing.assert_array_equal(view.rgb[:200, :200], block_means(images[0], 4)[:200, :200])
    wrong = (
        r"level 1 of 200 x .* px, 4 times smaller than level 0 in width and .* in height, cannot"
    )
    assert re.search(f"slide 's': {wrong}", caplog.text)


@given(
    whole=st.tuples(st.integers(64, 10**6), st.integers(64, 10**6)),
    factors=st.lists(st.integers(2, 256), max_size=4, unique=True).map(sorted),
    round_to=st.sampled_from([floor, round, ceil]),
)
def test_sizes_rounded_to_whole_pixels_make_levels(whole, factors, round_to):
    sizes = [whole, *(tuple(max(1, round_to(n / f)) for n in whole) for f in factors)]
    means = [(whole[0] / w + whole[1] / h) / 2 for w, h in sizes]
    handle = SimpleNamespace(dimensions=whole, level_dimensions=sizes, level_downsamples=means)
    levels, wrong = levels_of(cast(openslide.OpenSlide, handle))
    assert [level.downsample for level in levels] == means
    assert not wrong


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


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [
        ("TileWidth", 1 << 24, "in tiles of 16777216 x 256 px"),
        ("TileLength", 0, "in tiles of 256 x 0 px"),
        ("ImageWidth", 8_914_396, "needs 69644 tiles of 256 x 256 px, and 4 are listed"),
        ("ImageLength", 8_914_396, "needs 69644 tiles of 256 x 256 px, and 4 are listed"),
    ],
)
def test_a_damaged_index_is_not_believed(tmp_path, tag, value, said):
    """openslide ends the process for want of memory, or reads for days."""
    path = write_tiff(tmp_path / "s.tif", noise(500, 400), compression="jpeg")
    assert impossible_claim(path) == ""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags[tag].overwrite(value)
    with pytest.raises(UnreadableSlide, match=rf"s\.tif: its index is damaged.*{said}; copy it"):
        Slide(row_of(path, 0.5))
    report = examine(Candidate(row_of(path, 0.5)))
    assert report.state == "unreadable"
    assert said in report.problem
