"""wsidata, LazySlide's container: a SpatialData zarr v3 group `<slide>.zarr`.

    attributes                   slide_properties, tile_spec
    shapes/tiles/shapes.parquet  GeoParquet: tile_id, tissue_id, geometry = a tile's level-0 box
    tables/<model>_tiles         AnnData: X (N, D) float32; obs tile_id names the row of the shapes

The tiles are one tissue to it (tissue_id 0). Its sides on level 0 are cut off to whole pixels, and
of the vendor's properties only those are written that say nothing about a person. Needs pyarrow.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import zarr
from numpy.typing import NDArray

from preprocessing.artefacts import whole_folder
from preprocessing.errors import ConfigError, StoreError
from preprocessing.interchange.anndata_zarr import write_table
from preprocessing.interchange.base import (
    ForeignTiles,
    Format,
    GivenFacts,
    OutgoingSlide,
    plain_name,
    reading,
)
from preprocessing.interchange.zarr_nodes import attributes, group_at, open_root, values_at

if TYPE_CHECKING:
    import pyarrow

TILES = "tiles"
_SPATIALDATA = "0.7.3"  # whose layout this is
_AXES = [{"name": axis, "type": "space", "unit": "unit"} for axis in ("x", "y")]
_IDENTITY = {
    "type": "identity",
    "input": {"name": "xy", "axes": _AXES},
    "output": {"name": "global", "axes": _AXES},
}
_KEYS = {"region": TILES, "region_key": "library_id", "instance_key": "tile_id"}


class Wsidata(Format):
    name = "wsidata"

    def read(self, source: Path, slide_id: str, encoder: str, given: GivenFacts) -> ForeignTiles:
        """`source`: the folder of the stores."""
        del given
        path = source / f"{slide_id}.zarr"
        with reading(path, self.name):
            root = open_root(path)
            spec = attributes(root)["tile_spec"][TILES]
            about = attributes(root)["slide_properties"]
            table = group_at(root, f"tables/{plain_name(encoder)}_{TILES}")
            features, tile_id = values_at(table, "X"), values_at(table, "obs/tile_id")
            boxes = _boxes(path / "shapes" / TILES / "shapes.parquet", tile_id)
            scale, mpp = float(spec["base_downsample"]), about.get("mpp")
            requested = spec.get("mpp")
            height, width = about["shape"]
            return ForeignTiles(
                path,
                boxes[:, :2],
                "px0",
                features,
                tile_px=int(spec["width"]),
                tile_mpp=None if requested is None else float(requested),
                tile_px0=(spec["width"] * scale, spec["height"] * scale),
                stride_px0=(spec["stride_width"] * scale, spec["stride_height"] * scale),
                mpp=None if mpp is None else (float(mpp), float(mpp)),
                level0_size=(int(width), int(height)),
                bounds_px0=_bounds(about),
                read_level=int(spec.get("ops_level", 0)),
            )

    def paths(self, target: Path, slide: OutgoingSlide) -> list[Path]:
        return [target / f"{slide.slide_id}.zarr"]

    def write(self, target: Path, slide: OutgoingSlide) -> None:
        _require_pyarrow()
        (path,) = self.paths(target, slide)
        tile_id = np.arange(len(slide.coords_px0), dtype=np.int64)
        with whole_folder(path) as partial:
            root = zarr.create_group(partial, zarr_format=3, attributes=_attributes(slide))
            shapes = root.create_group("shapes").create_group(TILES, attributes=_SHAPES)
            _write_boxes(partial / shapes.path / "shapes.parquet", slide, tile_id)
            table = write_table(
                root.create_group("tables"),
                f"{plain_name(slide.encoder)}_{TILES}",
                slide.features().astype(np.float32),
                tile_id=tile_id,
                region=TILES,
                uns={"spatialdata_attrs": _KEYS},
            )
            kind = {"spatialdata-encoding-type": "ngff:regions_table", "version": "0.2"}
            table.attrs.update({**kind, **_KEYS})


_SHAPES = {
    "encoding-type": "ngff:shapes",
    "axes": ["x", "y"],
    "coordinateTransformations": [_IDENTITY],
    "spatialdata_attrs": {"version": "0.3"},
}


def _bounds(about: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """None where they are the whole slide, which wsidata writes for scans without bounds."""
    height, width = about["shape"]
    x, y, across, down = map(int, about.get("bounds") or (0, 0, width, height))
    return None if (x, y, across, down) == (0, 0, width, height) else (x, y, across, down)


def _attributes(slide: OutgoingSlide) -> dict[str, Any]:
    made = slide.provenance
    width, height = slide.level0_size
    scale = slide.tile_px0 / made.tile_px
    step_px = round(made.tile_px * slide.stride_px0 / slide.tile_px0)
    return {
        "spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": _SPATIALDATA},
        "slide_properties": {
            "shape": [height, width],
            "n_level": 1,
            "level_shape": [[height, width]],
            "level_downsample": [1.0],
            "mpp": slide.mpp,
            "magnification": made.objective_power,
            "bounds": list(made.bounds_px0 or (0, 0, width, height)),
            "scene": 0,
            "n_scenes": 1,
            "scene_names": ["Image 0"],
            "raw": json.dumps(made.properties),
        },
        "tile_spec": {
            TILES: {
                "height": made.tile_px,
                "width": made.tile_px,
                "stride_height": step_px,
                "stride_width": step_px,
                "mpp": made.requested_mpp,
                "ops_level": 0,
                "ops_downsample": scale,
                "base_level": 0,
                "base_downsample": scale,
                "tissue_name": None,
            }
        },
    }


def _write_boxes(path: Path, slide: OutgoingSlide, tile_id: NDArray[np.int64]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    near = slide.coords_px0.astype(np.float64)
    far = near + int(slide.tile_px0)
    boxes = shapely.box(near[:, 0], near[:, 1], far[:, 0], far[:, 1])
    table: pyarrow.Table = pa.table(
        {
            "tile_id": tile_id,
            "tissue_id": np.zeros(len(tile_id), dtype=np.int64),
            "geometry": pa.array(shapely.to_wkb(boxes).tolist(), pa.binary()),
        }
    )
    about = {
        "version": "1.0.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "crs": None,
                "geometry_types": ["Polygon"],
                "bbox": [*near.min(axis=0).tolist(), *far.max(axis=0).tolist()],
            }
        },
    }
    table = table.replace_schema_metadata({b"geo": json.dumps(about).encode()})
    parquet.write_table(table, path)


def _boxes(path: Path, tile_id: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, 4) x, y of the near and the far corner of the tiles of these ids."""
    _require_pyarrow()
    from pyarrow import parquet

    with reading(path, Wsidata.name):
        table = parquet.read_table(path, columns=["tile_id", "geometry"])
        boxes = shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy()))
        row_of = {name: row for row, name in enumerate(table["tile_id"].to_pylist())}
    absent = [name for name in tile_id.tolist() if name not in row_of]
    if absent:
        raise StoreError(
            f"{path}: no box of {len(absent)} of {len(tile_id)} tiles with features, the first is "
            f"tile_id {absent[0]}; make the features anew"
        )
    return boxes[[row_of[name] for name in tile_id.tolist()]]


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "wsidata keeps tiles as GeoParquet, which needs pyarrow: pip install "
            "'histomil[interchange]'"
        ) from error
