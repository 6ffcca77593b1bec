import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from tissue_pictures import EOSIN, GLASS, find, photograph


def dice(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def cell_walls(draw, left, top, right, bottom, *, spacing):
    """Fat: walls of brick-like cells, three pixels thick; at 2 um per pixel."""
    for row, y in enumerate(range(top, bottom + 1, spacing)):
        draw.line((left, y, right, y), fill=EOSIN, width=3)
        shift = spacing // 2 * (row % 2)
        for x in range(left + shift, right + 1, spacing):
            draw.line((x, y, x, min(y + spacing, bottom)), fill=EOSIN, width=3)
    draw.rectangle((left, top, right, bottom), outline=EOSIN, width=3)


def fatty_section(spacing):
    """At 2 um per pixel: tissue, fat to its right, a hole of fat within; and where all that is."""
    picture = Image.new("RGB", (1200, 960), GLASS)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((100, 100, 599, 859), fill=EOSIN)
    draw.rectangle((200, 300, 449, 699), fill=GLASS)
    cell_walls(draw, 200, 300, 449, 699, spacing=spacing)
    cell_walls(draw, 600, 200, 1000, 759, spacing=spacing)
    truth = np.zeros((240, 300), dtype=bool)
    truth[25:215, 25:150] = True
    truth[50:190, 150:250] = True
    return picture, truth


@pytest.mark.parametrize("spacing", [20, 30, 40])  # cells of 40, 60 and 80 um
def test_fat_within_and_beside_tissue_is_tissue(spacing):
    picture, truth = fatty_section(spacing)
    mask = find(photograph(picture), mpp=2.0).mask
    assert dice(mask, truth) > 0.97
    assert mask[ndimage.binary_erosion(truth, iterations=6)].mean() > 0.95
    assert mask[~ndimage.binary_dilation(truth, iterations=3)].mean() < 0.001


def test_a_finer_mask_finds_the_same_fat():
    picture, truth = fatty_section(30)
    fine = find(photograph(picture), mpp=2.0, mask_mpp=4.0).mask
    assert dice(fine, np.repeat(np.repeat(truth, 2, axis=0), 2, axis=1)) > 0.96


def test_dust_lone_lines_and_empty_holes_beside_tissue_are_no_fat():
    picture = Image.new("RGB", (1200, 960), GLASS)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((100, 100, 599, 859), fill=EOSIN)
    draw.rectangle((200, 300, 399, 599), fill=GLASS)  # a hole of 240,000 um2
    draw.ellipse((610, 200, 1000, 600), outline=(200, 160, 215), width=4)  # a bubble's rim
    for x, y in np.random.default_rng(1).integers((610, 620), (1100, 860), (250, 2)).tolist():
        draw.ellipse((x, y, x + 5, y + 5), fill=(150, 150, 148))
    truth = np.zeros((240, 300), dtype=bool)
    truth[25:215, 25:150] = True
    truth[75:150, 50:100] = False
    mask = find(photograph(picture), mpp=2.0).mask
    assert dice(mask, truth) > 0.98
    assert not mask[:, 162:].any()  # the crevice between tissue and rim is counted


def quilt(shared, plan, seed=0):
    """Real colorectal tiles of 0.495 um per pixel, one a letter, in random turns."""
    rng = np.random.default_rng(seed)
    folders = {"S": "02_STROMA", "F": "07_ADIPOSE", ".": "08_EMPTY"}
    root = shared / "patches/kather2016_sample"
    tiles = {
        letter: [np.asarray(Image.open(p).convert("RGB")) for p in sorted((root / name).iterdir())]
        for letter, name in folders.items()
    }
    rows = [
        np.hstack([np.rot90(tiles[c][rng.integers(3)], rng.integers(4)) for c in line])
        for line in plan
    ]
    side = tiles["S"][0].shape[0] * 0.495 / 8  # of a tile, in mask pixels
    rgb = Image.fromarray(np.vstack(rows))
    small = rgb.resize((round(side * len(plan[0])), round(side * len(plan))), Image.Resampling.BOX)
    letters = np.array([list(line) for line in plan])
    row, col = np.indices((small.height, small.width))
    return np.asarray(small), letters[(row / side).astype(int), (col / side).astype(int)]


@pytest.mark.parametrize("seed", range(3))
def test_real_fat_beside_stroma_is_mostly_found_and_glass_is_not(shared, seed):
    """Medians alone found 4 to 11 % of it."""
    plan = ["." * 20] * 3 + [".." + "S" * 6 + "F" * 8 + "...."] * 6 + ["." * 20] * 3
    rgb, kind = quilt(shared, plan, seed)
    mask = find(rgb).mask
    assert mask[kind == "S"].mean() > 0.98
    assert mask[kind == "F"].mean() > 0.4
    assert not mask[ndimage.binary_erosion(kind == ".", iterations=4)].any()
