"""An open slide -> its tissue, tiles, overview and provenance: a feature store without features."""

from dataclasses import replace

import numpy as np
from PIL import Image

from preprocessing.config import GridConfig, PreprocessingConfig, TissueConfig
from preprocessing.errors import MppError, NoTissue
from preprocessing.geometry import ResolutionError, TileGeometry, plan_tiles
from preprocessing.manifest import SlideRow
from preprocessing.slides.overviews import Thumbnail
from preprocessing.slides.reader import decoded_scale
from preprocessing.slides.slide import Slide
from preprocessing.stores.store import QUALITY, Provenance, SlideFeatures
from preprocessing.tissue.grid import Tiles, make_grid
from preprocessing.tissue.masks import read_mask
from preprocessing.tissue.regions import (
    mask_path,
    read_regions,
    region_files,
    tissue_digest,
    within_regions,
)
from preprocessing.tissue.segmentation import TissueMask, find_tissue

_THUMBNAIL_PX = 1024


def tile_geometry(slide: Slide, grid: GridConfig) -> TileGeometry:
    """`MppError` where the slide is too coarse for the requested resolution."""
    try:
        return plan_tiles(
            slide.pyramid,
            mpp=grid.mpp,
            tile_px=grid.tile_px,
            overlap_px=grid.overlap_px,
            max_upsampling=grid.max_upsampling,
        )
    except ResolutionError as error:
        raise MppError(slide.slide_id, str(error)) from error


def prepare_slide(
    row: SlideRow, slide: Slide, geometry: TileGeometry, config: PreprocessingConfig
) -> SlideFeatures:
    """Raises `NoTissue` where not one tile is left, `SlideError` for a mask or regions that are
    missing or of another shape. Quality is not known yet; encoders, versions and date are empty.
    """
    # Before they are read: a drawing that changes meanwhile is used again by the next run.
    drawings = tissue_digest(row, config.tissue)
    view, thumbnail = slide.overviews(mpp=config.tissue.mask_mpp, longest_px=_THUMBNAIL_PX)
    tissue = _tissue_of(row, slide, view, config.tissue)
    tiles = make_grid(
        slide.pyramid.size_px0,
        geometry,
        tissue,
        min_tissue=config.grid.min_tissue,
        bounds_px0=slide.bounds_px0,
    )
    _require_tiles(row, tiles, tissue, slide=slide, geometry=geometry, config=config.tissue)
    return SlideFeatures(
        provenance=_provenance(
            row,
            slide,
            geometry,
            config=config,
            tissue=tissue,
            drawings=drawings,
            thumbnail=thumbnail,
        ),
        coords_px0=tiles.coords_px0,
        tissue_fraction=tiles.tissue_fraction,
        read_error=np.zeros(len(tiles), dtype=bool),
        quality=np.full((len(tiles), len(QUALITY)), np.nan, dtype=np.float32),
        features={},
        thumbnail=thumbnail.rgb,
        tissue_mask=tissue.mask,
    )


def _provenance(
    row: SlideRow,
    slide: Slide,
    geometry: TileGeometry,
    *,
    config: PreprocessingConfig,
    tissue: TissueMask,
    drawings: str,
    thumbnail: Thumbnail,
) -> Provenance:
    return Provenance(
        slide_id=row.slide_id,
        patient_id=row.patient_id,
        slide_fingerprint=slide.fingerprint,
        vendor=slide.vendor,
        level0_width=slide.pyramid.size_px0.width,
        level0_height=slide.pyramid.size_px0.height,
        bounds_px0=slide.bounds_px0,
        mpp_x=slide.pyramid.mpp_x,
        mpp_y=slide.pyramid.mpp_y,
        mpp_source=slide.mpp_source,
        objective_power=slide.objective_power,
        properties=slide.properties,
        tile_px=geometry.tile_px,
        tile_px0_x=geometry.tile_px0_x,
        tile_px0_y=geometry.tile_px0_y,
        stride_px0_x=geometry.stride_px0_x,
        stride_px0_y=geometry.stride_px0_y,
        requested_mpp=config.grid.mpp,
        effective_mpp_x=geometry.effective_mpp_x,
        effective_mpp_y=geometry.effective_mpp_y,
        read_level=geometry.level,
        reading=slide.reading,
        reader=slide.reader,
        decoded_scale=decoded_scale(slide, geometry),
        tissue=config.tissue,
        tissue_digest=drawings,
        grid=config.grid,
        thumbnail_px0_per_px_x=thumbnail.px0_per_px_x,
        thumbnail_px0_per_px_y=thumbnail.px0_per_px_y,
        mask_px0_per_px_x=tissue.px0_per_px_x,
        mask_px0_per_px_y=tissue.px0_per_px_y,
        versions={},
        created="",
        encoders={},
    )


def _tissue_of(row: SlideRow, slide: Slide, view: Thumbnail, config: TissueConfig) -> TissueMask:
    """Found, or as a mask says; of it or in its place what lies in the regions."""
    path = mask_path(row, config)
    if path is None:
        tissue = _tissue_in(view, config)
    else:
        tissue = read_mask(
            path,
            slide_id=row.slide_id,
            size_px0=slide.pyramid.size_px0,
            least_px0_per_px=config.mask_mpp / max(slide.pyramid.mpp_x, slide.pyramid.mpp_y),
        )
    if config.regions is None:
        return tissue
    regions = read_regions(row, config, slide.bounds_px0)
    return within_regions(tissue, regions, replace_tissue=config.regions.replace_tissue)


def _tissue_in(view: Thumbnail, config: TissueConfig) -> TissueMask:
    """Unreadable parts count as tissue: their tiles are tried and then reported, not lost."""
    tissue = find_tissue(
        view.rgb,
        config,
        px0_per_px_x=view.px0_per_px_x,
        px0_per_px_y=view.px0_per_px_y,
        mpp=view.mpp,
    )
    if not view.unreadable.any():
        return tissue
    height, width = tissue.mask.shape
    lost = Image.fromarray(view.unreadable.astype(np.float32)).resize(
        (width, height), Image.Resampling.BOX
    )
    return replace(tissue, mask=tissue.mask | (np.asarray(lost) > 0))


def _require_tiles(
    row: SlideRow,
    tiles: Tiles,
    tissue: TissueMask,
    *,
    slide: Slide,
    geometry: TileGeometry,
    config: TissueConfig,
) -> None:
    if len(tiles) > 0:
        return
    size = slide.pyramid.size_px0
    drawn = ", ".join(str(path) for path in region_files(row, config))
    raise NoTissue(
        row.slide_id,
        f"{slide.path}: not one tile; tissue covers {tissue.mask.mean():.2%} of {size.width} x "
        f"{size.height} px{f' by {drawn}' if drawn else ''} and a tile is "
        f"{geometry.tile_px0_x:.0f} x {geometry.tile_px0_y:.0f} px of it; look at the slide, then "
        "at grid.min_tissue and the tissue settings",
    )
