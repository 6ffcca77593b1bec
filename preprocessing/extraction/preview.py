"""A picture of each slide for a person to check: what counts as tissue and which tiles are cut.

What no tile covers is faded. Tissue is outlined in green, tiles in grey; unreadable tiles are
crossed in red, tiles outside the limits of quality struck through in orange. Where tiles are too
small for lines, those are tinted.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib import get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from preprocessing.artefacts import whole_file
from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError
from preprocessing.stores.limits import breaches
from preprocessing.stores.provenance import Provenance
from preprocessing.stores.store import FeatureStore, SlideFeatures, open_store, store_path
from preprocessing.tissue.rasters import dilated

_log = logging.getLogger(__name__)
PREVIEWS = "previews"
_LIMITS = "histomil limits of quality"
_LONGEST_PX, _LEAST_WIDTH_PX = 1200, 900
_MARGIN_PX, _LINE_PX = 20, 24
_TITLE_PX, _TEXT_PX = 22, 16
_FADED = 0.55  # of the way to white
_LEAST_BOX_PX = 6.0
_OUTLINE = (0, 130, 60)
_TILE = (70, 80, 110)
_UNREADABLE = (200, 0, 30)
_OUTSIDE = (230, 120, 0)
_INK = (25, 25, 30)

_Box = tuple[int, int, int, int]
_Colour = tuple[int, int, int]


def preview_path(folder: Path, slide_id: str) -> Path:
    return folder / PREVIEWS / f"{slide_id}.png"


def write_preview(
    folder: Path, contents: SlideFeatures | FeatureStore, limits: QualityConfig
) -> Path:
    """Writes `<folder>/previews/<slide_id>.png`, whole or not at all; an older one is replaced.

    Tiles whose quality is not known count as within the limits.
    """
    path = preview_path(folder, contents.provenance.slide_id)
    page = draw_preview(contents, limits)
    facts = PngInfo()
    facts.add_text(_LIMITS, limits.model_dump_json())
    with whole_file(path) as partial:
        # A quarter of the time of the default, for a file a tenth larger.
        page.save(partial, compress_level=2, pnginfo=facts)
    return path


def renew_previews(folder: Path, slide_ids: Iterable[str], limits: QualityConfig) -> int:
    """Draws those previews again that do not show these limits; how many were drawn.

    A slide without a preview, such as an imported one, gets none. A store that is not whole keeps
    its preview and is logged.
    """
    stale = [slide_id for slide_id in slide_ids if _is_stale(folder, slide_id, limits)]
    drawn = 0
    for slide_id in tqdm(stale, unit="preview", mininterval=2, disable=not stale):
        try:
            write_preview(folder, open_store(store_path(folder, slide_id)), limits)
        except StoreError as error:
            _log.warning("its preview is not up to date: %s", error)
        else:
            drawn += 1
    return drawn


def _is_stale(folder: Path, slide_id: str, limits: QualityConfig) -> bool:
    path = preview_path(folder, slide_id)
    if not path.is_file():
        return False
    try:
        with Image.open(path) as page:
            return page.info.get(_LIMITS) != limits.model_dump_json()
    except OSError:  # it is damaged
        return True


def draw_preview(contents: SlideFeatures | FeatureStore, limits: QualityConfig) -> Image.Image:
    """The slide's picture between what it is and what the marks mean, RGB."""
    view = _View.of(contents.provenance)
    broken = breaches(contents.quality, limits)
    outside = np.any([*broken.values(), contents.read_error], axis=0) & ~contents.read_error
    picture = _draw_slide(contents, view, outside)
    head = _facts(contents, {key: int((at & outside).sum()) for key, at in broken.items()})
    width = max(view.width, _LEAST_WIDTH_PX)
    lines = [line for fact in head for line in _wrapped(fact, width)]
    top = _MARGIN_PX + _LINE_PX * (len(lines) + 1) + 8
    page = Image.new(
        "RGB", (width + 2 * _MARGIN_PX, top + view.height + 3 * _LINE_PX + _MARGIN_PX), "white"
    )
    draw = ImageDraw.Draw(page)
    title = contents.provenance.slide_id
    draw.text((_MARGIN_PX, _MARGIN_PX - 4), title, font=_font(_TITLE_PX, bold=True), fill=_INK)
    for number, line in enumerate(lines, start=1):
        at = (_MARGIN_PX, _MARGIN_PX + _LINE_PX * number + 4)
        draw.text(at, line, font=_font(_TEXT_PX), fill=_INK)
    page.paste(picture, (_MARGIN_PX, top))
    draw.rectangle(
        (_MARGIN_PX - 1, top - 1, _MARGIN_PX + view.width, top + view.height), outline=(190,) * 3
    )
    foot = top + view.height + 14
    _draw_scale_bar(draw, (_MARGIN_PX, foot), view)
    _draw_key(draw, (_MARGIN_PX, foot + _LINE_PX + 6), lined=view.draws_lines)
    return page


