"""raw2features: `<slide>.embeddings.zarr`, zarr v2, with one group a geometry below `grids`.

    grids/mpp<mpp>_px<px>/coords            (N, 2) int32 level-0 pixels
                         /grid_index        (N, 2) int32 (row, column), where there is a lattice
                         /mask              (rows, columns) uint8 tissue share of each cell, / 255
                         /features/<model>  (N, D) float16

The attribute `raw2features` of a grid is a header after format 0.1, the root's is an index of them.
Sides and steps are whole level-0 pixels there; what histomil does not know of a model is said so.
"""

import hashlib
import operator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from preprocessing.artefacts import whole_folder
from preprocessing.encoders.registry import REGISTRY
from preprocessing.errors import StoreError
from preprocessing.interchange.base import (
    ForeignTiles,
    Format,
    GivenFacts,
    OutgoingSlide,
    plain_name,
    reading,
)
from preprocessing.interchange.zarr_nodes import (
    array_at,
    attributes,
    group_at,
    open_root,
    values_at,
)

HEADER, SCHEMA_VERSION = "raw2features", "0.1"
_ROWS_PER_CHUNK = 4096
_UNKNOWN = "unknown"


class Raw2Features(Format):
    name = "raw2features"

    def read(self, source: Path, slide_id: str, encoder: str, given: GivenFacts) -> ForeignTiles:
        """`source`: the folder of the stores."""
        path = source / f"{slide_id}.embeddings.zarr"
        model = plain_name(encoder)
        with reading(path, self.name):
            grid = _grid_of(path, model, given.grid)
            header = attributes(grid)[HEADER]
            about, patching = header["source"], header["patching"]
            side, step = float(patching["level0_patch"]), float(patching["level0_step"])
            return ForeignTiles(
                path,
                values_at(grid, "coords"),
                "px0" if attributes(array_at(grid, "coords")).get("units") == "level0_px" else None,
                values_at(grid, f"features/{model}"),
                tile_px=operator.index(patching["patch_px"]),
                tile_mpp=float(patching["target_mpp"]),
                tile_px0=(side, side),
                stride_px0=(step, step),
                mpp=_mpp(about),
                level0_size=_size(about),
                read_level=operator.index(patching["read_level"]),
                tissue_fraction=_tissue(grid),
                record=_record(header["models"].get(model, {})),
            )

    def paths(self, target: Path, slide: OutgoingSlide) -> list[Path]:
        return [target / f"{slide.slide_id}.embeddings.zarr"]

    def write(self, target: Path, slide: OutgoingSlide) -> None:
        (path,) = self.paths(target, slide)
        header = _header(slide, _lattice(slide))
        made = slide.provenance
        key = f"mpp{made.requested_mpp:g}_px{made.tile_px}"
        with whole_folder(path) as partial:
            root = zarr.create_group(partial, zarr_format=2)
            _write_grid(root.require_group("grids").require_group(key), slide, header)
            shared = {name: header[name] for name in ("schema_version", "source", "provenance")}
            root.attrs[HEADER] = {**shared, "grids": {key: _entry(header)}}
            zarr.consolidate_metadata(root.store)


def _grid_of(path: Path, model: str, wanted: str | None) -> zarr.Group:
    grids = group_at(open_root(path), "grids")
    having = [key for key in sorted(grids.keys()) if f"{key}/features/{model}" in grids]
    chosen = [key for key in having if wanted in (None, key)]
    if len(chosen) != 1:
        raise StoreError(
            f"{path}: features of {model!r} in grid(s) {', '.join(having) or 'none'}"
            + (f", {wanted} was given" if wanted else "")
            + "; name one of them (grid)"
        )
    return group_at(grids, chosen[0])


def _mpp(about: dict[str, Any]) -> tuple[float, float] | None:
    scale, mpp = about.get("scale_um") or {}, about.get("mpp_level0")
    x, y = scale.get("x", mpp), scale.get("y", mpp)
    return (float(x), float(y)) if x and y else None


def _size(about: dict[str, Any]) -> tuple[int, int] | None:
    levels = about.get("level_dimensions")
    return (int(levels[0][0]), int(levels[0][1])) if levels else None


def _tissue(grid: zarr.Group) -> NDArray[np.float32] | None:
    if "mask" not in grid or "grid_index" not in grid:
        return None
    mask = np.asarray(array_at(grid, "mask")[...])  # a chunk of no tissue may be left out
    index = values_at(grid, "grid_index")
    return mask[index[:, 0], index[:, 1]].astype(np.float32) / np.float32(255)


def _record(model: dict[str, Any]) -> dict[str, str]:
    names = {"weight_digest": "weights_sha256", "licence": "license", "transform": "transform"}
    return {ours: str(model[theirs]) for ours, theirs in names.items() if model.get(theirs)}


