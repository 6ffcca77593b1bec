"""Figures of a survival task: risk groups over time, calibration at horizons, AUC(t)."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mil.figures.common import (
    BLUE,
    FAINT,
    INK,
    LINES,
    SMALL_PT,
    VERMILLION,
    finish,
    first_tests,
    fold_tables,
    p_text,
    paper,
    pooling_note,
    tidy,
    time_label,
)
from mil.outcomes import Outcomes
from mil.tasks.columns import survival_columns
from mil.tasks.config import SurvivalTarget

GROUP_COLOURS = {"low": BLUE, "high": VERMILLION}
GROUP_LINES = {"low": LINES[0], "high": LINES[1]}


def kaplan_meier_figure(
    patients: pd.DataFrame,
    target: SurvivalTarget,
    path: Path,
    *,
    title: str,
    logrank: tuple[float, float] | None = None,
) -> None:
    """Kaplan-Meier curves of the test patients' risk groups, with their numbers at risk.

    `patients`: rows of level patient. `logrank`: chi-square and p of the test stratified by fold,
    over the same `first_tests`.
    """
    shown = first_tests(patients)
    outcomes = Outcomes(*survival_columns(shown, time=target.time, event=target.event))
    group = shown["risk_group"].to_numpy()
    groups = [name for name in GROUP_COLOURS if (group == name).any()]
    figure = paper(5.6, 5.2)
    curves, counts = figure.subplots(2, 1, height_ratios=(6, 0.55 * len(groups) + 0.35))
    locator = MaxNLocator(6, steps=[1, 2, 2.5, 3, 5, 6, 10])
    ticks = np.asarray(locator.tick_values(0, outcomes.time.max()))
    ticks = ticks[(ticks >= 0) & (ticks <= outcomes.time.max())]
    for axes in (curves, counts):
        axes.set(xlim=(-0.02 * outcomes.time.max(), 1.02 * outcomes.time.max()), xticks=ticks)
    for name in groups:
        _survival_curve(curves, outcomes[group == name], name)
    tidy(curves, xlabel=time_label(target), ylabel="survival probability")
    curves.set_ylim(0, 1.02)
    curves.legend(fontsize=SMALL_PT, frameon=False, loc="best")
    if logrank is not None and not math.isnan(logrank[1]):
        text = f"log-rank stratified by fold: χ² = {logrank[0]:.2f}, {p_text(logrank[1])}"
        curves.set_title(text, fontsize=SMALL_PT, loc="right", color=INK)
    _numbers_at_risk(counts, {name: outcomes.time[group == name] for name in groups}, ticks)
    note = (
        f"{pooling_note(patients)} High: risk above the median of the training patients of the "
        "fold. Bands: pointwise 95 % intervals (Greenwood, log-log). Ticks: censored patients."
    )
    if len(fold_tables(patients)) > 1:
        note += " p is somewhat too small: test patients of a fold train the other folds' models."
    if len(groups) == 1:
        note += f" All test patients are in the {groups[0]} group: there is nothing to compare."
    finish(figure, path, title=title, note=note)


def _survival_curve(axes: Axes, outcomes: Outcomes, name: str) -> None:
    fitter = KaplanMeierFitter().fit(outcomes.time, outcomes.event)
    colour = GROUP_COLOURS[name]
    curve, band = fitter.survival_function_.iloc[:, 0], fitter.confidence_interval_
    label = f"{name} risk: {len(outcomes)} patients, {int(outcomes.event.sum())} events"
    axes.step(
        curve.index,
        curve,
        where="post",
        color=colour,
        linestyle=GROUP_LINES[name],
        linewidth=1.6,
        label=label,
    )
    axes.fill_between(
        band.index,
        band.iloc[:, 0],
        band.iloc[:, 1],
        step="post",
        color=colour,
        alpha=0.15,
        linewidth=0,
    )
    censored = outcomes.time[~outcomes.event]
    axes.plot(censored, fitter.predict(censored), "|", color=colour, markersize=6)


def _numbers_at_risk(axes: Axes, times: Mapping[str, np.ndarray], ticks: np.ndarray) -> None:
    """Below the curves, at their ticks: patients whose time is not before the tick."""
    for row, (name, time) in enumerate(times.items()):
        for tick in ticks:
            axes.text(
                tick,
                -row,
                str(int((time >= tick).sum())),
                ha="center",
                va="center",
                fontsize=SMALL_PT,
                color=GROUP_COLOURS[name],
            )
    axes.set(ylim=(-len(times) + 0.5, 0.5), yticks=range(0, -len(times), -1))
    axes.set_yticklabels(list(times))
    axes.set_title("number at risk", fontsize=SMALL_PT, loc="left", color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelbottom=False, labelsize=SMALL_PT, pad=12)
    for label, name in zip(axes.get_yticklabels(), times, strict=True):
        label.set_color(GROUP_COLOURS[name])


def survival_calibration_figure(
    patients: pd.DataFrame,
    target: SurvivalTarget,
    tables: Mapping[float, pd.DataFrame],
    path: Path,
    *,
    title: str,
) -> None:
    """Predicted survival against what came true (Kaplan-Meier), one panel a horizon.

    `tables`: horizon -> groups of patients of rising prediction with columns predicted, observed,
    low, high, n (mil.metrics.survival.calibration_at over the `first_tests` of `patients`).
    """
    known = {horizon: table.dropna(subset=["observed"]) for horizon, table in tables.items()}
    panels = [(horizon, table) for horizon, table in known.items() if len(table)]
    columns = min(max(len(panels), 1), 3)
    rows = max(math.ceil(len(panels) / columns), 1)
    figure = paper(max(2.9 * columns, 4.4), 2.9 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (horizon, table) in zip(grid, panels, strict=False):
        _calibration_panel(axes, table)
        tidy(
            axes,
            title=f"at {horizon:.4g} ({time_label(target)})",
            xlabel="predicted survival",
            ylabel="observed survival",
        )
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    note = (
        f"{pooling_note(patients)} Each point: a group of patients of similar prediction, with its "
        "size and the 95 % interval of its Kaplan-Meier estimate. On the diagonal: as predicted; "
        f"below: fewer survived than predicted.{_horizons_note(target)}"
    )
    if not panels:
        note = "No horizon at which survival can be compared with what was observed."
    finish(figure, path, title=title, note=note)


def _horizons_note(target: SurvivalTarget) -> str:
    if target.times is not None:
        return ""
    return " Times: quartiles of the folds' training event times, mean over the folds."


def _calibration_panel(axes: Axes, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    below, above = table["observed"] - table["low"], table["high"] - table["observed"]
    axes.errorbar(
        table["predicted"],
        table["observed"],
        yerr=np.clip([below, above], 0, None),
        fmt="o-",
        color=BLUE,
        markersize=4.5,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2.5,
    )
    for row in table.itertuples():
        axes.annotate(
            f"{row.n}",
            (row.predicted, row.observed),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            fontsize=SMALL_PT - 1,
            color=INK,
        )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def time_dependent_auc_figure(
    rows: pd.DataFrame, target: SurvivalTarget, path: Path, *, title: str
) -> None:
    """AUC(t): how well risk tells who has had the event by t from who has not.

    `rows`: one a horizon, columns time, value, low, high; NaN where it is undefined.
    """
    defined = rows.dropna(subset=["value"]).sort_values("time")
    figure = paper(4.4, 4.4)
    axes = figure.add_subplot()
    axes.axhline(0.5, color=FAINT, linewidth=1)
    if len(defined):
        bounds = [defined["value"] - defined["low"], defined["high"] - defined["value"]]
        axes.errorbar(
            defined["time"],
            defined["value"],
            yerr=np.clip(np.nan_to_num(bounds), 0, None),
            fmt="o-",
            color=BLUE,
            markersize=5,
            linewidth=1.4,
            elinewidth=1,
            capsize=3,
        )
    tidy(axes, xlabel=time_label(target), ylabel="cumulative/dynamic AUC")
    axes.set_ylim(0, 1.08)
    axes.set_xlim(0, 1.08 * rows["time"].max() if len(rows) else 1)
    for time, value, high in defined[["time", "value", "high"]].to_numpy(dtype=float):
        axes.annotate(
            f"{value:.2f}",
            (time, np.fmax(value, high)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL_PT,
            color=INK,
        )
    finish(figure, path, title=title, note=_auc_note(rows, target))


def _auc_note(rows: pd.DataFrame, target: SurvivalTarget) -> str:
    note = (
        "Pairs within folds; censoring weighted by the training patients' (IPCW). Bars: "
        f"95 % intervals, bootstrap of patients. Grey line: chance.{_horizons_note(target)}"
    )
    lost = rows.loc[rows["value"].isna(), "time"]
    if len(lost):
        times = ", ".join(f"{time:.4g}" for time in lost)
        note += f" Undefined at {times}: too few patients with or without the event."
    return note
