"""The paper of a heatmap page: where three panels of equal size go, their text, bars and rulers.

Everything is placed in page pixels from the top left corner, so that panels fall on whole pixels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mil.heatmaps.colours import Colouring, blend

DPI = 150
_MARGIN_PX = 50
_GAP_PX = 50
_MIN_PAGE_PX, _MIN_CELL_PX = 1600, 500
_ROWS_FROM_ASPECT = 2.0  # wider slides are stacked, others stand side by side
_TITLE_PX, _RULER_PX, _BAR_PX = 66, 50, 26
_TICKS_PX, _LABEL_PT = 46, 9.0
_TITLE_PT, _HEAD_PT, _FACT_PT = 13.0, 18.0, 10.0
_LINE_FACTOR = 1.35
_CHARACTER_EM = 0.56  # mean advance of the default font, a little wide
_INK, _SOFT_INK = "#1a1a1a", "#555555"


@dataclass(frozen=True)
class Plan:
    """How three panels of `image_px` (width, height) stand on a page: in a row or in a column."""

    columns: int
    label_lines: int
    image_px: tuple[int, int]
    cell_width_px: int
    page_width_px: int


def plan_page(aspect: float) -> Plan:
    """The arrangement for slides of `aspect` = width/height."""
    columns = 1 if aspect >= _ROWS_FROM_ASPECT else 3
    widest, highest = (1500, 620) if columns == 1 else (690, 1300)
    width = max(round(min(widest, highest * aspect)), 1)
    height = max(round(min(highest, widest / aspect)), 1)
    cell = max(width, _MIN_CELL_PX)
    page = max(_MIN_PAGE_PX, columns * cell + (columns - 1) * _GAP_PX + 2 * _MARGIN_PX)
    return Plan(columns, 2 if columns == 1 else 4, (width, height), cell, page)


@dataclass(frozen=True)
class Cell:
    """One panel's place: its left and top edge on the page."""

    left_px: int
    top_px: int


