import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from scipy import ndimage
from tissue_pictures import EOSIN, GLASS, find, photograph, section

from preprocessing.tissue.segmentation import TissueMask

BLUE, DENSE_BLUE = (190, 200, 220), (95, 110, 165)  # haematoxylin in IHC, as some scanners show it
INK = {
    "blue": (30, 50, 150),
    "violet-blue": (60, 60, 190),
    "green": (25, 120, 90),
    "pale green": (60, 170, 110),
    "black": (25, 25, 30),
    "worn black": (80, 80, 85),
    "red": (200, 25, 45),
    "washed blue": (145, 180, 210),
    "washed out": (175, 210, 230),
    "washed green": (190, 220, 200),
}


def overlap(mask, truth):
    """Intersection over union."""
    return (mask & truth).sum() / (mask | truth).sum()


# Optical densities of red, green and blue: Ruifrok and Johnston (2001), and bluer haematoxylin, as
# many scanners show it.
DYES = {
    "Ruifrok": (0.65, 0.70, 0.29),
    "bluer": (0.70, 0.66, 0.26),
    "bluest": (0.75, 0.62, 0.23),
    "DAB": (0.27, 0.57, 0.78),
}


def dyed(**densities):
    """Colour of glass under so much of each dye."""
    total = sum(d * np.array(DYES[name]) for name, d in densities.items())
    return tuple(np.round(GLASS * 10**-total).astype(int).tolist())


def ihc(stroma, follicle, *, radius_um, other_half=None):
    """Blue tissue in columns 120 to 199, in columns 40 to 119 too or something else; a follicle."""
    picture, truth = section()
    draw = ImageDraw.Draw(picture)
    draw.rectangle((40, 40, 199, 199), fill=stroma)
    draw.rectangle((40, 40, 119, 199), fill=other_half or stroma)
    r = radius_um / 8
    draw.ellipse((160 - r, 120 - r, 160 + r, 120 + r), fill=follicle)
    return picture, truth


def kept(picture, truth):
    """Share of the section found, less its outline, which scanning blurs."""
    return find(photograph(picture)).mask[ndimage.binary_erosion(truth, iterations=3)].mean()


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (224, 222, 228), (242, 238, 226)])
def test_a_section_is_found_on_every_glass(glass):
    picture, truth = section(glass)
    assert overlap(find(photograph(picture)).mask, truth) > 0.95


@pytest.mark.parametrize("glass", [GLASS, (242, 238, 226), (225, 232, 238), (236, 230, 233)])
def test_glass_is_told_from_what_was_not_scanned(glass):
    """Five sixths of the slide are pure white, as mosaics of tiles leave it."""
    picture, truth = section(glass)
    rgb = np.full((500, 600, 3), 255, dtype=np.uint8)
    rgb[20:220, 20:220] = photograph(picture)[20:220, 20:220]
    mask = find(rgb).mask
    assert overlap(mask[:240, :300], truth) > 0.95
    assert mask.sum() == mask[:240, :300].sum()


@pytest.mark.parametrize("strength", [0.5, 0.25])
def test_a_pale_section_is_found(strength):
    picture, truth = section()
    pale = Image.blend(Image.new("RGB", picture.size, GLASS), picture, strength)
    assert overlap(find(photograph(pale)).mask, truth) > 0.9


@pytest.mark.parametrize("colour", INK)
@pytest.mark.parametrize("stain", ["H&E", "IHC"])
def test_ink_is_no_tissue_and_leaves_the_rest(colour, stain):
    picture, truth = section() if stain == "H&E" else ihc(BLUE, DENSE_BLUE, radius_um=150)
    ImageDraw.Draw(picture).line((120, 0, 120, 110, 290, 110), fill=INK[colour], width=14)
    ink = (np.asarray(picture) == INK[colour]).all(axis=2)
    mask = find(photograph(picture)).mask
    assert not mask[ndimage.binary_erosion(ink, iterations=2)].any()
    assert mask[truth & ~ndimage.binary_dilation(ink, iterations=8)].mean() > 0.99
    # Less than 1 per mille: soft edges where ink leaves the tissue.
    assert mask[~ndimage.binary_dilation(truth, iterations=2)].mean() < 0.001


@pytest.mark.parametrize("radius_um", [56, 64, 150, 300])
@pytest.mark.parametrize("other_half", [None, (150, 105, 70)])
def test_ihc_tissue_keeps_its_dense_follicles(radius_um, other_half):
    assert kept(*ihc(BLUE, DENSE_BLUE, radius_um=radius_um, other_half=other_half)) > 0.99


