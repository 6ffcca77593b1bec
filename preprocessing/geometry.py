"""Slide geometry: which pyramid level to read, how large a tile is in it, nothing rounded.

Frames: `px0` are level-0 pixels, `px` pixels of the raster at hand, `um` micrometres on the glass.
A tile is defined in micrometres (`tile_px` x requested mpp), so its side in level-0 pixels is a
fraction; rounding happens once, when the grid stores top-left corners.
"""

from dataclasses import dataclass
from math import isfinite

# Vendors round level sizes to whole pixels, so a level's true mpp is uncertain by about this much.
LEVEL_TOLERANCE = 1e-3


class ResolutionError(ValueError):
    """The requested mpp is finer than level 0 allows; the caller adds the slide's id."""


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")


@dataclass(frozen=True)
class Size:
    width: int
    height: int

    def __post_init__(self) -> None:
        _require_positive(width=self.width, height=self.height)


@dataclass(frozen=True)
class Level:
    """One raster of a pyramid; `downsample` is level-0 pixels per pixel of this level."""

    index: int
    size: Size
    downsample: float

    def __post_init__(self) -> None:
        _require_positive(downsample=self.downsample)


@dataclass(frozen=True)
class Pyramid:
    """Levels from fine to coarse, level 0 first, and the micrometres per level-0 pixel."""

    levels: tuple[Level, ...]
    mpp_x: float
    mpp_y: float

    def __post_init__(self) -> None:
        _require_positive(mpp_x=self.mpp_x, mpp_y=self.mpp_y)
        if not self.levels:
            raise ValueError("a pyramid needs at least one level, got none")
        indices = [level.index for level in self.levels]
        if indices != list(range(len(self.levels))):
            raise ValueError(f"levels must be numbered 0, 1, 2, ... in order, got {indices}")
        downsamples = [level.downsample for level in self.levels]
        if abs(downsamples[0] - 1) > LEVEL_TOLERANCE or downsamples != sorted(downsamples):
            raise ValueError(f"downsamples must rise from 1, got {downsamples}")

    @property
    def size_px0(self) -> Size:
        return self.levels[0].size

    def mpp_at(self, level: int) -> tuple[float, float]:
        """Micrometres per pixel of a level, (x, y)."""
        downsample = self.levels[level].downsample
        return self.mpp_x * downsample, self.mpp_y * downsample

    def coarsest_level_for(self, mpp: float) -> int | None:
        """The coarsest level that is at least as fine as `mpp` on both axes; None if none is."""
        limit_mpp = mpp * (1 + LEVEL_TOLERANCE)
        fine_enough = [n.index for n in self.levels if max(self.mpp_at(n.index)) <= limit_mpp]
        return max(fine_enough, default=None)


@dataclass(frozen=True)
class TileGeometry:
    """How every tile of a slide is cut: a box of `read_px_x` x `read_px_y` (fractional) pixels of
    `level`, which is `tile_px0_x` x `tile_px0_y` level-0 pixels, resampled to `tile_px` squared.
    """

    level: int
    tile_px: int
    tile_px0_x: float
    tile_px0_y: float
    stride_px0_x: float
    stride_px0_y: float
    read_px_x: float
    read_px_y: float
    effective_mpp_x: float
    effective_mpp_y: float


def plan_tiles(
    pyramid: Pyramid, *, mpp: float, tile_px: int, overlap_px: int = 0, max_upsampling: float = 1.0
) -> TileGeometry:
    """Tiles of exactly `mpp`, read from the coarsest level that is at least as fine.

    The number and place of tiles follow from level 0 alone, never from which levels exist.
    Raises `ResolutionError` when `mpp` is finer than level 0 by more than `max_upsampling`.
    """
    _require_positive(mpp=mpp, tile_px=tile_px)
    if not 0 <= overlap_px < tile_px:
        raise ValueError(f"overlap_px must be in [0, tile_px={tile_px}), got {overlap_px}")
    level = pyramid.coarsest_level_for(mpp)
    if level is None:
        coarsest_axis_mpp = max(pyramid.mpp_x, pyramid.mpp_y)
        if coarsest_axis_mpp > mpp * max_upsampling * (1 + LEVEL_TOLERANCE):
            raise ResolutionError(
                f"tiles of {mpp:g} um/px were requested, but level 0 has {coarsest_axis_mpp:g} "
                f"um/px and at most {max_upsampling:g}x upsampling is allowed; "
                "request a coarser grid.mpp or raise grid.max_upsampling"
            )
        level = 0
    tile_px0_x = tile_px * mpp / pyramid.mpp_x
    tile_px0_y = tile_px * mpp / pyramid.mpp_y
    stride_share = (tile_px - overlap_px) / tile_px
    downsample = pyramid.levels[level].downsample
    return TileGeometry(
        level=level,
        tile_px=tile_px,
        tile_px0_x=tile_px0_x,
        tile_px0_y=tile_px0_y,
        stride_px0_x=tile_px0_x * stride_share,
        stride_px0_y=tile_px0_y * stride_share,
        read_px_x=tile_px0_x / downsample,
        read_px_y=tile_px0_y / downsample,
        effective_mpp_x=tile_px0_x * pyramid.mpp_x / tile_px,
        effective_mpp_y=tile_px0_y * pyramid.mpp_y / tile_px,
    )
