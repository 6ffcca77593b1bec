"""CLAM: `patches/<slide>.h5` says where tiles are, `h5_files` and `pt_files` hold their features.

    patches/<slide>.h5    coords (N, 2) int64, with the size and level of a tile as attributes
    h5_files/<slide>.h5   features (N, D) float32 and coords (N, 2) int32, without attributes
    pt_files/<slide>.pt   a float32 tensor (N, D), without coordinates

A tile's side on level 0 is patch_size times the downsample of patch_level. To what size it was then
resized for the encoder (CLAM's target_patch_size) stands nowhere: an import needs tile_px, beside
mpp and tile_mpp. Exported tiles are of level 0, where sides are rounded to whole pixels.
"""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from preprocessing.artefacts import whole_file
from preprocessing.errors import StoreError
from preprocessing.interchange.base import (
    ForeignTiles,
    Format,
    GivenFacts,
    OutgoingSlide,
    reading,
)
from preprocessing.interchange.h5 import attribute, dataset, grown, integers

PATCHES, H5_FILES, PT_FILES = "patches", "h5_files", "pt_files"
_ROWS_PER_CHUNK = 32


class Clam(Format):
    name = "CLAM"

    def read(self, source: Path, slide_id: str, encoder: str, given: GivenFacts) -> ForeignTiles:
        """Features of `h5_files`, else of `pt_files`; `encoder` is in no name or file of CLAM's."""
        del encoder
        h5, pt = source / H5_FILES / f"{slide_id}.h5", source / PT_FILES / f"{slide_id}.pt"
        patches = (given.coords_dir or source / PATCHES) / f"{slide_id}.h5"
        if h5.exists() or not pt.exists():
            with reading(h5, self.name), h5py.File(h5) as file:
                features, coords = dataset(file, "features")[...], dataset(file, "coords")[...]
            if not patches.exists():
                return ForeignTiles(h5, coords, "px0", features)
            return _with_geometry(patches, h5, features, coords)
        if not patches.exists():
            raise StoreError(
                f"{pt}: holds no coordinates, and there is no {patches}; name CLAM's folder of "
                "patches (coords_dir)"
            )
        return _with_geometry(patches, pt, _tensor(pt), None)

    def paths(self, target: Path, slide: OutgoingSlide) -> list[Path]:
        return [
            target / PATCHES / f"{slide.slide_id}.h5",
            target / H5_FILES / f"{slide.slide_id}.h5",
            target / PT_FILES / f"{slide.slide_id}.pt",
        ]

    def write(self, target: Path, slide: OutgoingSlide) -> None:
        import torch  # takes a second, and only .pt files need it

        patches, h5, pt = self.paths(target, slide)
        features = slide.features().astype(np.float32)
        with whole_file(patches) as partial, h5py.File(partial, "w") as file:
            coords = grown(file, "coords", slide.coords_px0.astype(np.int64), rows_per_chunk=1)
            coords.attrs.update(_attributes(slide, patches.parent))
        with whole_file(h5) as partial, h5py.File(partial, "w") as file:
            grown(file, "features", features, rows_per_chunk=_ROWS_PER_CHUNK)
            grown(file, "coords", slide.coords_px0, rows_per_chunk=_ROWS_PER_CHUNK)
        with whole_file(pt) as partial:
            torch.save(torch.from_numpy(features), partial)


def _attributes(slide: OutgoingSlide, folder: Path) -> dict[str, object]:
    return {
        "patch_size": round(slide.tile_px0),
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        "downsampled_level_dim": slide.level0_size,
        "level_dim": slide.level0_size,
        "name": slide.slide_id,
        "save_path": str(folder),
    }


def _with_geometry(
    patches: Path, path: Path, features: NDArray[np.floating], coords: NDArray[np.integer] | None
) -> ForeignTiles:
    """`coords` are those beside the features, in their order; None takes those of `patches`."""
    with reading(patches, Clam.name), h5py.File(patches) as file:
        places = dataset(file, "coords")
        patch_px = int(attribute(places, "patch_size"))
        level = int(attribute(places, "patch_level"))
        across, down = np.broadcast_to(attribute(places, "downsample"), 2).tolist()
        width, height = integers(places, "level_dim")
        found: NDArray[np.integer] = places[...]
        size = (round(width * across), round(height * down))
    if coords is None:
        coords = found
    elif not np.array_equal(_sorted(coords), _sorted(found)):
        others = "as many at other places" if len(coords) == len(found) else len(found)
        raise StoreError(
            f"{path}: features of {len(coords)} tiles, {patches} has {others}; they are of "
            "different runs"
        )
    return ForeignTiles(
        path,
        coords,
        "px0",
        features,
        tile_px0=(patch_px * across, patch_px * down),
        level0_size=size,
        read_level=level,
    )


def _sorted(coords: NDArray[np.integer]) -> NDArray[np.integer]:
    return coords[np.lexsort(coords.T)] if coords.ndim == 2 else coords


def _tensor(path: Path) -> NDArray[np.floating]:
    import pickle

    import torch

    with reading(path, Clam.name):
        try:
            return torch.load(path, map_location="cpu", weights_only=True).float().numpy()
        except (pickle.UnpicklingError, AttributeError, EOFError) as error:
            raise StoreError(f"{path}: expected one tensor, as CLAM saves it: {error}") from error