@pytest.mark.parametrize("dye", ["Ruifrok", "bluer", "bluest"])
@pytest.mark.parametrize("density", [0.25, 0.5, 0.7])
def test_haematoxylin_alone_is_tissue(dye, density):
    pale, dense = dyed(**{dye: 0.25}), dyed(**{dye: density})
    assert kept(*ihc(pale, dense, radius_um=300)) > 0.99
    assert kept(*ihc(dense, dense, radius_um=300)) > 0.99


@pytest.mark.parametrize("dab", [0.2, 0.4, 0.8])
def test_dab_over_haematoxylin_is_tissue(dab):
    pale, dense, positive = dyed(Ruifrok=0.2), dyed(Ruifrok=0.6), dyed(Ruifrok=0.3, DAB=dab)
    assert kept(*ihc(pale, dense, radius_um=200, other_half=positive)) > 0.99


def test_a_dot_of_ink_inside_tissue_is_not_filled_like_a_hole():
    picture, _ = section()
    ImageDraw.Draw(picture).rectangle((130, 60, 145, 75), fill=INK["black"])  # 16,384 um2
    mask = find(photograph(picture)).mask
    assert not mask[62:74, 132:144].any()
    assert mask[62:74, 160:190].all()


def test_black_borders_are_no_tissue():
    picture, truth = section()
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 60, 239), fill=(4, 3, 6))
    draw.rectangle((0, 220, 299, 239), fill=(0, 0, 0))
    mask = find(photograph(picture)).mask
    assert not mask[:, :61].any()
    assert overlap(mask[:, 61:], truth[:, 61:]) > 0.93


@given(
    grey=st.integers(150, 255),
    pink=st.integers(-3, 3),
    yellow=st.integers(0, 12),
    noise=st.integers(0, 6),
    seed=st.integers(0),
)
@settings(max_examples=30)
def test_a_blank_slide_has_no_tissue(grey, pink, yellow, noise, seed):
    """Otsu alone would split the noise of any blank picture in two."""
    glass = np.array([grey + pink, grey, grey - yellow])
    rgb = glass + np.random.default_rng(seed).normal(0, noise, (120, 120, 3))
    assert not find(rgb.clip(0, 255).astype(np.uint8)).mask.any()


def test_the_noise_of_a_bright_blank_slide_reaches_no_pixel():
    picture = Image.new("RGB", (300, 240), GLASS)
    assert not find(photograph(picture), min_area_um2=0).mask.any()


@pytest.mark.parametrize("dye", [(0, 0, 255), (0, 220, 40), (230, 20, 20), (200, 60, 200)])
def test_fluorescence_has_no_tissue(dye):
    picture = Image.new("RGB", (300, 240), (1, 0, 4))
    ImageDraw.Draw(picture).ellipse((60, 60, 160, 180), fill=dye)
    assert not find(photograph(picture)).mask.any()


def test_islands_and_holes_follow_their_areas():
    """At 8 um per pixel 20 x 20 px are 25,600 um2 and 10 x 10 px are 6,400 um2."""
    picture = Image.new("RGB", (300, 240), GLASS)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((20, 20, 199, 199), fill=EOSIN)
    for x, side in ((60, 20), (120, 10)):
        draw.rectangle((x, 100, x + side - 1, 100 + side - 1), fill=GLASS)
        draw.rectangle((250, x, 250 + side - 1, x + side - 1), fill=EOSIN)
    mask = find(np.asarray(picture)).mask
    assert (mask[110, 70], mask[105, 125]) == (False, True)  # holes: large kept, small filled
    assert (mask[70, 260], mask[125, 255]) == (True, False)  # islands: large kept, small dropped
    mask = find(np.asarray(picture), min_area_um2=0, max_hole_um2=0).mask
    assert (mask[105, 125], mask[125, 255]) == (False, True)


def test_a_picture_full_of_tissue_is_all_tissue():
    picture, _ = section()
    assert find(photograph(picture.crop((40, 40, 200, 200)))).mask.all()


def test_a_finer_overview_gives_the_same_mask_with_an_exact_scale():
    picture, _ = section()
    coarse = find(np.asarray(picture), mpp=8.0)
    fine = find(np.asarray(picture.resize((1200, 960), Image.Resampling.NEAREST)), mpp=2.0)
    assert fine.mask.shape == coarse.mask.shape == (240, 300)
    assert overlap(fine.mask, coarse.mask) > 0.99
    assert (fine.px0_per_px_x, fine.px0_per_px_y) == (128, 128)
    odd = find(np.full((101, 203, 3), 245, dtype=np.uint8), mpp=2.0)
    assert odd.mask.shape == (25, 51)
    assert odd.px0_per_px_x * 51 == pytest.approx(203 * 32)
    assert odd.px0_per_px_y * 25 == pytest.approx(101 * 32)


