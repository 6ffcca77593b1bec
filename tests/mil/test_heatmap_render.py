"""The page: everything in its place in millimetres, on one scale, legible, and said in words."""

from pathlib import Path

import numpy as np
import pytest
from heatmap_fakes import make_scores
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mil.heatmaps.page import scale_bar_mm
from mil.heatmaps.render import Backdrop, heatmap_figure, render_heatmap
from mil.heatmaps.scores import CohortScale

SCALE = CohortScale(4.0, "logit of tumour against the rest", slides=3, tiles=900)


def backdrop(
    width: int = 120, height: int = 80, px0: tuple[float, float] = (10.0, 10.0)
) -> Backdrop:
    """A grey slide with tissue in its middle."""
    mask = np.zeros((height // 2, width // 2), dtype=bool)
    mask[height // 8 : -height // 8, width // 8 : -width // 8] = True
    thumbnail = np.full((height, width, 3), 200, dtype=np.uint8)
    return Backdrop(thumbnail, px0, mask, (2 * px0[0], 2 * px0[1]))


def panel(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_label() == name)


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]


def test_equal_values_have_equal_colours_in_different_slides() -> None:
    colours = []
    for others in ([0.1] * 3, [90.0] * 3):
        scores = make_scores([(i, 0) for i in range(4)], evidence=[1.5, *others])
        figure = heatmap_figure(scores, SCALE, backdrop())
        # The first tile's middle, (50, 50) level-0 px at 0.5 µm.
        x, y = panel(figure, "evidence").transData.transform((0.025, 0.025))
        colours.append(pixels(figure)[int(figure.bbox.height - y), int(x)].tolist())
    assert colours[0] == colours[1]
    assert colours[0] != [200, 200, 200]


@pytest.mark.parametrize(
    ("size", "mpp"), [((120, 80), (0.5, 0.5)), ((240, 60), (0.25, 0.5)), ((50, 170), (0.5, 0.3))]
)
def test_a_hot_tile_appears_on_the_page_at_its_millimetres(
    size: tuple[int, int], mpp: tuple[float, float]
) -> None:
    slide = backdrop(*size)
    cells = [(i, j) for i in range(4) for j in range(5)]
    calm = make_scores(cells, mpp=mpp)
    hot = make_scores(cells, mpp=mpp, evidence=[4.0 * (cell == (2, 3)) for cell in cells])
    figure = heatmap_figure(hot, SCALE, slide)
    page, empty = pixels(figure), pixels(heatmap_figure(calm, SCALE, slide))
    rows, cols = np.nonzero(abs(page - empty).sum(axis=2) > 30)
    axes = panel(figure, "evidence")
    bar_top = panel(figure, "evidence scale").get_window_extent().y1
    on_panel = figure.bbox.height - rows > bar_top  # below it the share beyond the scale may differ
    box_mm = np.array([[200 * mpp[0], 300 * mpp[1]], [300 * mpp[0], 400 * mpp[1]]]) / 1000
    (left, top), (right, bottom) = axes.transData.transform(box_mm)
    found = [cols[on_panel].min(), cols[on_panel].max() + 1]
    assert found == pytest.approx([left, right], abs=1.0)
    found = [rows[on_panel].min(), rows[on_panel].max() + 1]
    assert found == pytest.approx([figure.bbox.height - top, figure.bbox.height - bottom], abs=1.0)


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.25, 0.75)])
def test_a_millimetre_is_as_long_in_the_scale_bar_as_in_the_slide(mpp: tuple[float, float]) -> None:
    slide = backdrop(150, 100, (32.0, 32.0))
    figure = heatmap_figure(make_scores([(0, 0)], mpp=mpp), SCALE, slide)
    for name in ("slide", "evidence", "attention"):
        axes = panel(figure, name)
        (bar,) = (line for line in axes.lines if line.get_gid() == "scale-bar")
        ends = bar.get_transform().transform(np.column_stack(bar.get_data()))
        length_px = ends[1, 0] - ends[0, 0]
        length_mm = float(axes.texts[0].get_text().removesuffix(" mm"))
        box = axes.get_window_extent()
        assert length_px / box.width == pytest.approx(length_mm / (150 * 32 * mpp[0] / 1000))
        # and the panel is as high as the slide is in the same measure
        um_high = 100 * 32 * mpp[1]
        assert box.height / (length_px / length_mm) == pytest.approx(um_high / 1000, rel=0.01)


@given(st.floats(0.01, 500))
def test_scale_bars_are_round_and_fit(width_mm: float) -> None:
    bar = scale_bar_mm(width_mm)
    assert width_mm / 10.1 < bar <= width_mm / 4 * (1 + 1e-6)
    assert f"{bar:e}"[0] in "125"
    assert float(f"{bar:.0e}") == pytest.approx(bar)


