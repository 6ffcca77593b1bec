"""What an imported store says of its slide: from the slide's file, or from what is left without."""

import hashlib
import logging
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import MppError, StoreError, UnreadableSlide
from preprocessing.interchange.base import ForeignTiles, GivenFacts, Pair
from preprocessing.manifest import SlideRow

_log = logging.getLogger(__name__)
_THUMBNAIL_PX = 1024
_OVERVIEW_MPP = 8.0
_WHITE = 255


@dataclass(frozen=True, eq=False)
class SlideFacts:
    """`level0_size` (width, height) is None where nobody states it; pairs are (x, y)."""

    mpp: Pair
    mpp_source: str
    level0_size: tuple[int, int] | None
    bounds_px0: tuple[int, int, int, int] | None
    fingerprint: str
    vendor: str = "unknown"
    objective_power: float | None = None
    properties: dict[str, str] = field(default_factory=dict)
    thumbnail: NDArray[np.uint8] | None = None
    thumbnail_px0_per_px: Pair = (1.0, 1.0)


def facts_of_slide(row: SlideRow, tiles: ForeignTiles, given: GivenFacts) -> SlideFacts:
    """From the slide's file where openslide can open it, else from the manifest, what is given and
    what the other tool says. Raises `MppError` where nobody states the micrometres per pixel.
    """
    if row.path.is_file():
        try:
            facts = _from_file(row, given)
        except UnreadableSlide as error:
            _log.warning("imported without the slide's file: %s", error)
        else:
            _refuse_other_slide(row, tiles, facts)
            return facts
    mpp, source = _stated_mpp(row, tiles, given)
    size = _agreed_size(tiles, given)
    fingerprint = (
        "features:" + hashlib.sha256(np.ascontiguousarray(tiles.features).data).hexdigest()
    )
    return SlideFacts(mpp, source, size, tiles.bounds_px0, fingerprint)


def white_thumbnail(level0_size: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
    """A white picture, and how many level-0 pixels one of its pixels is wide and high."""
    scale = max(1.0, max(level0_size) / _THUMBNAIL_PX)
    width, height = (ceil(side / scale) for side in level0_size)
    return np.full((height, width, 3), _WHITE, dtype=np.uint8), scale


def _from_file(row: SlideRow, given: GivenFacts) -> SlideFacts:
    """What is given counts where neither the file nor the manifest states a resolution."""
    try:
        return _read_file(row)
    except MppError:
        if row.mpp is not None or given.mpp is None:
            raise
        return replace(_read_file(replace(row, mpp=given.mpp)), mpp_source="given")


def _read_file(row: SlideRow) -> SlideFacts:
    from preprocessing.slides.slide import open_slide  # openslide, which an import can do without

    with open_slide(row) as slide:
        _, picture = slide.overviews(mpp=_OVERVIEW_MPP, longest_px=_THUMBNAIL_PX)
        return SlideFacts(
            mpp=(slide.pyramid.mpp_x, slide.pyramid.mpp_y),
            mpp_source=slide.mpp_source,
            level0_size=(slide.pyramid.size_px0.width, slide.pyramid.size_px0.height),
            bounds_px0=slide.bounds_px0,
            fingerprint=slide.fingerprint,
            vendor=slide.vendor,
            objective_power=slide.objective_power,
            properties=slide.properties,
            thumbnail=picture.rgb,
            thumbnail_px0_per_px=(picture.px0_per_px_x, picture.px0_per_px_y),
        )


def _refuse_other_slide(row: SlideRow, tiles: ForeignTiles, facts: SlideFacts) -> None:
    """By size; tools that compute level 0 from another level miss it by some pixels."""
    size = facts.level0_size
    if tiles.level0_size and size and not np.allclose(tiles.level0_size, size, rtol=0.01, atol=0):
        raise StoreError(
            f"{tiles.path}: made of a slide of {tiles.level0_size} level-0 pixels, {row.path} has "
            f"{size}; correct 'path' in the manifest, or take the slide out of it"
        )


def _stated_mpp(row: SlideRow, tiles: ForeignTiles, given: GivenFacts) -> tuple[Pair, str]:
    stated = {"manifest": row.mpp, "given": given.mpp, "imported file": tiles.mpp}
    pairs = {
        source: mpp if isinstance(mpp, tuple) else (mpp, mpp)
        for source, mpp in stated.items()
        if mpp is not None
    }
    if not pairs:
        raise MppError(
            row.slide_id,
            f"{tiles.path} states no micrometres per level-0 pixel; set column 'mpp' in the "
            "manifest, or give it for all slides (mpp)",
        )
    source = next(iter(pairs))
    for other, pair in pairs.items():
        if not np.allclose(pair, pairs[source], rtol=0.1, atol=0):
            raise MppError(
                row.slide_id,
                f"{tiles.path}: {source} = {pairs[source]} um/px contradicts {other} = {pair}; "
                "correct or drop the wrong one",
            )
    return pairs[source], source


def _agreed_size(tiles: ForeignTiles, given: GivenFacts) -> tuple[int, int] | None:
    if tiles.level0_size and given.level0_size and tiles.level0_size != given.level0_size:
        raise StoreError(
            f"{tiles.path}: says that the slide is {tiles.level0_size} level-0 pixels, given was "
            f"{given.level0_size}; correct or drop what was given"
        )
    return tiles.level0_size or given.level0_size
