"""TRIDENT: a job folder of `<mag>x_<px>px_<ov>px_overlap/`, in which there are

    patches/<slide>_patches.h5       coords (N, 2) int64, with the geometry as attributes
    features_<encoder>/<slide>.h5    features (N, D) and coords with the same attributes

It stores magnifications and no micrometres: an import needs mpp and tile_mpp. An export writes the
nominal magnifications of the slide and of its tiles, and the tile's side as it is, which is not
always their quotient. `level0_magnification` is the objective's power where it is known, else that
of the mpp. Chunks hold one tile, as TRIDENT's do, which makes them slow to read.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from preprocessing.artefacts import whole_file
from preprocessing.errors import StoreError
from preprocessing.interchange.base import (
    ForeignTiles,
    Format,
    GivenFacts,
    OutgoingSlide,
    plain_name,
    reading,
)
from preprocessing.interchange.h5 import attribute, attributes, dataset, grown

# What TRIDENT takes for an objective's power where a slide states none: up to so many um/px.
_POWER_UP_TO_MPP = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))


class Trident(Format):
    name = "TRIDENT"

    def read(self, source: Path, slide_id: str, encoder: str, given: GivenFacts) -> ForeignTiles:
        """`source`: a job folder, or the one folder below it of a magnification and tile size."""
        del given
        path = _features_file(source, slide_id, encoder)
        with reading(path, self.name), h5py.File(path) as file:
            features, places = dataset(file, "features")[...], dataset(file, "coords")
            patch_px = int(attribute(places, "patch_size"))
            about = attributes(places)
            side_px0 = float(about.get("patch_size_level0", 0)) or _side_px0(places)
            overlap_px = int(about.get("overlap", 0))
            size = [int(attribute(places, f"level0_{name}")) for name in ("width", "height")]
            coords = places[...]
        stride_px0 = side_px0 * (1 - overlap_px / max(1, patch_px))
        return ForeignTiles(
            path,
            coords,
            "px0",
            features,
            tile_px=patch_px,
            tile_px0=(side_px0, side_px0),
            stride_px0=(stride_px0, stride_px0),
            level0_size=(size[0], size[1]),
        )

    def paths(self, target: Path, slide: OutgoingSlide) -> list[Path]:
        folder = target / _folder_name(slide)
        return [
            folder / "patches" / f"{slide.slide_id}_patches.h5",
            folder / f"features_{plain_name(slide.encoder)}" / f"{slide.slide_id}.h5",
        ]

    def write(self, target: Path, slide: OutgoingSlide) -> None:
        patches, features = self.paths(target, slide)
        coords = slide.coords_px0.astype(np.int64)
        attributes = _attributes(slide, patches.parent)
        with whole_file(patches) as partial, h5py.File(partial, "w") as file:
            grown(file, "coords", coords, rows_per_chunk=1).attrs.update(attributes)
        about = {
            "name": slide.slide_id,
            "savetodir": str(features.parent),
            "encoder": slide.encoder,
        }
        with whole_file(features) as partial, h5py.File(partial, "w") as file:
            values = slide.features().astype(np.float32)
            grown(file, "features", values, rows_per_chunk=1).attrs.update(about)
            grown(file, "coords", coords, rows_per_chunk=1).attrs.update(attributes)


def _features_file(source: Path, slide_id: str, encoder: str) -> Path:
    wanted = Path(f"features_{plain_name(encoder)}", f"{slide_id}.h5")
    found = [source / wanted] if (source / wanted).exists() else sorted(source.glob(f"*/{wanted}"))
    if len(found) > 1:
        raise StoreError(
            f"{source}: features of slide {slide_id!r} in {', '.join(str(p) for p in found)}; name "
            "the folder of one magnification and tile size"
        )
    return found[0] if found else source / wanted


def _side_px0(places: h5py.Dataset) -> float:
    """By TRIDENT's own formula, for files of before it wrote the result."""
    level0, target = (attribute(places, f"{of}_magnification") for of in ("level0", "target"))
    return float(attribute(places, "patch_size") * level0 // target)


def _magnifications(slide: OutgoingSlide) -> tuple[int, int]:
    """Nominal ones of level 0 and of the tiles, as TRIDENT's attributes want them."""
    power = slide.provenance.objective_power
    if power is None:
        powers = [power for mpp, power in _POWER_UP_TO_MPP if slide.mpp <= mpp]
        if not powers:
            raise StoreError(
                f"slide {slide.slide_id!r}: TRIDENT knows no magnification of {slide.mpp:g} um per "
                "pixel; it cannot be exported to it"
            )
        power = powers[0]
    return round(power), max(1, round(power * slide.provenance.tile_px / slide.tile_px0))


def _folder_name(slide: OutgoingSlide) -> str:
    _, target = _magnifications(slide)
    return f"{target}x_{slide.provenance.tile_px}px_{slide.overlap_px}px_overlap"


def _attributes(slide: OutgoingSlide, folder: Path) -> dict[str, Any]:
    level0, target = _magnifications(slide)
    return {
        "patch_size": slide.provenance.tile_px,
        "patch_size_level0": round(slide.tile_px0),
        "level0_magnification": level0,
        "target_magnification": target,
        "overlap": slide.overlap_px,
        "name": slide.slide_id,
        "savetodir": str(folder),
        "level0_width": slide.level0_size[0],
        "level0_height": slide.level0_size[1],
    }