def _lattice(slide: OutgoingSlide) -> NDArray[np.int32] | None:
    """(row, column) of each tile; None where tiles are on no common lattice."""
    starts = slide.coords_px0 - slide.coords_px0.min(axis=0)
    made = slide.provenance
    stride = np.array([made.stride_px0_x, made.stride_px0_y])
    index = np.rint(starts / stride)
    if (np.ptp(starts - index * stride, axis=0) > 1).any():
        return None
    return index[:, ::-1].astype(np.int32)


def _write_grid(group: zarr.Group, slide: OutgoingSlide, header: dict[str, Any]) -> None:
    group.attrs[HEADER] = header
    _write(group, "coords", slide.coords_px0, role="coords", units="level0_px")
    index = _lattice(slide)
    if index is not None:
        mask = np.zeros(header["patching"]["grid_shape"], dtype=np.uint8)
        share = np.clip(slide.tissue_fraction, 0, 1)
        mask[index[:, 0], index[:, 1]] = np.floor(share * 255 + 0.5)
        _write(group, "grid_index", index, role="grid_index")
        _write(group, "mask", mask, role="tissue_mask", whole=True)
    model = plain_name(slide.encoder)
    _write(group.require_group("features"), model, slide.features(), role="features", model=model)


def _write(
    group: zarr.Group, key: str, values: NDArray[Any], *, whole: bool = False, **about: str
) -> None:
    rows = len(values) if whole else min(_ROWS_PER_CHUNK, len(values))
    array = group.create_array(
        key,
        data=np.ascontiguousarray(values),
        chunks=(rows, *values.shape[1:]),
        config={"write_empty_chunks": True},
    )
    array.attrs.update(about)


def _header(slide: OutgoingSlide, index: NDArray[np.int32] | None) -> dict[str, Any]:
    made = slide.provenance
    shape = [0, 0] if index is None else (index.max(axis=0) + 1).tolist()
    patching = {
        "target_mpp": made.requested_mpp,
        "achieved_mpp": (made.effective_mpp_x + made.effective_mpp_y) / 2,
        "patch_px": made.tile_px,
        "level0_patch": round(slide.tile_px0),
        "level0_step": round(slide.stride_px0),
        "read_level": made.read_level,
        "step_out_px": made.tile_px - slide.overlap_px,
        "n_patches": len(slide.coords_px0),
        "grid_shape": shape,
        "coords_convention": "level0_xy",
    }
    digest = hashlib.sha256(repr(sorted(patching.items())).encode())
    digest.update(np.ascontiguousarray(slide.coords_px0).data)
    return {
        "schema_version": SCHEMA_VERSION,
        "source": _source(slide),
        "patching": patching,
        "models": {plain_name(slide.encoder): _model(slide)},
        "grid_hash": digest.hexdigest(),
        "provenance": {
            "raw2features_version": f"none: written by histomil {version('histomil')}",
            "created_utc": made.created,
            **dict.fromkeys(("cli", "git_sha", "host", "arch", "platform", "python")),
        },
    }


def _source(slide: OutgoingSlide) -> dict[str, Any]:
    made = slide.provenance
    return {
        "uri": f"slide:{slide.slide_id}",
        "slide_id": slide.slide_id,
        "mpp_level0": slide.mpp,
        "ngff_version": None,
        "reader": made.reader or made.imported_from or _UNKNOWN,
        "level_dimensions": [list(slide.level0_size)],
        "level_downsamples": [1.0],
        "scale_um": {"x": made.mpp_x, "y": made.mpp_y},
        "level0_translation_um": None,
    }


def _model(slide: OutgoingSlide) -> dict[str, Any]:
    record, spec = slide.record, REGISTRY.get(slide.encoder)
    return {
        "source": slide.encoder,
        "embedding_dim": record.dim,
        "input_size": slide.provenance.tile_px,
        **dict.fromkeys(("pooling", "interpolation", "transform_source_url"), _UNKNOWN),
        "mean": list(spec.mean) if spec else [],
        "std": list(spec.std) if spec else [],
        "transform": record.transform,
        "license": record.licence,
        "gated": bool(spec and spec.gated),
        "weights_sha256": record.weight_digest,
        **dict.fromkeys(("weights_revision", "doi")),
    }


def _entry(header: dict[str, Any]) -> dict[str, Any]:
    """What the root's index says of a grid."""
    names = ("target_mpp", "achieved_mpp", "patch_px", "level0_patch", "n_patches")
    shown = {name: header["patching"][name] for name in names}
    return {**shown, "grid_hash": header["grid_hash"], "models": list(header["models"])}
