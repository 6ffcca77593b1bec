import csv

import numpy as np
import openslide
import pytest
import torch
from PIL import Image
from scipy import ndimage

from preprocessing.stores.store import QUALITY
from preprocessing.tissue.quality import tile_quality

SHARPNESS, INK, BLANK = (QUALITY.index(name) for name in ("sharpness", "ink", "blank"))
EOSIN, GLASS = (226, 150, 190), (244, 242, 245)
SIGMAS_UM = (0, 0.25, 0.5, 1, 1.5, 2)


def batch(*tiles):
    pixels = np.stack([np.asarray(tile, dtype=np.float32) for tile in tiles])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def quality(*tiles, mpp=0.5):
    return tile_quality(batch(*tiles), mpp).numpy()


def blurred(tile, sigma_um, mpp=0.5):
    """As a scanner would give it: whole grey values."""
    sigma = (sigma_um / mpp, sigma_um / mpp, 0)
    soft = ndimage.gaussian_filter(tile.astype(float), sigma, mode="reflect")
    return np.rint(soft.clip(0, 255))


def half_planes(angle, side=224, fine=8):
    """An edge through the middle, each pixel the mean of 8 x 8 points."""
    axis = (np.arange(side * fine) + 0.5) / fine - side / 2
    dark = axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle) > 0.3
    share = dark.reshape(side, fine, side, fine).mean(axis=(1, 3))
    return np.repeat((40 + 200 * share)[..., None], 3, axis=2)