class Page:
    """A page with its head written; `cells` are the places of three panels, in reading order."""

    def __init__(self, title: str, facts: Sequence[str], plan: Plan) -> None:
        self.plan = plan
        head = _wrap(title, plan.page_width_px - 2 * _MARGIN_PX, _HEAD_PT)
        lines = [
            line
            for fact in facts
            for line in _wrap(fact, plan.page_width_px - 2 * _MARGIN_PX, _FACT_PT)
        ]
        head_px = len(head) * _line_px(_HEAD_PT) + len(lines) * _line_px(_FACT_PT)
        first_top = _MARGIN_PX + head_px + 30
        cell_height = _TITLE_PX + plan.image_px[1] + _RULER_PX + _BAR_PX + _TICKS_PX
        cell_height += plan.label_lines * _line_px(_LABEL_PT)
        rows = 3 // plan.columns
        self.height_px = first_top + rows * cell_height + (rows - 1) * _GAP_PX + 10
        inches = (plan.page_width_px / DPI, self.height_px / DPI)
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.text(_MARGIN_PX, _MARGIN_PX, head, points=_HEAD_PT, weight="bold")
        facts_top = _MARGIN_PX + len(head) * _line_px(_HEAD_PT)
        self.text(_MARGIN_PX, facts_top, lines, points=_FACT_PT)
        used = plan.columns * plan.cell_width_px + (plan.columns - 1) * _GAP_PX
        left = (plan.page_width_px - used) // 2 if plan.columns == 3 else _MARGIN_PX
        self.cells = tuple(
            Cell(
                left + (i % plan.columns) * (plan.cell_width_px + _GAP_PX),
                first_top + (i // plan.columns) * (cell_height + _GAP_PX),
            )
            for i in range(3)
        )

    def text(
        self,
        left_px: float,
        top_px: float,
        lines: Sequence[str],
        *,
        points: float,
        weight: str = "normal",
        colour: str = _INK,
    ) -> None:
        """Writes `lines` downwards from the given corner."""
        for i, line in enumerate(lines):
            self.figure.text(
                left_px / self.plan.page_width_px,
                1 - (top_px + i * _line_px(points)) / self.height_px,
                line,
                fontsize=points,
                fontweight=weight,
                color=colour,
                ha="left",
                va="top",
                parse_math=False,  # a slide id may hold a dollar sign
            )

    def axes(self, left_px: float, top_px: float, width_px: float, height_px: float) -> Axes:
        axes = self.figure.add_axes(
            (
                left_px / self.plan.page_width_px,
                1 - (top_px + height_px) / self.height_px,
                width_px / self.plan.page_width_px,
                height_px / self.height_px,
            )
        )
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=_SOFT_INK, linewidth=0.6)
        return axes

    def panel(
        self,
        cell: Cell,
        picture: NDArray[np.uint8],
        *,
        extent_mm: tuple[float, float],
        name: str,
        title: str,
        subtitle: str,
    ) -> Axes:
        """Shows `picture`, of the plan's image size, in axes of mm, y down; adds a scale bar."""
        self.text(cell.left_px, cell.top_px, [title], points=_TITLE_PT, weight="bold")
        below = cell.top_px + _line_px(_TITLE_PT)
        caption = _wrap(subtitle, self.plan.cell_width_px, _LABEL_PT, max_lines=1)
        self.text(cell.left_px, below, caption, points=_LABEL_PT, colour=_SOFT_INK)
        axes = self.axes(cell.left_px, cell.top_px + _TITLE_PX, *self.plan.image_px)
        axes.set_label(name)
        axes.set_xticks([])
        width_mm, height_mm = extent_mm
        axes.imshow(
            picture, extent=(0, width_mm, height_mm, 0), interpolation="nearest", aspect="auto"
        )
        self._ruler(axes, width_mm)
        return axes

    def _ruler(self, axes: Axes, width_mm: float) -> None:
        length_mm = scale_bar_mm(width_mm)
        height_px = self.plan.image_px[1]
        below = axes.get_xaxis_transform()
        y = -24 / height_px
        axes.plot(
            [0, length_mm],
            [y, y],
            transform=below,
            color=_INK,
            linewidth=3,
            solid_capstyle="butt",
            clip_on=False,
            gid="scale-bar",
        )
        axes.text(
            length_mm + 12 * width_mm / self.plan.image_px[0],
            y,
            f"{length_mm:g} mm",
            transform=below,
            fontsize=_LABEL_PT,
            color=_INK,
            ha="left",
            va="center",
        )

    def below_panel_px(self, cell: Cell) -> int:
        """The top of what stands below a panel and its scale bar: a colour bar or a legend."""
        return cell.top_px + _TITLE_PX + self.plan.image_px[1] + _RULER_PX

    def legend(self, cell: Cell, handles: Sequence[Line2D]) -> None:
        self.figure.legend(
            handles=list(handles),
            loc="upper left",
            bbox_to_anchor=(
                cell.left_px / self.plan.page_width_px,
                1 - self.below_panel_px(cell) / self.height_px,
            ),
            frameon=False,
            fontsize=_LABEL_PT,
            borderaxespad=0,
            borderpad=0,
            handlelength=2.0,
        )

    def colour_bar(
        self,
        cell: Cell,
        colouring: Colouring,
        *,
        ticks: Sequence[float],
        values: NDArray[np.float64],
        labels: Sequence[str],
        name: str,
    ) -> None:
        """A numbered bar over `ticks`; `values` (n,) are what the colouring is given along it."""
        width_px = max(self.plan.image_px[0], _MIN_CELL_PX) - 40
        axes = self.axes(cell.left_px + 20, self.below_panel_px(cell), width_px, _BAR_PX)
        axes.set_label(name)
        paper = np.full((1, len(values), 3), 255, dtype=np.uint8)
        strip = blend(colouring(values)[None], paper)
        extent = (ticks[0], ticks[-1], 0.0, 1.0)
        axes.imshow(strip, extent=extent, interpolation="nearest", aspect="auto")
        axes.set_xticks(ticks, [_number(tick) for tick in ticks], fontsize=_LABEL_PT)
        axes.tick_params(length=4, width=0.6, color=_SOFT_INK, labelcolor=_INK)
        top = self.below_panel_px(cell) + _BAR_PX + _TICKS_PX
        lines = [
            line
            for label in labels
            for line in _wrap(
                label, self.plan.cell_width_px, _LABEL_PT, max_lines=self.plan.label_lines // 2
            )
        ]
        self.text(cell.left_px, top, lines, points=_LABEL_PT)


def scale_bar_mm(width_mm: float) -> float:
    """The longest 1, 2 or 5 x 10^n mm that fits a quarter of `width_mm`."""
    target = width_mm / 4
    power = 10.0 ** math.floor(math.log10(target))
    return max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9))


def _number(value: float) -> str:
    text = f"{value:+.3g}" if value else "0"
    return text.replace("-", "\N{MINUS SIGN}")


def _line_px(points: float) -> int:
    return round(points * DPI / 72 * _LINE_FACTOR)


def _wrap(text: str, width_px: float, points: float, *, max_lines: int | None = None) -> list[str]:
    characters = max(int(width_px / (points * DPI / 72 * _CHARACTER_EM)), 8)
    return textwrap.wrap(text, characters, max_lines=max_lines, placeholder=" …")
