"""What all figures of an evaluation share: paper, colours, notes, and who is counted.

Every figure counts a slide or patient once, so that its intervals mean what they say: where folds
are repeated, by the first fold that tests them.
"""

import math
import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mil.tasks.config import SurvivalTarget

INK, SOFT_INK, FAINT = "#1a1a1a", "#555555", "#c8c8c8"
BLUE, VERMILLION = "#0072b2", "#d55e00"
# Okabe & Ito (2008): told apart with all common colour vision deficiencies; yellow is left out,
# for it is too pale for a line on white.
COLOURS = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 2)), (0, (1, 1)))
NOTE_PT, SMALL_PT, TEXT_PT, TITLE_PT = 7.5, 8.0, 9.0, 10.5
_DPI = 200
_CHARACTERS_PER_IN = 18.0  # of a note in NOTE_PT


def paper(width_in: float, height_in: float) -> Figure:
    """A page; text is sized for it, so that all figures at one scale read alike."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """The look of all axes. Names come from tables, so a $ in them is a $ and no formula."""
    for setter, text, size in (
        (axes.set_xlabel, xlabel, TEXT_PT),
        (axes.set_ylabel, ylabel, TEXT_PT),
        (axes.set_title, title, TEXT_PT),
    ):
        setter(text, fontsize=size, color=INK, parse_math=False)
    axes.tick_params(labelsize=SMALL_PT, color=SOFT_INK, labelcolor=INK, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=SOFT_INK, linewidth=0.6)


def finish(figure: Figure, path: Path, *, title: str, note: str) -> None:
    """Adds the title and, below everything, what a reader must know; writes the file."""
    width_in = figure.get_size_inches()[0]
    lines = textwrap.wrap(title, int(width_in * 12))
    figure.suptitle("\n".join(lines), fontsize=TITLE_PT, color=INK, parse_math=False)
    wrapped = "\n".join(textwrap.wrap(note, int(width_in * _CHARACTERS_PER_IN)))
    figure.supxlabel(wrapped, x=0.02, ha="left", fontsize=NOTE_PT, color=SOFT_INK, parse_math=False)
    figure.savefig(path)


def time_label(target: SurvivalTarget) -> str:
    """The time column and, where the task names it, its unit."""
    return target.time if target.unit is None else f"{target.time}, {target.unit}"


def first_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Every slide or patient once: the row of the first fold that tests it."""
    ordered = table.sort_values(["repeat", "fold"], kind="stable")
    return ordered.drop_duplicates(["level", "id"])


def shown_rows(test: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that a figure is of, 'patients', or 'slides' where these stand for themselves."""
    patients = test[test["level"] == "patient"]
    return (patients, "patients") if len(patients) else (test, "slides")


def fold_tables(table: pd.DataFrame) -> list[pd.DataFrame]:
    return [part for _, part in table.groupby(["repeat", "fold"])]


def pooling_note(table: pd.DataFrame) -> str:
    """What is counted in a figure of the `first_tests` of `table`."""
    folds = len(fold_tables(table))
    if table.duplicated(["level", "id"]).any():
        return (
            f"Test parts of {folds} folds; each patient counted once, by the first fold that tests "
            "them."
        )
    return f"Test parts of {folds} folds, pooled." if folds > 1 else "Test part of one fold."


def p_number(p: float) -> str:
    """`0.034`, `< 0.001`."""
    if math.isnan(p):
        return "undefined"
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def p_text(p: float) -> str:
    """`p = 0.034`, `p < 0.001`."""
    number = p_number(p)
    return f"p {number}" if number.startswith(("<", "u")) else f"p = {number}"


def number_text(value: float) -> str:
    """Three decimals, or where a unit makes these too many or too few three digits."""
    if math.isnan(value):
        return "undefined"
    plain = value == 0 or 5e-4 <= abs(value) < 1e3
    size = f"{abs(value):.3f}" if plain else f"{abs(value):.3g}"
    return f"\N{MINUS SIGN}{size}" if value < 0 else size


def signed_text(value: float) -> str:
    """`number_text` of a difference: `+0.031`."""
    return f"+{number_text(value)}" if value >= 0 else number_text(value)


def range_text(low: float, high: float) -> str:
    """`0.740–0.880`, `−0.120 to 0.300`."""
    return f"{number_text(low)}{'–' if low >= 0 else ' to '}{number_text(high)}"


def interval_text(value: float, low: float, high: float) -> str:
    """`0.81 (0.74–0.88)`; an absent bound leaves the interval out."""
    if math.isnan(low) or math.isnan(high):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f}–{high:.2f})"
