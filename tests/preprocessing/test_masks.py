import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing.errors import SlideError
from preprocessing.geometry import Size
from preprocessing.tissue.masks import read_mask

SLIDE = Size(1000, 800)


def drawn(shape=(80, 100)):
    """White in its right half."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[:, shape[1] // 2 :] = 255
    return mask


def read(tmp_path, picture, *, size=SLIDE, least=1.0):
    path = tmp_path / "s.png"
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path)
    return read_mask(path, slide_id="s", size_px0=size, least_px0_per_px=least)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_white_is_tissue_in_every_kind_of_png(tmp_path, mode):
    tissue = read(tmp_path, Image.fromarray(drawn()).convert(mode))
    np.testing.assert_array_equal(tissue.mask, drawn() > 0)
    assert (tissue.px0_per_px_x, tissue.px0_per_px_y) == (10, 10)


def test_deep_masks_and_masks_of_zeros_and_ones(tmp_path):
    expected = drawn() > 0
    deep = Image.fromarray(drawn().astype(np.uint16) * 257)
    np.testing.assert_array_equal(read(tmp_path, deep).mask, expected)
    np.testing.assert_array_equal(read(tmp_path, drawn() // 255).mask, expected)
    assert not read(tmp_path, np.zeros((80, 100), dtype=np.uint8)).mask.any()


def test_labels_that_are_neither_white_nor_one_are_refused(tmp_path):
    with pytest.raises(SlideError, match=r"slide 's'.*s\.png: .*0 and 255.*brightest .* 2; write"):
        read(tmp_path, drawn() // 255 * 2)


@given(st.integers(100, 2000), st.integers(100, 2000), st.floats(1, 40), st.booleans())
def test_masks_of_any_scale_fit_rounded_either_way(tmp_path_factory, width, height, scale, up):
    rounded = (np.ceil if up else np.floor)([width / scale, height / scale]).astype(int)
    picture = np.zeros((rounded[1], rounded[0]), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("mask")
    tissue = read(folder, picture, size=Size(width, height))
    assert tissue.mask.shape[1] * tissue.px0_per_px_x == pytest.approx(width)
    assert tissue.mask.shape[0] * tissue.px0_per_px_y == pytest.approx(height)


@pytest.mark.parametrize("shape", [(100, 80), (80, 103), (76, 100), (800, 500)])
def test_a_mask_of_another_shape_says_what_was_expected(tmp_path, shape):
    height = shape[1] * 0.8
    with pytest.raises(
        SlideError,
        match=rf"s\.png: expected .* 1000 x 800 px .*, got {shape[1]} x {shape[0]} px: .* "
        rf"would be {height:.0f}; export the mask again",
    ):
        read(tmp_path, drawn(shape))


def test_a_fine_mask_is_reduced_to_what_most_of_each_block_is(tmp_path):
    mask = np.zeros((400, 500), dtype=np.uint8)  # 2 level-0 pixels each
    mask[:4, :8] = 255  # two whole blocks of 4 x 4
    mask[4:6, :4] = 255  # half a block
    mask[8:9, :4] = 255  # a quarter
    tissue = read(tmp_path, mask, least=8.0)
    assert tissue.mask.shape == (100, 125)
    assert (tissue.px0_per_px_x, tissue.px0_per_px_y) == (8, 8)
    assert np.argwhere(tissue.mask).tolist() == [[0, 0], [0, 1], [1, 0]]
    odd = read(tmp_path, drawn((399, 499)), size=Size(998, 798), least=8.0)
    assert odd.mask.shape == (100, 125)
    assert odd.mask[:99, 63:124].all()
    assert not odd.mask[:, :62].any()


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(
        SlideError, match=r"slide 's': no mask at .*absent\.png; .* for every slide"
    ):
        read_mask(tmp_path / "absent.png", slide_id="s", size_px0=SLIDE, least_px0_per_px=1)
    path = tmp_path / "s.png"
    for content in (b"no picture", b""):
        path.write_bytes(content)
        with pytest.raises(SlideError, match=r"s\.png: expected a mask as PNG"):
            read_mask(path, slide_id="s", size_px0=SLIDE, least_px0_per_px=1)
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (80, 100), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SlideError, match=r"s\.png: expected a mask as PNG"):
        read_mask(path, slide_id="s", size_px0=SLIDE, least_px0_per_px=1)