@dataclass(frozen=True)
class _View:
    """The picture: the whole slide on `width` x `height` px; whether a tile has room for lines."""

    width: int
    height: int
    px0_per_px_x: float
    px0_per_px_y: float
    um_per_px: float
    draws_lines: bool

    @classmethod
    def of(cls, slide: Provenance) -> "_View":
        scale = _LONGEST_PX / max(slide.level0_width, slide.level0_height)
        width = max(1, round(slide.level0_width * scale))
        height = max(1, round(slide.level0_height * scale))
        x, y = slide.level0_width / width, slide.level0_height / height
        side = min(slide.tile_px0_x / x, slide.tile_px0_y / y)
        return cls(width, height, x, y, x * slide.mpp_x, side >= _LEAST_BOX_PX)

    def fitted(self, picture: Image.Image, px0_per_px: tuple[float, float]) -> NDArray[np.uint8]:
        """A picture that begins where the slide does; what of it lies past the slide is cut."""
        covered = (
            min(picture.width, self.width * self.px0_per_px_x / px0_per_px[0]),
            min(picture.height, self.height * self.px0_per_px_y / px0_per_px[1]),
        )
        size = (self.width, self.height)
        return np.array(picture.resize(size, Image.Resampling.BILINEAR, box=(0, 0, *covered)))


def _draw_slide(
    contents: SlideFeatures | FeatureStore, view: _View, outside: NDArray[np.bool_]
) -> Image.Image:
    slide = contents.provenance
    rgb = view.fitted(
        Image.fromarray(contents.thumbnail),
        (slide.thumbnail_px0_per_px_x, slide.thumbnail_px0_per_px_y),
    )
    mask = view.fitted(
        Image.fromarray(contents.tissue_mask.astype(np.uint8) * 255),
        (slide.mask_px0_per_px_x, slide.mask_px0_per_px_y),
    )
    tissue = mask >= 128
    boxes = _boxes(contents, view)
    faded = ~_covered(boxes, tissue.shape)
    rgb[faded] = 255 - (255 - rgb[faded]) * (1 - _FADED)
    marks = ((outside, _OUTSIDE, 1), (contents.read_error, _UNREADABLE, 2))
    if view.draws_lines:
        picture = Image.fromarray(rgb)
        _draw_lines(ImageDraw.Draw(picture), boxes, marks)
        rgb = np.array(picture)
    else:
        for marked, colour, _ in marks:
            tinted = _covered([boxes[row] for row in np.flatnonzero(marked)], tissue.shape)
            rgb[tinted] = rgb[tinted] // 2 + np.array(colour, dtype=np.uint8) // 2
    rgb[dilated(tissue, 1) & ~tissue] = _OUTLINE
    rgb[tissue & dilated(~tissue, 1)] = _OUTLINE
    return Image.fromarray(rgb)


def _boxes(contents: SlideFeatures | FeatureStore, view: _View) -> list[_Box]:
    """(left, top, right, bottom) of every tile, its lines included; neighbours share a line."""
    slide = contents.provenance
    scale = np.array([view.px0_per_px_x, view.px0_per_px_y])
    tile_px0 = np.array([slide.tile_px0_x, slide.tile_px0_y])
    ends = np.concatenate(
        [contents.coords_px0 / scale, (contents.coords_px0 + tile_px0) / scale], 1
    )
    ends = np.minimum(np.rint(ends), 2 * [view.width - 1, view.height - 1]).astype(int)
    return [(left, top, right, bottom) for left, top, right, bottom in ends.tolist()]