def cells(seed=0, side=224):
    """Dark ellipses of a few um on pink."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    shade = np.ones((side, side))
    for _ in range(60):
        cx, cy = rng.uniform(0, side, 2)
        a, b = rng.uniform(3, 9, 2)
        shade[((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1] = rng.uniform(0.3, 0.6)
    return np.rint(shade[..., None] * EOSIN + rng.normal(0, 1, (side, side, 3))).clip(0, 255)


@pytest.mark.parametrize("angle", [0.2, 0.6, 1.1, 1.4])
def test_a_straight_ideal_edge_has_sharpness_one(angle):
    assert quality(half_planes(angle))[0, SHARPNESS] == pytest.approx(1, abs=0.15)


def test_sharpness_falls_with_blur_whatever_is_on_the_tile():
    tiles = [cells(0), cells(1), half_planes(0.4), half_planes(1.2)]
    of_blur = np.stack([quality(*(blurred(t, s) for t in tiles))[:, 0] for s in SIGMAS_UM])
    assert (np.diff(of_blur, axis=0) < 0).all()
    assert of_blur[0].min() > 0.7
    assert of_blur[3].max() < 0.55


@pytest.mark.parametrize("contrast", [0.35, 0.6])
def test_sharpness_hardly_depends_on_the_strength_of_the_stain(contrast):
    pale = GLASS - contrast * (GLASS - cells())
    assert quality(pale)[0, 0] == pytest.approx(quality(cells())[0, 0], rel=0.05)


def test_noise_does_not_make_a_blurred_tile_sharp():
    soft = blurred(cells(), 2)
    noisy = np.rint(soft + np.random.default_rng(0).normal(0, 1, soft.shape))
    assert quality(noisy)[0, 0] < 0.45


def test_finer_tiles_are_judged_at_half_a_micrometre():
    tile = cells()
    fine = np.repeat(np.repeat(tile, 2, axis=0), 2, axis=1)
    np.testing.assert_allclose(quality(fine, mpp=0.25), quality(tile), atol=1e-4)


def test_glass_and_black_are_blank_and_have_no_sharpness():
    noise = np.random.default_rng(0).normal(0, 0.5, (4, 64, 64, 3))
    grounds = [GLASS, (222, 224, 226), (5, 3, 6), (255, 255, 255)]
    found = quality(*(np.rint(ground + n) for ground, n in zip(grounds, noise, strict=True)))
    np.testing.assert_array_equal(found[:, BLANK], 1)
    np.testing.assert_array_equal(found[:, INK], 0)
    np.testing.assert_array_equal(found[:, SHARPNESS], 0)


@pytest.mark.parametrize("colour", [EOSIN, (150, 105, 70), (190, 200, 220), (120, 80, 150)])
def test_stain_is_neither_blank_nor_ink(colour):
    pale = np.full((64, 64, 3), np.array(colour) * 0.7 + np.array(GLASS) * 0.3)
    found = quality(np.full((64, 64, 3), colour), pale)
    np.testing.assert_array_equal(found[:, [INK, BLANK]], 0)


@pytest.mark.parametrize("ink", [(30, 50, 150), (25, 120, 90), (30, 30, 32), (200, 25, 45)])
@pytest.mark.parametrize(("mpp", "side"), [(0.5, 256), (0.25, 256), (1.0, 128), (8.0, 64)])
def test_ink_and_glass_are_shares_of_area(ink, mpp, side):
    tile = np.full((side, side, 3), EOSIN)
    tile[: side // 4] = ink
    tile[:, side // 2 :] = GLASS
    found = quality(tile, mpp=mpp)
    np.testing.assert_allclose(found[0, [INK, BLANK]], [1 / 8, 1 / 2])


def test_a_tile_does_not_depend_on_its_neighbours_or_its_type():
    tiles = batch(*(cells(seed) for seed in range(11)))
    together = tile_quality(tiles, 0.5)
    alone = torch.cat([tile_quality(tile[None], 0.5) for tile in tiles])
    torch.testing.assert_close(together, alone)
    assert together.dtype == torch.float32
    assert together.shape == (11, len(QUALITY))
    torch.testing.assert_close(tile_quality(tiles.to(torch.uint8), 0.5), together)
    assert tile_quality(tiles[:0], 0.5).shape == (0, 3)


@pytest.mark.parametrize("side", [16, 17, 31, 50])
@pytest.mark.parametrize("mpp", [0.1, 0.5, 3.0])
def test_small_tiles_have_a_quality(side, mpp):
    found = tile_quality(batch(cells()[:side, :side]), mpp)
    assert torch.isfinite(found).all()


def test_wrong_tiles_say_what_came():
    with pytest.raises(ValueError, match=r"16 px or more, got \(2, 3, 8, 64\)"):
        tile_quality(torch.zeros(2, 3, 8, 64), 0.5)
    with pytest.raises(ValueError, match=r"got \(2, 64, 64, 3\)"):
        tile_quality(torch.zeros(2, 64, 64, 3), 0.5)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        tile_quality(torch.zeros(2, 3, 64, 64), 0)


def real_tiles(shared):
    """Of a slide, and of 7 kinds of colorectal tissue, at 0.5 um per pixel."""
    with openslide.OpenSlide(shared / "slides/CMU-1-Small-Region.svs") as slide:
        region = np.asarray(slide.read_region((600, 1200), 0, (864, 1584)).convert("RGB"))
    tiles = [
        region[y : y + 144, x : x + 144] for y in range(0, 1584, 144) for x in range(0, 864, 144)
    ]
    paths = sorted((shared / "patches/kather2016_sample").glob("0[1-7]*/*.tif"))
    assert len(paths) == 21
    tiles += [np.asarray(Image.open(path).convert("RGB"))[:144, :144] for path in paths]
    return [tile for tile in tiles if (tile.min(axis=2) < 200).mean() > 0.15]


def test_real_tissue_of_all_kinds_is_told_from_the_same_out_of_focus(shared):
    tiles = real_tiles(shared)
    assert len(tiles) > 60
    of_blur = np.stack([quality(*(blurred(t, s) for t in tiles))[:, 0] for s in SIGMAS_UM])
    assert (np.diff(of_blur, axis=0) <= 0).all()
    assert of_blur[0].min() > 0.68
    assert of_blur[3].max() < 0.55
    assert np.median(of_blur[0]) == pytest.approx(1.05, abs=0.15)


def test_real_lung_has_hardly_any_ink_and_no_blank_tile(shared):
    root = shared / "patches"
    with (root / "lc25000_lung_224/index.csv").open() as stream:
        paths = [record["path"] for record in csv.DictReader(stream)][::25]
    tiles = [np.asarray(Image.open(root / path).convert("RGB")) for path in paths]
    found = quality(*tiles)
    assert len(found) > 90
    assert np.median(found[:, INK]) == 0
    assert found[:, INK].max() < 0.15
    assert found[:, BLANK].max() < 0.6


def test_real_glass_is_blank_and_real_fat_is_mostly(shared):
    root = shared / "patches/kather2016_sample"
    empty, fat = (
        quality(*(Image.open(path).convert("RGB") for path in sorted((root / name).iterdir())))
        for name in ("08_EMPTY", "07_ADIPOSE")
    )
    assert empty[:, BLANK].min() > 0.99
    assert 0.1 < fat[:, BLANK].min() < fat[:, BLANK].max() < 0.9
    assert (empty[:, INK] == 0).all()
    assert (fat[:, INK] == 0).all()
