"""Another tool's tiles of a slide -> the contents of a feature store."""

from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from preprocessing.config import GridConfig, TissueConfig
from preprocessing.errors import NoTissue, StoreError
from preprocessing.interchange.base import ForeignTiles, GivenFacts, Pair
from preprocessing.interchange.slide_facts import SlideFacts, facts_of_slide, white_thumbnail
from preprocessing.interchange.strides import stride_of
from preprocessing.manifest import SlideRow
from preprocessing.stores.provenance import EncoderRecord, Provenance
from preprocessing.stores.store import QUALITY, SlideFeatures

_STAMP_V1_UM = 256 / 224
_MASK_MPP = 8.0
_UNKNOWN = "unknown (imported)"


def store_contents(
    row: SlideRow, tiles: ForeignTiles, given: GivenFacts, *, encoder: str, origin: tuple[str, str]
) -> SlideFeatures:
    """`origin`: the tool, and the encoder's name there.

    Raises `MppError`, `NoTissue` or `StoreError` that name the file and what it lacks.
    """
    _check_arrays(row, tiles)
    facts = facts_of_slide(row, tiles, given)
    tile_px0 = _tile_px0(tiles, given, facts.mpp)
    coords_px0 = _coords_px0(tiles, given, facts.mpp)
    size = facts.level0_size or _extent(coords_px0, tile_px0)
    _refuse_outside(tiles, coords_px0, size)
    thumbnail, thumbnail_scale = facts.thumbnail, facts.thumbnail_px0_per_px
    if thumbnail is None:
        thumbnail, scale = white_thumbnail(size)
        thumbnail_scale = (scale, scale)
    stated = [tile_px0] if tiles.stride_px0 is None else [tiles.stride_px0, tile_px0]
    mask, mask_scale = _union_of_tiles(coords_px0, tile_px0, size, facts.mpp)
    fraction = tiles.tissue_fraction
    return SlideFeatures(
        provenance=_provenance(
            row,
            tiles,
            given,
            facts=facts,
            size=size,
            tile_px0=tile_px0,
            stride_px0=stride_of(coords_px0, stated),
            scales=(thumbnail_scale, mask_scale),
            imported_from=f"{origin[0]}, {tiles.path.name}",
            encoders={encoder: _encoder_record(tiles, given, origin)},
        ),
        coords_px0=coords_px0,
        tissue_fraction=np.ones(len(coords_px0), np.float32) if fraction is None else fraction,
        read_error=np.asarray(np.isnan(tiles.features).all(axis=1)),
        quality=np.full((len(coords_px0), len(QUALITY)), np.nan, dtype=np.float32),
        features={encoder: _as_stored(tiles)},
        thumbnail=thumbnail,
        tissue_mask=mask,
    )


def _check_arrays(row: SlideRow, tiles: ForeignTiles) -> None:
    for name, array in (("features", tiles.features), ("coordinates", tiles.coords)):
        if array.dtype.kind not in "fiu":
            raise StoreError(
                f"{tiles.path}: {name} are {array.dtype}, expected numbers; make the file anew"
            )
    coords, features = tiles.coords.shape, tiles.features.shape
    if len(features) != 2 or coords != (features[0], 2):
        raise StoreError(
            f"{tiles.path}: expected features (N, D) and coordinates (N, 2), got {features} and "
            f"{coords}; the file is cut off, or not what it is taken for"
        )
    if features[0] == 0 or features[1] == 0:
        raise NoTissue(row.slide_id, f"{tiles.path}: features {features}, there is no tile in it")
    if not np.isfinite(tiles.coords).all():
        raise StoreError(f"{tiles.path}: coordinates that are not finite; make the file anew")
    for name in ("tile_px", "tile_mpp", "tile_um", "tile_px0", "stride_px0", "mpp"):
        stated = getattr(tiles, name)
        if stated is not None and not np.all(np.isfinite(stated) & (np.array(stated) > 0)):
            raise StoreError(f"{tiles.path}: says that {name} is {stated}; make the file anew")


