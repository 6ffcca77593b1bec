"""A slide made of real tiles: an irregular piece of tissue on glass, a tumour region in it.

Tiles stand on a lattice of places. The lattice starts at an offset that no tiling of the finished
slide shares, so the tiles of a pipeline straddle the borders of the real ones.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from preprocessing.artefacts import whole_file

PLACE_PX = 224  # side of a source tile
MPP = 0.5
_OFFSET_PX0 = (60, 110)  # of the lattice from the slide's corner, drawn per slide and axis
_CELLS = 8  # raster cells along a place's side: the tissue's edge is drawn on these
_GLASS_RGB = (243, 242, 244)
_TIFF_TILE_PX = 256
_JPEG_QUALITY = 90
_LAST_LEVEL_PX = 512  # the pyramid ends with the first level whose longest side is not larger

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SourceTile:
    """A tile of the source set; tiles of one `source_group` show one original image."""

    path: str
    label: str
    source_group: str


@dataclass(frozen=True)
class PlacedTile:
    """A source tile at a top-left (x, y) of the slide; `orientation` is one of the 8 symmetries."""

    x_px0: int
    y_px0: int
    tile: SourceTile
    orientation: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Where tissue and tumour lie: (rows, columns) of places, tissue also in cells of a place."""

    tissue_cells: Mask
    tumour: Mask
    offset_px0: tuple[int, int]

    @property
    def tissue(self) -> Mask:
        """Places that hold any tissue."""
        rows, columns = self.tumour.shape
        cells = self.tissue_cells.reshape(rows, _CELLS, columns, _CELLS)
        return np.asarray(cells.any(axis=(1, 3)))

    @property
    def size_px0(self) -> tuple[int, int]:
        """(width, height): the places, and as much glass on the far side as the offset leaves."""
        rows, columns = self.tumour.shape
        x, y = self.offset_px0
        return columns * PLACE_PX + 2 * x, rows * PLACE_PX + 2 * y

    def corner_px0(self, row: int, column: int) -> tuple[int, int]:
        return self.offset_px0[0] + column * PLACE_PX, self.offset_px0[1] + row * PLACE_PX

    def rings_px0(self) -> list[NDArray[np.float64]]:
        """Closed rings (M, 2) around the tumour; one, as it is connected and has no holes."""
        boxes = []
        for row, column in np.argwhere(self.tumour).tolist():
            x, y = self.corner_px0(row, column)
            boxes.append(shapely.box(x, y, x + PLACE_PX, y + PLACE_PX))
        region = shapely.union_all(boxes).simplify(0)  # drops the corners along straight edges
        return [shapely.get_coordinates(part) for part in shapely.get_parts(region)]


def draw_layout(rng: np.random.Generator, *, places: int, tumour_share: float) -> Layout:
    """Tissue over 36 to 46 % of `places` x `places`; `tumour_share` of its area is tumour."""
    tissue_cells = _grow_tissue(rng, places, share=rng.uniform(0.36, 0.46))
    offset_x, offset_y = rng.integers(*_OFFSET_PX0, size=2, endpoint=True).tolist()
    tumour = np.zeros((places, places), dtype=bool)
    if tumour_share > 0:
        wanted = max(3, round(tumour_share * tissue_cells.sum() / _CELLS**2))
        tumour = _grow_tumour(rng, tissue_cells, wanted)
    return Layout(tissue_cells, tumour, (offset_x, offset_y))


def _grow_tissue(rng: np.random.Generator, places: int, *, share: float) -> Mask:
    """One connected piece without holes: what is near the middle, more or less."""
    side = places * _CELLS
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), 1.3 * _CELLS)
    y, x = np.mgrid[0:side, 0:side] / side - rng.uniform(0.42, 0.58, size=(2, 1, 1))
    depth = 0.16 * noise / noise.std() - np.hypot(x, y * rng.uniform(0.8, 1.25))
    piece = _largest_part(depth > np.quantile(depth, 1 - share))
    return np.asarray(ndimage.binary_fill_holes(piece))


def _largest_part(mask: Mask) -> Mask:
    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    return labels == np.bincount(labels[mask]).argmax()


