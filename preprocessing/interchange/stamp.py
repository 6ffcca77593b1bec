"""STAMP: `<encoder>/<slide>.h5` with feats (N, D) float16 and coords (N, 2) in micrometres.

The size of a tile stands in the file's attributes; pixels follow from the slide's mpp. Older files
call it `tile_size`, and still older ones say nothing: those need coords_unit, and where it is
neither 'um' nor 'stamp-v1' the size of a tile. An export leaves out `stamp_version`: STAMP refuses
files of a version later than its own, and takes those without.
"""

import re
from importlib.metadata import version
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
from preprocessing.interchange.h5 import attributes, dataset

_HASH = "-[0-9a-f]{8}$"  # of STAMP's code, behind the encoder's name
_DECIMALS = 6  # or slides of one size of tiles would differ in the last bit of it


class Stamp(Format):
    name = "STAMP"

    def read(self, source: Path, slide_id: str, encoder: str, given: GivenFacts) -> ForeignTiles:
        """`source`: the folder of features, or the one above, with one `<encoder>[-<hash>]`."""
        del given
        path = _features_file(source, slide_id, encoder)
        with reading(path, self.name), h5py.File(path) as file:
            features, coords = dataset(file, "feats")[...], dataset(file, "coords")[...]
            about = attributes(file)
            _refuse_other_features(path, about, encoder)
            if "augmented" in file and dataset(file, "augmented")[...].any():
                raise StoreError(f"{path}: holds altered copies of tiles; extract without them")
            unit = about.get("unit")
            side_um = about.get("tile_size_um", about.get("tile_size") if unit else None)
            tile_px = about.get("tile_size_px")
            return ForeignTiles(
                path,
                coords,
                "um" if unit == "um" or side_um is not None else None,
                features,
                tile_px=None if tile_px is None else int(tile_px),
                tile_mpp=round(side_um / tile_px, _DECIMALS) if tile_px and side_um else None,
                tile_um=None if side_um is None else float(side_um),
            )

    def paths(self, target: Path, slide: OutgoingSlide) -> list[Path]:
        return [target / plain_name(slide.encoder) / f"{slide.slide_id}.h5"]

    def write(self, target: Path, slide: OutgoingSlide) -> None:
        (path,) = self.paths(target, slide)
        made = slide.provenance
        with whole_file(path) as partial, h5py.File(partial, "w") as file:
            file["coords"] = (slide.coords_px0 * (made.mpp_x, made.mpp_y)).astype(np.float32)
            file["feats"] = slide.features()
            file.attrs.update(_attributes(slide))


def _refuse_other_features(path: Path, about: dict[str, Any], encoder: str) -> None:
    """Of whole slides, in another unit, or of another encoder than was asked for."""
    kind, unit = about.get("feat_type", "tile"), about.get("unit")
    if kind != "tile":
        raise StoreError(f"{path}: features of a whole {kind}; import those of its tiles")
    if unit not in (None, "um"):
        raise StoreError(f"{path}: coordinates in {unit!r}, expected 'um'; extract them again")
    made_by = str(about.get("extractor", encoder))
    if plain_name(encoder) not in (plain_name(made_by), re.sub(_HASH, "", plain_name(made_by))):
        raise StoreError(
            f"{path}: features of encoder {made_by!r} by the file, {encoder!r} was asked for; name "
            "the folder of that one, or say what the file calls it (their_encoder)"
        )


def _features_file(source: Path, slide_id: str, encoder: str) -> Path:
    folder, file = plain_name(encoder), f"{slide_id}.h5"
    direct, below = source / file, source / folder / file
    hashed = sorted(source.glob(f"{folder}-{'[0-9a-f]' * 8}/{file}"))
    found = [path for path in (direct, below, *hashed) if path.exists()]
    if len(found) > 1:
        raise StoreError(
            f"{source}: features of slide {slide_id!r} in {', '.join(str(p) for p in found)}; name "
            "the folder of one of them"
        )
    return found[0] if found else below


def _attributes(slide: OutgoingSlide) -> dict[str, Any]:
    made = slide.provenance
    return {
        "extractor": slide.encoder,
        "unit": "um",
        "tile_size_um": round(slide.tile_um, _DECIMALS),
        "tile_size_px": made.tile_px,
        "code_hash": f"histomil {version('histomil')}",
        "feat_type": "tile",
    }