def _as_stored(tiles: ForeignTiles) -> NDArray[np.float16]:
    """Float16; what does not fit becomes infinite, which no store takes."""
    with np.errstate(over="ignore"):
        return tiles.features.astype(np.float16)


def _lacks(tiles: ForeignTiles, what: str, remedy: str) -> StoreError:
    return StoreError(f"{tiles.path}: does not say {what}; give {remedy}")


def _refuse_contradiction(
    tiles: ForeignTiles, what: str, stated: float, given: float | None, tolerance: float
) -> None:
    if given is not None and abs(given / stated - 1) > tolerance:
        raise StoreError(
            f"{tiles.path}: {what} is {stated:g} by the file, {given:g} was given; correct or drop "
            "what was given"
        )


def _tile_px0(tiles: ForeignTiles, given: GivenFacts, mpp: Pair) -> Pair:
    """A tile's sides in level-0 pixels, (x, y)."""
    side_um = tiles.tile_um
    if side_um is None and tiles.coords_unit is None and given.coords_unit == "stamp-v1":
        side_um = 256.0
    if tiles.tile_px0 is None and side_um is None and given.tile_px0 is not None:
        return given.tile_px0, given.tile_px0
    if tiles.tile_px0 is None and side_um is None and given.tile_px and given.tile_mpp:
        side_um = given.tile_px * given.tile_mpp
    if tiles.tile_px0 is not None:
        sides = tiles.tile_px0
    elif side_um is not None:
        sides = (side_um / mpp[0], side_um / mpp[1])
    else:
        raise _lacks(tiles, "how large a tile is", "tile_px0, or tile_px and tile_mpp")
    _refuse_contradiction(tiles, "a tile's side in level-0 pixels", sides[0], given.tile_px0, 0.01)
    return sides


def _tile_px(tiles: ForeignTiles, given: GivenFacts) -> int:
    tile_px = tiles.tile_px or given.tile_px
    if tile_px is None and given.coords_unit == "stamp-v1":
        tile_px = 224
    if tile_px is None:
        raise _lacks(tiles, "how many pixels wide the encoder saw a tile", "tile_px")
    _refuse_contradiction(tiles, "tile_px", tile_px, given.tile_px, 0)
    return tile_px


def _requested_mpp(tiles: ForeignTiles, given: GivenFacts, effective: Pair) -> float:
    """What the tiles were asked for; within 10 % of what they are."""
    requested = tiles.tile_mpp or given.tile_mpp
    if requested is None:
        raise _lacks(
            tiles,
            f"at which resolution tiles were asked for (they have {effective[0]:.4g} um per pixel)",
            "tile_mpp, the same for all slides of a cohort",
        )
    _refuse_contradiction(tiles, "tile_mpp", requested, given.tile_mpp, 0.01)
    if any(abs(mpp / requested - 1) > 0.1 for mpp in effective):
        raise StoreError(
            f"{tiles.path}: tiles have {effective[0]:.4g} x {effective[1]:.4g} um per pixel, not "
            f"{requested:g} as they were asked for; correct the slide's mpp or tile_mpp"
        )
    return requested


def _coords_px0(tiles: ForeignTiles, given: GivenFacts, mpp: Pair) -> NDArray[np.int32]:
    unit = tiles.coords_unit or given.coords_unit
    if unit is None:
        raise _lacks(tiles, "the unit of its coordinates", "coords_unit: 'px0', 'um' or 'stamp-v1'")
    um = {"px0": None, "um": 1.0, "stamp-v1": _STAMP_V1_UM}[unit]
    scale = np.ones(2) if um is None else um / np.array(mpp)
    return np.floor(tiles.coords * scale + 0.5).astype(np.int32)


def _extent(coords_px0: NDArray[np.int32], tile_px0: Pair) -> tuple[int, int]:
    """The far corner of the tiles: the least that the slide can be."""
    width, height = np.ceil(coords_px0.max(axis=0) + np.array(tile_px0) - 1e-6).astype(int)
    return int(width), int(height)