def _grow_tumour(rng: np.random.Generator, tissue_cells: Mask, wanted: int) -> Mask:
    """About `wanted` places, edge to edge, all of them (and a cell around them) in tissue."""
    places = len(tissue_cells) // _CELLS
    inner = ndimage.binary_erosion(tissue_cells, np.ones((3, 3)), border_value=1)
    whole = np.asarray(inner).reshape(places, _CELLS, places, _CELLS).all(axis=(1, 3))
    free = _largest_part(np.asarray(whole))
    row, column = rng.choice(np.argwhere(free))
    rows, columns = np.indices(free.shape)
    remote = np.hypot(rows - row, columns - column) + rng.normal(0, 0.5, free.shape)
    tumour = np.zeros_like(free)
    tumour[row, column] = True
    for _ in range(wanted - 1):
        frontier = np.asarray(ndimage.binary_dilation(tumour), dtype=bool) & free & ~tumour
        if not frontier.any():
            break
        tumour[np.unravel_index(np.where(frontier, remote, np.inf).argmin(), free.shape)] = True
    return np.asarray(ndimage.binary_fill_holes(tumour))


def orient(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """One of the 8 symmetries of the square: quarter turns, mirrored from 4 on."""
    turned = np.rot90(rgb, orientation % 4)
    return turned[:, ::-1] if orientation >= 4 else turned


def paint_mosaic(
    rng: np.random.Generator, layout: Layout, placed: list[PlacedTile], root: Path
) -> NDArray[np.uint8]:
    """(height, width, 3): the placed tiles, cut along the tissue's edge, on noisy glass."""
    width, height = layout.size_px0
    noise = rng.normal(0, 1.5, (height, width, 1)).astype(np.float32)
    glass = np.clip(np.array(_GLASS_RGB, dtype=np.float32) + noise, 0, 255).astype(np.uint8)
    cover = _soft_cover(layout.tissue_cells)
    x0, y0 = layout.offset_px0
    for one in placed:
        window = np.s_[one.y_px0 : one.y_px0 + PLACE_PX, one.x_px0 : one.x_px0 + PLACE_PX]
        top, left = one.y_px0 - y0, one.x_px0 - x0
        alpha = cover[top : top + PLACE_PX, left : left + PLACE_PX, None]
        with Image.open(root / one.tile.path) as image:
            tile = orient(np.asarray(image.convert("RGB")), one.orientation)
        glass[window] = np.rint(glass[window] * (1 - alpha) + tile * alpha)
    return glass


def _soft_cover(tissue_cells: Mask) -> NDArray[np.float32]:
    """The tissue in pixels: 1 inside, 0 outside, a rim of about 10 px between.

    The blur rounds the raster's stairs and stays within one cell of them, so that places with a
    cell of tissue around them are covered fully.
    """
    side = len(tissue_cells) * PLACE_PX // _CELLS
    rounded = ndimage.gaussian_filter(tissue_cells.astype(np.float32), 0.7, mode="nearest")
    smooth = Image.fromarray(rounded).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(smooth, dtype=np.float32) - 0.5) * 4 + 0.5, 0, 1)


def write_aperio(path: Path, rgb: NDArray[np.uint8]) -> None:
    """A tiled JPEG pyramid, each level half the last, described as an Aperio scanner does."""
    level = Image.fromarray(rgb)
    with whole_file(path) as partial, tifffile.TiffWriter(partial) as tiff:
        while True:
            width, height = level.size
            per_cm = 10_000 / (MPP * rgb.shape[1] / width)
            tiff.write(
                np.asarray(level),
                tile=(_TIFF_TILE_PX, _TIFF_TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                description=(
                    f"Aperio Image Library v12.0.0 \r\n{width}x{height} "
                    f"({_TIFF_TILE_PX}x{_TIFF_TILE_PX}) JPEG/RGB Q={_JPEG_QUALITY}"
                    f"|AppMag = 20|MPP = {MPP}"
                ),
                software=False,
                metadata=None,
            )
            if max(level.size) <= _LAST_LEVEL_PX:
                return
            level = level.reduce(2)
