"""A store to export, rows to import, and other tools' files as those tools write them."""

from pathlib import Path

import h5py
import numpy as np

from preprocessing.interchange.base import GivenFacts
from preprocessing.interchange.exports import export_features
from preprocessing.interchange.imports import import_features
from preprocessing.manifest import SlideRow
from preprocessing.stores.store import (
    EncoderRecord,
    Provenance,
    SlideFeatures,
    open_store,
    store_path,
)
from preprocessing.stores.store import write_store as write

FORMATS = ("clam", "trident", "stamp", "wsidata", "raw2features")
GIVEN = GivenFacts(mpp=0.25, tile_mpp=0.5, tile_px=224, level0_size=(5000, 4000))
"""What CLAM, TRIDENT or STAMP do not say of `slide_features`; the others do not contradict it."""
CLAM_GIVEN = GivenFacts(mpp=0.25, tile_mpp=0.5, tile_px=256)
"""The same of `write_clam`."""
DIM = 16
UNREADABLE = 7


def provenance(slide_id="s1", *, mpp=(0.25, 0.25), overlap_px=0, encoders=("uni",), **changes):
    tile_px0 = [224 * 0.5 / axis for axis in mpp]
    stride_px0 = [side * (224 - overlap_px) / 224 for side in tile_px0]
    record = EncoderRecord(
        dim=DIM, weight_digest="w" * 64, transform="t", precision="float32", licence="CC"
    )
    values = {
        "slide_id": slide_id,
        "patient_id": f"patient of {slide_id}",
        "slide_fingerprint": "ab12",
        "vendor": "aperio",
        "level0_width": 5000,
        "level0_height": 4000,
        "bounds_px0": (100, 200, 4800, 3700),
        "mpp_x": mpp[0],
        "mpp_y": mpp[1],
        "mpp_source": "openslide.mpp-x",
        "properties": {"openslide.vendor": "aperio"},
        "tile_px": 224,
        "tile_px0_x": tile_px0[0],
        "tile_px0_y": tile_px0[1],
        "stride_px0_x": stride_px0[0],
        "stride_px0_y": stride_px0[1],
        "requested_mpp": 0.5,
        **dict.fromkeys(("effective_mpp_x", "effective_mpp_y"), 0.5),
        "read_level": 1,
        "tissue": {},
        "grid": {"mpp": 0.5, "overlap_px": overlap_px},
        **dict.fromkeys(("thumbnail_px0_per_px_x", "thumbnail_px0_per_px_y"), 40.0),
        **dict.fromkeys(("mask_px0_per_px_x", "mask_px0_per_px_y"), 32.0),
        "versions": {},
        "created": "2025-01-01T00:00:00+00:00",
        "encoders": dict.fromkeys(encoders, record),
    }
    return Provenance.model_validate(values | changes)


def slide_features(made: Provenance, *, columns=6, rows=5, unreadable=(UNREADABLE,), seed=0):
    """A grid from the corner of the bounds on, without every fifth tile."""
    y, x = (axis.ravel() for axis in np.mgrid[0:rows, 0:columns])
    corners = np.stack([x * made.stride_px0_x + 100, y * made.stride_px0_y + 200], axis=1)
    coords = np.floor(corners[np.arange(len(x)) % 5 != 3] + 0.5).astype(np.int32)
    rng = np.random.default_rng(seed)
    read_error = np.isin(np.arange(len(coords)), unreadable)
    features = {name: rng.normal(size=(len(coords), DIM)) for name in made.encoders}
    for values in features.values():
        values[read_error] = np.nan
    return SlideFeatures(
        provenance=made,
        coords_px0=coords,
        tissue_fraction=rng.random(len(coords), dtype=np.float32),
        read_error=read_error,
        quality=np.zeros((len(coords), 3), dtype=np.float32),
        features={name: values.astype(np.float16) for name, values in features.items()},
        thumbnail=np.full((100, 125, 3), 200, dtype=np.uint8),
        tissue_mask=np.ones((125, 157), dtype=bool),
    )


def write_slide(folder: Path, slide_id="s1", **changes):
    """A store in `folder`; opened."""
    seed = changes.pop("seed", 0)
    write(folder, slide_features(provenance(slide_id, **changes), seed=seed))
    return open_store(store_path(folder, slide_id))


def row(slide_id="s1", mpp=None, path="no such slide.svs"):
    return SlideRow(slide_id, f"patient of {slide_id}", Path(path), mpp)


def there_and_back(name, folder, *, given=GIVEN, encoder="uni", **changes):
    """A store, what another tool's files make of it, and the folder of these."""
    before = write_slide(folder / "before", encoders=(encoder,), **changes)
    export_features(name, folder / "before", ["s1"], encoder, folder / name)
    (status,) = import_features(
        name, folder / name, [row()], folder / "after", encoder=encoder, given=given
    )
    assert status.status == "done", status.error
    return before, open_store(store_path(folder / "after", "s1"))


def write_clam(folder: Path, slide_id="s1", *, tiles=12, level=1, contours=1, **left_out):
    """As CLAM's patching and extraction write them; `left_out` names arrays or files."""
    starts = np.array([[100, 200], [2311, 1207]])[:contours]
    steps = np.stack([np.arange(tiles) % 4, np.arange(tiles) // 4], axis=1) * 512
    coords = np.concatenate([start + steps for start in starts])
    features = np.random.default_rng(0).normal(size=(len(coords), DIM)).astype(np.float32)
    for part in ("patches", "h5_files", "pt_files"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if not left_out.get("patches"):
        with h5py.File(folder / "patches" / f"{slide_id}.h5", "w") as file:
            data = file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
            data.attrs["patch_size"] = 256
            data.attrs["patch_level"] = level
            data.attrs["downsample"] = (2.0, 2.0)
            data.attrs["downsampled_level_dim"] = np.array([2500, 2000])
            data.attrs["level_dim"] = (2500, 2000)
            data.attrs["name"] = slide_id
            data.attrs["save_path"] = "RESULTS/patches"
    if not left_out.get("h5_files"):
        with h5py.File(folder / "h5_files" / f"{slide_id}.h5", "w") as file:
            file.create_dataset("features", data=features, maxshape=(None, DIM), chunks=(1, DIM))
            file.create_dataset(
                "coords", data=coords.astype(np.int32), maxshape=(None, 2), chunks=(1, 2)
            )
    if not left_out.get("pt_files"):
        import torch

        torch.save(torch.from_numpy(features), folder / "pt_files" / f"{slide_id}.pt")
    return coords, features


def write_stamp(path: Path, **attributes):
    """`coords` in the attributes' unit, edge to edge; an attribute of None is left out."""
    tiles, side = 12, float(attributes.pop("stride", 256.0))
    features = np.random.default_rng(0).normal(size=(tiles, DIM)).astype(np.float16)
    coords = np.stack([np.arange(tiles) % 4, np.arange(tiles) // 4], axis=1) * side
    defaults = {
        "stamp_version": "2.3.0",
        "extractor": "uni",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "code_hash": "abc",
        "feat_type": "tile",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"], file["feats"] = coords, features
        for name, value in (defaults | attributes).items():
            if value is not None:
                file.attrs[name] = value
    return coords, features