@pytest.mark.parametrize("size", [(30, 200), (100, 110), (190, 100), (300, 60)])
def test_no_text_overlaps_or_leaves_the_page(size: tuple[int, int]) -> None:
    name = "logit of squamous cell carcinoma against every other class, for each tile by itself"
    scores = make_scores(
        [(0, 0)],
        slide_id="a-very-long-slide-identifier." * 4 + "$x_",
        evidence_name=name,
        prediction={f"survival_{i}": 0.123456 for i in range(12)},
        model="acmil of five branches, fold 4 of 5, checkpoint 0123456789abcdef",
    )
    slide = backdrop(*size)
    lesion = np.array([[10.0, 10.0], [200.0, 10.0], [100.0, 200.0]])
    slide = Backdrop(
        slide.thumbnail,
        slide.thumbnail_px0_per_px,
        slide.tissue_mask,
        slide.mask_px0_per_px,
        [lesion],
    )
    figure = heatmap_figure(scores, CohortScale(4.0, name, 3, 9), slide, note="known label: none")
    figure.draw_without_rendering()
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_text() and text.get_visible()
    ]
    assert len(boxes) > 25
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
        for other, second in boxes[i + 1 :]:
            apart = box.x1 <= second.x0 or second.x1 <= box.x0
            apart = apart or box.y1 <= second.y0 or second.y1 <= box.y0
            assert apart, (text, other)
    assert 1600 <= figure.bbox.width <= 2400


def test_the_page_says_what_it_shows() -> None:
    cells = [(i, 0) for i in range(10)]
    scores = make_scores(cells, evidence=[9.0] + [0.0] * 9, mpp=(0.25, 0.5))
    figure = heatmap_figure(scores, SCALE, backdrop(), note="held-out slide")
    texts = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    for said in (
        "Slide s1",
        "prob_tumour 0.75",
        "abmil, fold 0",
        "10 tiles of 25 × 50 µm every 25 × 50 µm",
        "0.25 × 0.5 µm per pixel",
        "held-out slide",
        "where the model looked, not what it concluded",
        "logit of tumour against the rest",
        "from 3 validation slides; 10.0% of this slide's",
    ):
        assert said in texts, said
    ticks = [tick.get_text() for tick in panel(figure, "evidence scale").get_xticklabels()]
    assert ticks == ["−4", "−2", "0", "+2", "+4"]
    assert panel(figure, "attention scale").get_xlim() == (-6, 6)


def test_a_slide_of_one_tile_without_tissue_mask_has_a_page(tmp_path: Path) -> None:
    slide = backdrop()
    slide = Backdrop(slide.thumbnail, (10, 10), np.zeros_like(slide.tissue_mask), (20, 20))
    scores = make_scores([(0, 0)])
    scale = CohortScale.fit([scores.evidence], scores.evidence_name)
    render_heatmap(make_scores([(0, 0)]), scale, slide, tmp_path / "maps" / "s1.png")
    with Image.open(tmp_path / "maps" / "s1.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 1600 <= picture.width <= 2400
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["s1.png"]


def test_the_same_scores_give_the_same_file(tmp_path: Path) -> None:
    scores = make_scores([(0, 0), (3, 2)], evidence=[1, -2])
    for name in ("a.png", "b.png"):
        render_heatmap(scores, SCALE, backdrop(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_scale_of_another_question_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'s1': evidence is 'logit.*', the scale is of 'risk'"):
        heatmap_figure(make_scores([(0, 0)]), CohortScale(1.0, "risk", 1, 1), backdrop())


def test_outlines_lie_at_their_millimetres() -> None:
    slide = backdrop(120, 80, (10.0, 20.0))
    lesion = np.array([[100.0, 200.0], [700.0, 200.0], [700.0, 1000.0]])
    slide = Backdrop(
        slide.thumbnail,
        slide.thumbnail_px0_per_px,
        slide.tissue_mask,
        slide.mask_px0_per_px,
        [lesion],
    )
    figure = heatmap_figure(make_scores([(0, 0)], mpp=(0.5, 0.25)), SCALE, slide)
    for name in ("slide", "evidence", "attention"):
        axes = panel(figure, name)
        (drawn,) = (line for line in axes.lines if line.get_gid() is None)
        corners = np.asarray(drawn.get_xydata())
        assert corners[:3] == pytest.approx(lesion * [0.5, 0.25] / 1000)
        assert corners[3] == pytest.approx(corners[0])
        # The mask of 60 x 40 pixels, 20 x 40 level-0 px each, holds tissue in [15, 45) x [10, 30).
        (contour,) = axes.collections
        outline = np.concatenate([path.vertices for path in contour.get_paths()])
        mask_px_mm = np.array([20 * 0.5, 40 * 0.25]) / 1000
        assert outline.min(axis=0) == pytest.approx(np.array([15, 10]) * mask_px_mm)
        assert outline.max(axis=0) == pytest.approx(np.array([45, 30]) * mask_px_mm)
