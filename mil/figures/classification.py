"""Figure of a classification task's calls, and the words for how a class is called."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from mil.decisions import class_indices, classes_of, positive_class
from mil.figures.common import (
    BLUE,
    INK,
    TEXT_PT,
    finish,
    first_tests,
    paper,
    pooling_note,
    shown_rows,
    tidy,
)
from mil.metrics.classification import confusion
from mil.tasks.config import ClassificationConfig


def rule_text(patients: pd.DataFrame, target: ClassificationConfig) -> str:
    """How a class is called: by a threshold fixed on validation patients, or as most probable."""
    thresholds = patients["threshold"].dropna().unique()
    if not len(thresholds):
        return "Called: the most probable class."
    rule, least = target.operating_point.rule, target.operating_point.least
    name = "largest Youden index" if least is None else f"{rule} of at least {least:g}"
    low, high = float(thresholds.min()), float(thresholds.max())
    values = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f} over folds"
    positive = positive_class(target, classes_of(patients))
    return (
        f"Called {positive} from a probability of {values}: {name} on the fold's validation "
        "patients."
    )


def confusion_figure(
    test: pd.DataFrame, target: ClassificationConfig, path: Path, *, title: str
) -> None:
    """True against called class of the test patients, or slides where these stand alone: counts,
    and shares of the true class.
    """
    shown, unit = shown_rows(test)
    rows = first_tests(shown)
    classes = classes_of(rows)
    called = rows["predicted"].map({name: i for i, name in enumerate(classes)}).to_numpy(int)
    counts = confusion(class_indices(rows, target.label), called, len(classes))
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = paper(max(2.2 + 0.7 * len(classes), 4.4), 2.2 + 0.8 * len(classes))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=_BLUES, vmin=0, vmax=1)
    for (true, call), count in np.ndenumerate(counts):
        axes.text(
            call,
            true,
            f"{count}\n{shares[true, call]:.0%}" if totals[true] else f"{count}",
            ha="center",
            va="center",
            fontsize=TEXT_PT,
            color="white" if shares[true, call] > 0.55 else INK,
        )
    tidy(axes, xlabel="called", ylabel="true")
    axes.set_xticks(range(len(classes)), classes, parse_math=False)
    axes.set_yticks(
        range(len(classes)),
        [f"{name}\nn = {n}" for name, n in zip(classes, totals.ravel(), strict=True)],
        parse_math=False,
    )
    if max(map(len, classes)) > 8:
        axes.tick_params(axis="x", labelrotation=30)
    axes.tick_params(length=0)
    note = f"{pooling_note(shown)} {unit.capitalize()}, and their share of the true class. "
    finish(figure, path, title=title, note=note + rule_text(rows, target))


_BLUES = LinearSegmentedColormap.from_list("paper to blue", ["#ffffff", BLUE])
