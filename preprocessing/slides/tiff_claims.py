"""What a damaged TIFF says of itself that cannot be.

openslide believes it: it ends the process where memory for a tile as large as a slide is refused,
and reads for days where a slide is wide as a continent.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path

import tifffile

from preprocessing.slides.tiff_index import DAMAGED

_MOST_TILE_PX = 1 << 28  # 1 GiB as openslide holds it; scanners store tiles of up to 4096 squared
_SEPARATE_PLANES = 2


def impossible_claim(path: Path) -> str:
    """Empty where there is none, or no TIFF whose directories could be read."""
    try:
        with tifffile.TiffFile(path) as tiff:
            claim = next(_impossible(tiff), "")
    except (*DAMAGED, OSError):
        return ""  # openslide's own answer counts
    return claim and f"its index is damaged: {claim}; copy it again"


def _impossible(tiff: tifffile.TiffFile) -> Iterator[str]:
    for page in tiff.pages:
        if not (isinstance(page, tifffile.TiffPage) and page.is_tiled):
            continue
        raster = f"a raster of {page.imagewidth} x {page.imagelength} px"
        tile = f"tiles of {page.tilewidth} x {page.tilelength} px"
        if not 0 < page.tilewidth * page.tilelength <= _MOST_TILE_PX:
            yield f"{raster} in {tile}"
            continue
        needed = ceil(page.imagewidth / page.tilewidth) * ceil(page.imagelength / page.tilelength)
        if page.planarconfig == _SEPARATE_PLANES:
            needed *= page.samplesperpixel
        listed = min(page.tags[tag].count for tag in ("TileOffsets", "TileByteCounts"))
        if listed < needed:
            yield f"{raster} needs {needed} {tile}, and {listed} are listed"