def test_wrong_pictures_name_what_came():
    with pytest.raises(ValueError, match=r"uint8, got \(5, 5, 4\) uint8"):
        find(np.zeros((5, 5, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"got \(5, 5, 3\) float64"):
        find(np.zeros((5, 5, 3)))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        find(np.zeros((5, 5, 3), dtype=np.uint8), mpp=0)


masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
boxes = st.lists(
    st.tuples(st.floats(-5, 60), st.floats(-5, 60), st.floats(0.1, 70), st.floats(0.1, 70)),
    min_size=1,
    max_size=8,
)
scales = st.floats(0.5, 7)


def brute_force_fraction(tissue, box):
    """Overlap of the box with every single mask pixel, summed."""
    x, y, width, height = box
    rows, cols = tissue.mask.shape
    left = np.arange(cols) * tissue.px0_per_px_x
    top = np.arange(rows) * tissue.px0_per_px_y
    right, bottom = left + tissue.px0_per_px_x, top + tissue.px0_per_px_y
    across = (np.minimum(right, x + width) - np.maximum(left, x)).clip(0)
    down = (np.minimum(bottom, y + height) - np.maximum(top, y)).clip(0)
    return (np.outer(down, across) * tissue.mask).sum() / (width * height)


@given(masks, boxes, scales, scales)
def test_fraction_equals_a_brute_force_mean(mask, boxes_px0, scale_x, scale_y):
    tissue = TissueMask(mask, scale_x, scale_y)
    expected = [brute_force_fraction(tissue, box) for box in boxes_px0]
    # Small boxes divide rounding errors of the integral image by a small area.
    np.testing.assert_allclose(tissue.fraction_of(np.array(boxes_px0)), expected, atol=1e-7)


@given(masks, boxes, scales, st.data())
def test_fraction_is_monotone_in_the_mask(mask, boxes_px0, scale, data):
    less = mask & data.draw(hnp.arrays(np.bool_, mask.shape))
    fractions = [TissueMask(m, scale, scale).fraction_of(np.array(boxes_px0)) for m in (less, mask)]
    assert (fractions[0] <= fractions[1] + 1e-7).all()


def test_masks_and_boxes_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="2-D bool, got 2-D uint8"):
        TissueMask(np.zeros((3, 3), dtype=np.uint8), 1, 1)
    with pytest.raises(ValueError, match=r"positive, got \(1, 0\)"):
        TissueMask(np.zeros((3, 3), dtype=bool), 1, 0)
    tissue = TissueMask(np.zeros((3, 3), dtype=bool), 1, 1)
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(2, 3\)"):
        tissue.fraction_of(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="positive width and height"):
        tissue.fraction_of(np.array([[0, 0, 0, 1]]))
    assert tissue.fraction_of(np.zeros((0, 4))).shape == (0,)


def overview(path, mpp0=None):
    """Coarsest level at 8 um per pixel or finer, and its mpp."""
    with openslide.OpenSlide(path) as slide:
        mpp0 = mpp0 or float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
        level = slide.get_best_level_for_downsample(8.0 / mpp0)
        picture = slide.read_region((0, 0), level, slide.level_dimensions[level])
        white = Image.new("RGBA", picture.size, "white")
        rgb = Image.alpha_composite(white, picture).convert("RGB")
        return np.asarray(rgb), mpp0 * slide.level_downsamples[level]


def test_real_skin(shared):
    rgb, mpp = overview(shared / "slides/CMU-1-Small-Region.svs")
    mask = find(rgb, mpp).mask
    assert 0.33 < mask.mean() < 0.43
    assert not mask[:, :12].any()  # glass on the left
    assert mask[150:, 50:60].all()  # dermis at the bottom


def test_real_frozen_section(shared):
    rgb, mpp = overview(shared / "slides/TCGA-CR-7395-01A-01-TS1.svs", mpp0=0.5)
    mask = find(rgb, mpp).mask
    assert 0.6 < mask.mean() < 0.68
    assert not mask[:30, :170].any()  # glass above, partly not scanned
    assert mask[60:100, 110:140].mean() > 0.99


def test_real_lymph_node_at_low_resolution(shared):
    rgb, mpp = overview(shared / "slides/camelyon-lowres.dcm")
    assert 0.2 < find(rgb, mpp).mask.mean() < 0.28


def test_real_fluorescence_has_no_tissue(shared):
    rgb, mpp = overview(shared / "slides/fluor-DAPI-387.ndpi")
    assert not find(rgb, mpp, min_area_um2=0).mask.any()


def test_real_empty_tiles_have_no_tissue(shared):
    paths = sorted((shared / "patches/kather2016_sample/08_EMPTY").iterdir())
    assert paths
    for path in paths:
        tile = np.asarray(Image.open(path).convert("RGB"))
        assert not find(np.tile(tile, (8, 8, 1)), 0.495).mask.any()
