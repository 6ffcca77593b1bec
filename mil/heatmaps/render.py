"""A page per slide for a pathologist: the slide, class evidence and attention, in one extent.

Axes are in millimetres of the slide, so unequal mpp in x and y shows no distortion and the scale
bar is exact. Overlays are made at the resolution of the page: nothing is resampled after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from mil.heatmaps.colours import (
    Colouring,
    attention_colouring,
    blend,
    evidence_colouring,
    overlay_rgba,
)
from mil.heatmaps.page import DPI, Page, plan_page
from mil.heatmaps.scores import ATTENTION_LIMIT, CohortScale, TileScores
from preprocessing.artefacts import whole_file
from preprocessing.errors import StoreError
from preprocessing.stores.store import FeatureStore

_TISSUE_COLOUR, _TISSUE_WIDTH = "black", 0.7
_LESION_COLOUR, _LESION_WIDTH = "#00c030", 1.6
# Under an overlay stain and darkness are mostly taken away, so that colours are those of the bar.
_STAIN_KEPT, _DARKNESS_KEPT = 0.25, 0.65


@dataclass(frozen=True, eq=False)
class Backdrop:
    """What a slide looks like: `thumbnail` (h, w, 3) uint8, `tissue_mask` (h, w) bool.

    Each has its scale in level-0 pixels per own pixel, (x, y); both begin at the slide's corner.
    `lesions` are outlines (points, 2) in level-0 pixels, where the truth is known.
    """

    thumbnail: NDArray[np.uint8]
    thumbnail_px0_per_px: tuple[float, float]
    tissue_mask: NDArray[np.bool_]
    mask_px0_per_px: tuple[float, float]
    lesions: Sequence[NDArray[np.floating]] = ()

    def __post_init__(self) -> None:
        if self.thumbnail.ndim != 3 or self.thumbnail.shape[2] != 3:
            raise StoreError(f"expected a thumbnail (h, w, 3), got {self.thumbnail.shape}")
        if self.tissue_mask.ndim != 2:
            raise StoreError(f"expected a tissue mask (h, w), got {self.tissue_mask.shape}")

    @classmethod
    def of_store(
        cls, store: FeatureStore, lesions: Sequence[NDArray[np.floating]] = ()
    ) -> Backdrop:
        origin = store.provenance
        return cls(
            store.thumbnail,
            (origin.thumbnail_px0_per_px_x, origin.thumbnail_px0_per_px_y),
            store.tissue_mask,
            (origin.mask_px0_per_px_x, origin.mask_px0_per_px_y),
            lesions=lesions,
        )

    @property
    def extent_px0(self) -> tuple[float, float]:
        height, width = self.thumbnail.shape[:2]
        return width * self.thumbnail_px0_per_px[0], height * self.thumbnail_px0_per_px[1]


def render_heatmap(
    scores: TileScores, scale: CohortScale, backdrop: Backdrop, path: Path, *, note: str = ""
) -> None:
    """Writes the page as a PNG; `note` (a known label, the fold's role) is printed in its head."""
    figure = heatmap_figure(scores, scale, backdrop, note=note)
    with whole_file(path) as partial:
        figure.savefig(
            partial,
            format="png",
            dpi=DPI,
            metadata={"Software": "histomil"},
            pil_kwargs={"compress_level": 3},  # half the time of a page for a tenth more bytes
        )


def heatmap_figure(
    scores: TileScores, scale: CohortScale, backdrop: Backdrop, *, note: str = ""
) -> Figure:
    """The page as a figure; its image axes are labelled 'slide', 'evidence' and 'attention'."""
    if scale.evidence_name != scores.evidence_name:
        raise ValueError(
            f"slide {scores.slide_id!r}: evidence is {scores.evidence_name!r}, the scale is of "
            f"{scale.evidence_name!r}; fit the scale on the same model's scores"
        )
    width_mm, height_mm = _extent_mm(scores, backdrop)
    page = Page(f"Slide {scores.slide_id}", _facts(scores, note), plan_page(width_mm / height_mm))
    _slide_panel(page, scores, backdrop)
    _evidence_panel(page, scores, scale, backdrop)
    _attention_panel(page, scores, backdrop)
    return page.figure


def _slide_panel(page: Page, scores: TileScores, backdrop: Backdrop) -> None:
    cell = page.cells[0]
    axes = page.panel(
        cell,
        _resized(backdrop.thumbnail, page.plan.image_px),
        extent_mm=_extent_mm(scores, backdrop),
        name="slide",
        title="Slide",
        subtitle="as scanned",
    )
    _draw_outlines(axes, scores, backdrop)
    handles = [
        Line2D([], [], color=_TISSUE_COLOUR, linewidth=_TISSUE_WIDTH, label="tissue found"),
    ]
    if backdrop.lesions:
        handles.append(
            Line2D([], [], color=_LESION_COLOUR, linewidth=_LESION_WIDTH, label="known lesion")
        )
    page.legend(cell, handles)


def _evidence_panel(page: Page, scores: TileScores, scale: CohortScale, backdrop: Backdrop) -> None:
    limit = scale.evidence_limit
    colouring = evidence_colouring(limit)
    _overlay_panel(
        page,
        1,
        scores,
        backdrop,
        values=scores.evidence,
        colouring=colouring,
        name="evidence",
        title="Class evidence",
        subtitle="the model's answer to each tile alone",
    )
    beyond = float((np.abs(scores.evidence) > limit).mean())
    page.colour_bar(
        page.cells[1],
        colouring,
        ticks=(-limit, -limit / 2, 0.0, limit / 2, limit),
        values=np.linspace(-limit, limit, 512),
        labels=(
            scores.evidence_name,
            f"one scale for all slides, from {scale.slides} validation slides; {beyond:.1%} of "
            "this slide's tiles lie beyond its ends",
        ),
        name="evidence scale",
    )


def _attention_panel(page: Page, scores: TileScores, backdrop: Backdrop) -> None:
    _overlay_panel(
        page,
        2,
        scores,
        backdrop,
        values=scores.relative_attention,
        colouring=attention_colouring,
        name="attention",
        title="Attention",
        subtitle="where the model looked, not what it concluded",
    )
    relative = scores.relative_attention
    beyond = float(((relative > 2**ATTENTION_LIMIT) | (relative < 2**-ATTENTION_LIMIT)).mean())
    whose = "" if scores.bag_tiles is None else " of all the patient's slides"
    page.colour_bar(
        page.cells[2],
        attention_colouring,
        ticks=np.linspace(-ATTENTION_LIMIT, ATTENTION_LIMIT, 7).tolist(),
        values=2.0 ** np.linspace(-ATTENTION_LIMIT, ATTENTION_LIMIT, 512),
        labels=(
            f"log2(attention × number of tiles{whose}): 0 is an even share, +1 twice it",
            f"same scale for every slide; {beyond:.1%} of this slide's tiles lie beyond its ends",
        ),
        name="attention scale",
    )


def _overlay_panel(
    page: Page,
    index: int,
    scores: TileScores,
    backdrop: Backdrop,
    *,
    values: NDArray[np.floating],
    colouring: Colouring,
    name: str,
    title: str,
    subtitle: str,
) -> None:
    width_px, height_px = page.plan.image_px
    extent_px0 = backdrop.extent_px0
    overlay = overlay_rgba(
        values,
        scores,
        shape=(height_px, width_px),
        px0_per_px=(extent_px0[0] / width_px, extent_px0[1] / height_px),
        colouring=colouring,
    )
    slide = _resized(backdrop.thumbnail, page.plan.image_px).astype(np.float64)
    grey = slide.mean(axis=2, keepdims=True)
    muted = 255 - _DARKNESS_KEPT * (255 - grey - _STAIN_KEPT * (slide - grey))
    axes = page.panel(
        page.cells[index],
        blend(overlay, np.rint(muted).astype(np.uint8)),
        extent_mm=_extent_mm(scores, backdrop),
        name=name,
        title=title,
        subtitle=subtitle,
    )
    _draw_outlines(axes, scores, backdrop)


def _draw_outlines(axes: Axes, scores: TileScores, backdrop: Backdrop) -> None:
    mm_x, mm_y = scores.mpp[0] / 1000, scores.mpp[1] / 1000
    if backdrop.tissue_mask.any():
        # A rim of no tissue closes outlines that run along the slide's edge.
        mask = np.pad(backdrop.tissue_mask, 1).astype(np.float64)
        rows, cols = (np.arange(n) - 0.5 for n in mask.shape)
        axes.contour(
            cols * backdrop.mask_px0_per_px[0] * mm_x,
            rows * backdrop.mask_px0_per_px[1] * mm_y,
            mask,
            levels=[0.5],
            colors=_TISSUE_COLOUR,
            linewidths=_TISSUE_WIDTH,
        )
    for outline in backdrop.lesions:
        closed = np.vstack([outline, outline[:1]])
        axes.plot(
            closed[:, 0] * mm_x, closed[:, 1] * mm_y, color=_LESION_COLOUR, linewidth=_LESION_WIDTH
        )
    width_mm, height_mm = _extent_mm(scores, backdrop)
    axes.set(xlim=(0, width_mm), ylim=(height_mm, 0))


def _extent_mm(scores: TileScores, backdrop: Backdrop) -> tuple[float, float]:
    width_px0, height_px0 = backdrop.extent_px0
    return width_px0 * scores.mpp[0] / 1000, height_px0 * scores.mpp[1] / 1000


def _resized(thumbnail: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(thumbnail).resize(size_px, Image.Resampling.LANCZOS))


def _facts(scores: TileScores, note: str) -> list[str]:
    tile_um, stride_um = (
        " × ".join(f"{px0 * mpp:.4g}" for px0, mpp in zip(pair, scores.mpp, strict=True))
        for pair in (scores.tile_px0, scores.stride_px0)
    )
    mpp = " × ".join(f"{value:.4g}" for value in scores.mpp)
    prediction = "   ".join(f"{name} {value:.3g}" for name, value in scores.prediction.items())
    facts = [
        f"Prediction: {prediction}",
        f"Model: {scores.model}",
        f"{len(scores.coords_px0)} tiles of {tile_um} µm every {stride_um} µm; slide scanned at "
        f"{mpp} µm per pixel",
    ]
    return [*facts, note] if note else facts
