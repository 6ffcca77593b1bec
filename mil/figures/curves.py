"""ROC, and precision against recall, of what is asked with yes or no: the positive class, each
class against the rest, or each of several labels where it is known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from mil.decisions import asked_of, known_truth
from mil.figures.classification import rule_text
from mil.figures.common import (
    COLOURS,
    FAINT,
    LINES,
    SMALL_PT,
    SOFT_INK,
    VERMILLION,
    finish,
    first_tests,
    fold_tables,
    interval_text,
    paper,
    pooling_note,
    shown_rows,
    tidy,
)
from mil.metrics.classification import sensitivity_specificity
from mil.metrics.ranking import auprc, delong_interval, stratified_auroc
from mil.tasks.config import ClassificationConfig, MultilabelConfig

MOST_FOLDS = 10  # more thin lines than this are a tangle
MOST_CLASSES = len(COLOURS)

Target = ClassificationConfig | MultilabelConfig
Truth = NDArray[np.bool_]
Score = NDArray[np.float64]
Trace = tuple[Score, Score]
Area = Callable[[Truth, Score, NDArray], str]


@dataclass(frozen=True)
class _Kind:
    """A family of curves: its line, the number that sums it up, and one operating point on it."""

    trace: Callable[[Truth, Score], Trace]
    area: Area
    point: Callable[[Truth, Truth], tuple[float, float]]
    xlabel: str
    ylabel: str


def _roc_trace(truth: Truth, score: Score) -> Trace:
    false_rate, true_rate, _ = roc_curve(truth, score, drop_intermediate=False)
    return false_rate, true_rate


def _roc_area(truth: Truth, score: Score, folds: NDArray) -> str:
    area = stratified_auroc(truth, score, folds)
    return interval_text(area, *delong_interval(truth, score, strata=folds))


def _roc_point(truth: Truth, called: Truth) -> tuple[float, float]:
    sensitivity, specificity = sensitivity_specificity(truth, called)
    return 1 - specificity, sensitivity


def _recall_trace(truth: Truth, score: Score) -> Trace:
    precision, recall, _ = precision_recall_curve(truth, score)
    return recall, precision


def _recall_area(truth: Truth, score: Score, _: NDArray) -> str:
    return f"{auprc(truth, score):.2f}, prevalence {truth.mean():.2f}"


def _recall_point(truth: Truth, called: Truth) -> tuple[float, float]:
    precision = float(truth[called].mean()) if called.any() else math.nan
    return float(called[truth].mean()), precision


_ROC = _Kind(_roc_trace, _roc_area, _roc_point, "1 − specificity", "sensitivity")
_RECALL = _Kind(
    _recall_trace, _recall_area, _recall_point, "recall (sensitivity)", "precision (PPV)"
)


@dataclass(frozen=True, eq=False)
class _Known:
    """The test rows, each once, of which it is known whether they have what is asked."""

    truth: Truth
    score: Score
    called: Truth
    folds: NDArray

    @classmethod
    def of(cls, table: pd.DataFrame, target: Target, name: str) -> Self:
        rows = first_tests(table)
        known, truth = known_truth(rows, target, name)
        rows = rows.iloc[known]
        several = isinstance(target, MultilabelConfig)
        called = rows[f"predicted_{name}"] == "1" if several else rows["predicted"] == name
        score = rows[f"prob_{name}"].to_numpy(dtype=float)
        return cls(truth, score, called.to_numpy(dtype=bool), rows["fold"].to_numpy())

    @property
    def of_both(self) -> bool:
        """Whether some have it and some do not; no curve is defined otherwise."""
        return bool(0 < self.truth.sum() < len(self.truth))


def roc_figure(test: pd.DataFrame, target: Target, path: Path, *, title: str) -> None:
    """ROC of the test rows (both levels), for what is asked."""
    figure, axes, below = _curve_page(test, target)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    _draw_curves(axes, test, target, _ROC)
    _legend(axes, below, "AUROC (95 % interval)")
    note = _curve_note(test, target)
    if shown_rows(test)[1] == "patients":
        note += " Interval: DeLong on patients, logit scale."
    finish(figure, path, title=title, note=note)


def precision_recall_figure(test: pd.DataFrame, target: Target, path: Path, *, title: str) -> None:
    """Precision against recall of the test rows, with the prevalence that chance would reach."""
    figure, axes, below = _curve_page(test, target)
    asked = asked_of(test, target)
    note = _curve_note(test, target)
    if len(asked) == 1:
        prevalence = _Known.of(shown_rows(test)[0], target, asked[0]).truth.mean()
        axes.axhline(float(prevalence), color=FAINT, linewidth=1)
        note += " Horizontal line: prevalence, the precision of chance."
    _draw_curves(axes, test, target, _RECALL)
    _legend(axes, below, "average precision")
    finish(figure, path, title=title, note=note)


def _curve_page(test: pd.DataFrame, target: Target) -> tuple[Figure, Axes, Axes]:
    """A figure, the axes of its curves, and the empty axes below that hold the legend."""
    entries = max(min(len(asked_of(test, target)), MOST_CLASSES), 3)
    below_in = 0.2 * (entries + 1)
    figure = paper(4.4, 4.9 + below_in)
    axes, below = figure.subplots(2, 1, height_ratios=(4.2, below_in))
    below.set_axis_off()
    return figure, axes, below


def _legend(axes: Axes, below: Axes, title: str) -> None:
    legend = below.legend(
        *axes.get_legend_handles_labels(),
        title=title,
        loc="upper left",
        borderaxespad=0,
        alignment="left",
        fontsize=SMALL_PT,
        title_fontsize=SMALL_PT,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_curves(axes: Axes, test: pd.DataFrame, target: Target, kind: _Kind) -> None:
    tidy(axes, xlabel=kind.xlabel, ylabel=kind.ylabel)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    shown, unit = shown_rows(test)
    slides = test[test["level"] == "slide"]
    asked = asked_of(test, target)
    for colour, line, name in zip(COLOURS, LINES, asked, strict=False):
        alone = len(asked) == 1
        if alone and 1 < len(fold_tables(shown)) <= MOST_FOLDS:
            for fold in fold_tables(shown):
                _curve(axes, fold, target, (name, kind), color="0.6", linewidth=0.7)
        if alone and len(first_tests(slides)) > len(first_tests(shown)):
            style: dict[str, Any] = {"color": SOFT_INK, "linestyle": LINES[1], "linewidth": 1.1}
            _curve(axes, slides, target, (name, kind), label="slides", **style)
        style = {"color": colour, "linestyle": LINES[0] if alone else line, "linewidth": 2}
        _curve(axes, shown, target, (name, kind), label=unit, **style)
        if alone:
            _operating_point(axes, _Known.of(shown, target, name), kind)


def _curve(
    axes: Axes,
    table: pd.DataFrame,
    target: Target,
    what: tuple[str, _Kind],
    *,
    label: str | None = None,
    **style: Any,
) -> None:
    """One curve of a class or label; none where the rows are all, or none, of it."""
    name, kind = what
    known = _Known.of(table, target, name)
    if not known.of_both:
        if label is not None:
            axes.plot([], [], label=f"{name}, {label}: undefined, one class only", **style)
        return
    if label is not None:
        area = _area(kind, label)(known.truth, known.score, known.folds)
        label = f"{name}, {len(known.truth)} {label}: {area}"
    trace = kind.trace(known.truth, known.score)
    axes.plot(*trace, label=label, drawstyle=_steps(kind), **style)


def _area(kind: _Kind, level: str) -> Area:
    """The slides of a patient are no independent witnesses: their area goes without interval."""
    if kind is _ROC and level == "slides":
        return lambda *rows: f"{stratified_auroc(*rows):.2f}"
    return kind.area


def _steps(kind: _Kind) -> str:
    return "default" if kind is _ROC else "steps-post"


def _operating_point(axes: Axes, known: _Known, kind: _Kind) -> None:
    if not known.of_both:
        return
    sensitivity, specificity = sensitivity_specificity(known.truth, known.called)
    label = f"operating point: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}"
    axes.plot(
        *kind.point(known.truth, known.called),
        "o",
        color=VERMILLION,
        markeredgecolor="white",
        markersize=8,
        label=label,
        zorder=5,
    )


def _curve_note(test: pd.DataFrame, target: Target) -> str:
    shown, unit = shown_rows(test)
    asked = asked_of(test, target)
    note = pooling_note(shown)
    if len(fold_tables(shown)) > 1:
        note += " Curves pool the folds."
    cut = f" (the first {MOST_CLASSES})" if len(asked) > MOST_CLASSES else ""
    if isinstance(target, MultilabelConfig):
        return f"{note} {unit.capitalize()}; each label{cut} where it is known."
    if len(asked) > 1:
        return f"{note} {unit.capitalize()}; each class{cut} against the rest."
    if 1 < len(fold_tables(shown)) <= MOST_FOLDS:
        note += f" Thin grey: {unit} of single folds."
    return f"{note} {rule_text(shown, target)}"