def _covered(boxes: list[_Box], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    covered = np.zeros(shape, dtype=bool)
    for left, top, right, bottom in boxes:
        covered[top : bottom + 1, left : right + 1] = True
    return covered


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    boxes: list[_Box],
    marks: Iterable[tuple[NDArray[np.bool_], _Colour, int]],
) -> None:
    """Marked tiles, with one diagonal or two, come last: no neighbour's line crosses theirs."""
    for box in boxes:
        draw.rectangle(box, outline=_TILE)
    for marked, colour, diagonals in marks:
        for row in np.flatnonzero(marked):
            _draw_box(draw, boxes[row], colour, diagonals)


def _draw_box(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour, diagonals: int) -> None:
    left, top, right, bottom = box
    draw.rectangle(box, outline=colour)
    for line in ((left, bottom, right, top), box)[:diagonals]:
        draw.line(line, fill=colour, width=2)


def _facts(contents: SlideFeatures | FeatureStore, outside: dict[str, int]) -> list[str]:
    slide = contents.provenance
    mpp = f"{slide.mpp_x:.4g}"
    if f"{slide.mpp_y:.4g}" != mpp:
        mpp += f" × {slide.mpp_y:.4g}"
    power = f", {slide.objective_power:g}× objective" if slide.objective_power else ""
    um = slide.tile_px * slide.requested_mpp
    tiles = (
        f"{len(contents.coords_px0):,} tiles of {slide.tile_px} px at {slide.requested_mpp:g} "
        f"µm/px ({um:g} µm)"
    )
    lost = [f"{contents.read_error.sum():,} unreadable"] if contents.read_error.any() else []
    if broken := ", ".join(f"{key} {count:,}" for key, count in outside.items() if count):
        lost.append(f"outside limits of quality: {broken}")
    return [
        f"{slide.level0_width:,} × {slide.level0_height:,} px, {mpp} µm/px ({slide.mpp_source})"
        f"{power}, {slide.vendor}",
        "; ".join([tiles, f"tissue {contents.tissue_mask.mean():.1%} of the slide", *lost]),
    ]


def _draw_scale_bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], view: _View) -> None:
    length_mm = _scale_bar_mm(view.width * view.um_per_px / 1000)
    right = at[0] + round(length_mm * 1000 / view.um_per_px)
    draw.rectangle((at[0], at[1], right, at[1] + 5), fill=_INK)
    label = f"{length_mm:g} mm"
    draw.text((right + 10, at[1] + 3), label, font=_font(_TEXT_PX), fill=_INK, anchor="lm")


def _scale_bar_mm(width_mm: float) -> float:
    """The longest 1, 2 or 5 x 10^n mm that fits a quarter of `width_mm`."""
    power = 10.0 ** math.floor(math.log10(width_mm / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_mm / 4 * (1 + 1e-9))


def _draw_key(draw: ImageDraw.ImageDraw, at: tuple[int, int], *, lined: bool) -> None:
    left, top = at
    font = _font(_TEXT_PX)
    for label, colour, diagonals in (
        ("tissue", _OUTLINE, 0),
        *((("tile", _TILE, 0),) if lined else ()),
        ("unreadable", _UNREADABLE, 2),
        ("outside limits of quality", _OUTSIDE, 1),
    ):
        box = (left, top, left + 14, top + 14)
        if lined or colour == _OUTLINE:
            _draw_box(draw, box, colour, diagonals)
        else:
            draw.rectangle(box, fill=tuple(127 + part // 2 for part in colour))
        draw.text((left + 22, top + 7), label, font=font, fill=_INK, anchor="lm")
        left += 50 + round(font.getlength(label))
    draw.text((left, top + 7), "faded: no tile", font=font, fill=_INK, anchor="lm")


def _wrapped(text: str, width_px: int) -> list[str]:
    """In lines of about that width: characters are taken to be as wide as they are on average."""
    return wrap(text, max(20, int(0.97 * width_px * len(text) / _font(_TEXT_PX).getlength(text))))


@cache
def _font(height_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Pillow's own font has neither µ nor ×."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, height_px)