def _refuse_outside(
    tiles: ForeignTiles, coords_px0: NDArray[np.int32], size: tuple[int, int]
) -> None:
    """A tile may stick out at the far edges, where some tools pad; none begins outside."""
    outside = ((coords_px0 < 0) | (coords_px0 >= np.array(size))).any(axis=1)
    if outside.any():
        first = coords_px0[outside][0].tolist()
        raise StoreError(
            f"{tiles.path}: {int(outside.sum())} of {len(coords_px0)} tiles begin outside of the "
            f"slide of {size[0]} x {size[1]} level-0 pixels, the first at {first}; are these files "
            "of this slide, and its mpp right?"
        )


def _union_of_tiles(
    coords_px0: NDArray[np.int32], tile_px0: Pair, size: tuple[int, int], mpp: Pair
) -> tuple[NDArray[np.bool_], Pair]:
    """Mask (h, w) of all that lies under a tile, and its level-0 pixels per pixel."""
    scale = max(1.0, _MASK_MPP / max(mpp))
    mask = np.zeros((ceil(size[1] / scale), ceil(size[0] / scale)), dtype=bool)
    near = np.floor(coords_px0 / scale).astype(int)
    far = np.ceil((coords_px0 + np.array(tile_px0)) / scale).astype(int)
    for (left, top), (right, bottom) in zip(near.tolist(), far.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return mask, (scale, scale)


def _provenance(
    row: SlideRow,
    tiles: ForeignTiles,
    given: GivenFacts,
    *,
    facts: SlideFacts,
    size: tuple[int, int],
    tile_px0: Pair,
    stride_px0: Pair,
    scales: tuple[Pair, Pair],
    imported_from: str,
    encoders: dict[str, EncoderRecord],
) -> Provenance:
    tile_px = _tile_px(tiles, given)
    effective = (tile_px0[0] * facts.mpp[0] / tile_px, tile_px0[1] * facts.mpp[1] / tile_px)
    requested = _requested_mpp(tiles, given, effective)
    overlap_px = max(0, floor(tile_px * (1 - stride_px0[0] / tile_px0[0]) + 0.5))
    (thumbnail_x, thumbnail_y), (mask_x, mask_y) = scales
    try:
        grid = GridConfig(mpp=requested, tile_px=tile_px, overlap_px=overlap_px)
    except ValidationError as error:
        raise StoreError(f"{tiles.path}: tiles that histomil cannot have: {error}") from error
    return Provenance(
        slide_id=row.slide_id,
        patient_id=row.patient_id,
        slide_fingerprint=facts.fingerprint,
        vendor=facts.vendor,
        level0_width=size[0],
        level0_height=size[1],
        bounds_px0=facts.bounds_px0,
        mpp_x=facts.mpp[0],
        mpp_y=facts.mpp[1],
        mpp_source=facts.mpp_source,
        objective_power=facts.objective_power,
        properties=facts.properties,
        tile_px=tile_px,
        tile_px0_x=tile_px0[0],
        tile_px0_y=tile_px0[1],
        stride_px0_x=stride_px0[0],
        stride_px0_y=stride_px0[1],
        requested_mpp=requested,
        effective_mpp_x=effective[0],
        effective_mpp_y=effective[1],
        read_level=tiles.read_level,
        tissue=TissueConfig(),
        grid=grid,
        thumbnail_px0_per_px_x=thumbnail_x,
        thumbnail_px0_per_px_y=thumbnail_y,
        mask_px0_per_px_x=mask_x,
        mask_px0_per_px_y=mask_y,
        imported_from=imported_from,
        versions={"histomil": version("histomil")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        encoders=encoders,
    )


def _encoder_record(
    tiles: ForeignTiles, given: GivenFacts, origin: tuple[str, str]
) -> EncoderRecord:
    """Weights that nobody names are those that the tool calls so: one tool's are not another's."""
    known = tiles.record
    unnamed = f"{origin[1]} of {origin[0]}"
    return EncoderRecord(
        dim=tiles.features.shape[1],
        weight_digest=given.weight_digest or known.get("weight_digest", unnamed),
        transform=known.get("transform", _UNKNOWN),
        precision=known.get("precision", _UNKNOWN),
        licence=known.get("licence", _UNKNOWN),
    )
