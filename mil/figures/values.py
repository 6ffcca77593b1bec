"""Figure of a regression: observed against predicted values, in the unit of the value."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

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
from mil.metrics.arrays import equal_count_bins
from mil.metrics.regression import mean_absolute_error, pearson, r2, spearman
from mil.tasks.columns import number_values
from mil.tasks.config import RegressionConfig

PER_GROUP = 12  # rows whose means are compared; of fewer they say little
MOST_GROUPS = 10


def predicted_observed_figure(
    test: pd.DataFrame, target: RegressionConfig, path: Path, *, title: str
) -> None:
    """Each test patient, or slide where these stand alone, and the means of groups of similar
    prediction, beside the diagonal of perfect answers.
    """
    shown, unit = shown_rows(test)
    rows = first_tests(shown)
    observed = number_values(rows, target.column)
    predicted, folds = rows["value"].to_numpy(dtype=float), rows["fold"].to_numpy()
    figure = paper(4.4, 5.2)
    axes = figure.add_subplot()
    both = np.concatenate([observed, predicted])
    ends = np.array([both.min(), both.max()])
    axes.plot(ends, ends, color=FAINT, linewidth=1, label="observed as predicted")
    axes.plot(predicted, observed, "o", color=BLUE, markersize=4, alpha=0.5, label=unit)
    _groups(axes, predicted, observed)
    named = target.column if target.unit is None else f"{target.column}, {target.unit}"
    tidy(axes, xlabel=f"predicted {named}", ylabel=f"observed {named}")
    margin = 0.04 * (ends[1] - ends[0])
    limits = (ends[0] - margin, ends[1] + margin)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.legend(fontsize=SMALL_PT, frameon=False, loc="best")
    note = (
        f"{pooling_note(shown)} {len(rows)} {unit}. R² {_text(r2(observed, predicted))}, mean "
        f"absolute error {mean_absolute_error(observed, predicted):.3g}; within folds Pearson "
        f"{_text(pearson(observed, predicted, folds))}, Spearman "
        f"{_text(spearman(observed, predicted, folds))}."
    )
    finish(figure, path, title=title, note=note)


def _groups(axes: Axes, predicted: NDArray[np.float64], observed: NDArray[np.float64]) -> None:
    """Means of groups of equal count by rising prediction, with 95 % intervals of the observed."""
    of_group = equal_count_bins(predicted, int(np.clip(len(observed) // PER_GROUP, 2, MOST_GROUPS)))
    members = [np.flatnonzero(of_group == one) for one in np.unique(of_group)]
    members = [rows for rows in members if len(rows) > 1]
    if not members:
        return
    spread = [1.96 * observed[rows].std(ddof=1) / np.sqrt(len(rows)) for rows in members]
    axes.errorbar(
        [predicted[rows].mean() for rows in members],
        [observed[rows].mean() for rows in members],
        yerr=spread,
        fmt="s-",
        color=VERMILLION,
        markersize=4.5,
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2.5,
        label="means of groups, 95 % interval",
    )


def _text(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.2f}"
