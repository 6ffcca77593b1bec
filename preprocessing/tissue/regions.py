"""Masks and regions drawn by people: which part of a slide is tiled.

`tissue.masks/<slide_id>.png` takes the place of the tissue that would be found; see
`masks.read_mask`. `tissue.regions.folder/<slide_id>.geojson` holds annotations as QuPath exports
them and limits the tissue to them, or takes its place (`replace_tissue`).

Classes are compared letter by letter. Without `include` every area counts, with a class or
without, but those of `exclude` and, as in QuPath, of classes whose name ends with *. Where areas
overlap, `exclude` wins. Points, lines and what is no annotation are passed over with a warning.
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import RegionsConfig, TissueConfig
from preprocessing.errors import NoTissue, SlideError, StoreError
from preprocessing.manifest import SlideRow
from preprocessing.outlines import Annotation, Outline, coverage, read_annotations
from preprocessing.tissue.segmentation import TissueMask

_log = logging.getLogger(__name__)
_IGNORED = "*"  # QuPath: the end of the name of a class that is no result


@dataclass(frozen=True, eq=False)
class Regions:
    """Outlines in level-0 px as openslide counts them; none included: the whole slide."""

    included: list[Outline]
    excluded: list[Outline]


def mask_path(row: SlideRow, config: TissueConfig) -> Path | None:
    return config.masks and config.masks / f"{row.slide_id}.png"


def region_path(row: SlideRow, config: TissueConfig) -> Path | None:
    return config.regions and config.regions.folder / f"{row.slide_id}.geojson"


def region_files(row: SlideRow, config: TissueConfig) -> list[Path]:
    """The slide's mask and region files that the configuration asks for, there or not."""
    return [path for path in (mask_path(row, config), region_path(row, config)) if path]


def tissue_digest(row: SlideRow, config: TissueConfig) -> str:
    """SHA-256 of the slide's mask and region files; "" where none are configured.

    A file that is not there counts as such: whether it may be absent is asked when it is used.
    Raises `SlideError` for one that cannot be read.
    """
    paths = region_files(row, config)
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise SlideError(row.slide_id, f"{path}: reading failed: {error}") from error
        length = "absent" if content is None else len(content)
        digest.update(f"{path.suffix} {length} ".encode() + (content or b""))
    return digest.hexdigest() if paths else ""


def read_regions(
    row: SlideRow, config: TissueConfig, bounds_px0: tuple[int, int, int, int] | None
) -> Regions:
    """The regions of a slide; `bounds_px0` is the area that its vendor says was scanned.

    Raises `SlideError` for a file that is missing or no GeoJSON, `NoTissue` where a region is
    required and none is of a class to tile.
    """
    regions, path = config.regions, region_path(row, config)
    assert regions is not None
    assert path is not None
    if not path.is_file():
        if not regions.required:
            return Regions([], [])
        raise SlideError(
            row.slide_id,
            f"no regions at {path}; export the slide's annotations from QuPath, or set "
            "tissue.regions.required: false to tile slides without regions whole",
        )
    annotations = _annotations(row, path)
    included = [a.outline for a in annotations if _is_included(a.name, regions)]
    excluded = [a.outline for a in annotations if a.name in regions.exclude]
    if not included:
        _refuse_or_warn(row, path, regions, annotations)
    shift = np.array(bounds_px0[:2] if bounds_px0 and regions.frame == "qupath" else (0, 0))
    return Regions(*([[ring + shift for ring in o] for o in part] for part in (included, excluded)))


def within_regions(tissue: TissueMask, regions: Regions, *, replace_tissue: bool) -> TissueMask:
    """The mask within the included regions less the excluded; a pixel is where most of it is.

    At 8 um per pixel the share of a 112 um tile on a region's edge is off by half a per cent on
    average and 2 at most; what is narrower than half a pixel is lost.
    """
    mask = tissue.mask
    if regions.included:
        inside = _mostly_in(regions.included, tissue)
        mask = inside if replace_tissue else mask & inside
    if regions.excluded:
        mask = mask & ~_mostly_in(regions.excluded, tissue)
    return replace(tissue, mask=mask)


def _mostly_in(outlines: list[Outline], tissue: TissueMask) -> NDArray[np.bool_]:
    height, width = tissue.mask.shape
    return coverage(outlines, (height, width), (tissue.px0_per_px_x, tissue.px0_per_px_y)) >= 0.5


def _annotations(row: SlideRow, path: Path) -> list[Annotation]:
    try:
        annotations, others = read_annotations(path)
    except StoreError as error:
        raise SlideError(row.slide_id, str(error)) from error
    if others:
        passed = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        _log.warning("slide %r: %s: passed over, not areas to tile: %s", row.slide_id, path, passed)
    return annotations


def _is_included(name: str, regions: RegionsConfig) -> bool:
    if regions.include:
        return name in regions.include
    return name not in regions.exclude and not name.endswith(_IGNORED)


def _refuse_or_warn(
    row: SlideRow, path: Path, regions: RegionsConfig, annotations: list[Annotation]
) -> None:
    wanted = ", ".join(map(repr, regions.include)) or "any class that is not excluded"
    found = Counter(annotation.name for annotation in annotations)
    there = ", ".join(f"{name!r} ({count})" for name, count in sorted(found.items())) or "none"
    said = f"{path}: no area of {wanted}; classes there: {there}"
    if not regions.required:
        _log.warning("slide %r: %s; tiled whole", row.slide_id, said)
        return
    raise NoTissue(
        row.slide_id,
        f"{said}; correct tissue.regions.include or the drawing, or set tissue.regions.required: "
        "false to tile such slides whole",
    )
