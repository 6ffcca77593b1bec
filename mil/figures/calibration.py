"""Figure of the calibration of classes or labels: are 8 of 10 patients ill who are told 80 %?"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mil.decisions import asked_of, class_indices, classes_of, known_truth
from mil.figures.common import (
    BLUE,
    FAINT,
    SMALL_PT,
    VERMILLION,
    finish,
    first_tests,
    paper,
    pooling_note,
    shown_rows,
    tidy,
)
from mil.metrics.classification import brier, expected_calibration_error, reliability
from mil.tasks.config import ClassificationConfig, MultilabelConfig

Target = ClassificationConfig | MultilabelConfig
MOST_PANELS = 6
PER_BIN = 12  # patients that a bin should hold; fewer say nothing
MOST_BINS = 10


def calibration_figure(test: pd.DataFrame, target: Target, path: Path, *, title: str) -> None:
    """Reliability of the test patients' probabilities, before and after temperature scaling; of
    slides where these stand for themselves.

    One panel for the positive class, or one for each of up to six classes or labels; below it how
    the probabilities of those with and without it are spread.
    """
    shown, unit = shown_rows(test)
    rows = first_tests(shown)
    names = asked_of(rows, target)[:MOST_PANELS]
    columns = min(len(names), 3)
    bands = math.ceil(len(names) / columns)
    figure = paper(max(2.9 * columns, 4.4), 4.2 * bands + 1.0)
    heights = [3.0, 1.0] * bands
    grid = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=heights, sharex=True)
    for place in range(columns * bands):
        upper, lower = grid[2 * (place // columns) : 2 * (place // columns) + 2, place % columns]
        if place < len(names):
            known, truth = known_truth(rows, target, names[place])
            _panel((upper, lower), rows.iloc[known], truth, (names[place], unit))
        else:
            upper.set_visible(False)
            lower.set_visible(False)
    grid[0, 0].legend(loc="upper left", fontsize=SMALL_PT, frameon=False)
    note = (
        f"{pooling_note(shown)} {unit.capitalize()}. Bins of equal count; bars: Wilson 95 % "
        f"intervals. {_summary(rows, target)} The temperature is fitted on the fold's "
        "validation part."
    )
    finish(figure, path, title=title, note=note)


def _panel(
    panels: tuple[Axes, Axes],
    rows: pd.DataFrame,
    of_class: NDArray[np.bool_],
    named: tuple[str, str],
) -> None:
    """`named`: the class or label, and what a row is."""
    (upper, lower), name = panels, named[0]
    bins = int(np.clip(len(rows) // PER_BIN, 2, MOST_BINS))
    before = reliability(of_class, rows[f"uncalibrated_{name}"].to_numpy(), bins)
    after = reliability(of_class, rows[f"prob_{name}"].to_numpy(), bins)
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    upper.plot(
        before.predicted,
        before.observed,
        "s--",
        color=VERMILLION,
        markerfacecolor="white",
        markersize=4,
        linewidth=1,
        label="before temperature scaling",
    )
    upper.errorbar(
        after.predicted,
        after.observed,
        yerr=np.clip([after.observed - after.low, after.high - after.observed], 0, None),
        fmt="o-",
        color=BLUE,
        markersize=4.5,
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2.5,
        label="after (reported)",
    )
    tidy(upper, ylabel=f"observed share of {name}")
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.tick_params(labelbottom=False)
    _histogram(lower, rows[f"prob_{name}"].to_numpy(), of_class, named)


def _histogram(
    axes: Axes,
    probability: NDArray[np.float64],
    of_class: NDArray[np.bool_],
    named: tuple[str, str],
) -> None:
    """Patients of the class upwards, all others downwards."""
    name, unit = named
    edges = np.linspace(0, 1, 21)
    width = edges[1] - edges[0]
    with_class, _ = np.histogram(probability[of_class], edges)
    without, _ = np.histogram(probability[~of_class], edges)
    axes.bar(edges[:-1], with_class, width, align="edge", color=BLUE)
    axes.bar(edges[:-1], -without, width, align="edge", color="0.65")
    axes.axhline(0, color="white", linewidth=0.8)
    tidy(axes, xlabel=f"predicted probability of {name}", ylabel=unit)
    highest = max(with_class.max(), without.max(), 1) * 1.1
    axes.set_ylim(-highest, highest)
    ticks = [tick for tick in axes.get_yticks() if abs(tick) <= highest and tick % 1 == 0]
    axes.set_yticks(ticks, [f"{abs(tick):.0f}" for tick in ticks])
    for y, text in ((0.97, f"{name}: {of_class.sum()}"), (0.03, f"others: {(~of_class).sum()}")):
        axes.text(
            0.5,
            y,
            text,
            transform=axes.transAxes,
            ha="center",
            va="top" if y > 0.5 else "bottom",
            fontsize=SMALL_PT - 0.5,
            parse_math=False,
        )


def _summary(rows: pd.DataFrame, target: Target) -> str:
    """Expected calibration error of the called probability, and Brier score, before and after."""
    if isinstance(target, MultilabelConfig):
        before, after = (_label_brier(rows, target, p) for p in ("uncalibrated_", "prob_"))
        return f"Before → after: Brier score, mean over labels, {before:.3f} → {after:.3f}."
    classes, truth = classes_of(rows), class_indices(rows, target.label)
    values = []
    for prefix in ("uncalibrated_", "prob_"):
        probabilities = rows[[f"{prefix}{name}" for name in classes]].to_numpy()
        values.append(
            (expected_calibration_error(truth, probabilities), brier(truth, probabilities))
        )
    (ece_before, brier_before), (ece_after, brier_after) = values
    return (
        f"Before → after: expected calibration error {ece_before:.3f} → {ece_after:.3f}, "
        f"Brier score {brier_before:.3f} → {brier_after:.3f}."
    )


def _label_brier(rows: pd.DataFrame, target: MultilabelConfig, prefix: str) -> float:
    """Mean over the labels that are known of anyone."""
    scores = []
    for name in target.labels:
        known, truth = known_truth(rows, target, name)
        answers = rows[f"{prefix}{name}"].to_numpy(dtype=float)[known]
        scores += [np.mean((answers - truth) ** 2)] if len(known) else []
    return float(np.mean(scores)) if scores else math.nan
