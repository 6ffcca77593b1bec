"""Figures of an evaluation, drawn without global state."""

from pathlib import Path

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from mil.statistics import classes_of, metrics_for, whole
from mil.tasks.config import ClassificationConfig, SurvivalConfig

GROUP_COLOURS = {"low": "#2a6f97", "high": "#c1440e"}


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def roc_figure(test: pd.DataFrame, target: ClassificationConfig, path: Path, *, title: str) -> None:
    """Pooled test ROC of slides and of patients, for the positive class or each class."""
    figure = _figure(4.6, 4.4)
    axes = figure.add_subplot()
    for level, style in (("slide", "-"), ("patient", "--")):
        table = test[test["level"] == level]
        for name in [target.positive] if target.positive else classes_of(table):
            false_rate, true_rate, _ = roc_curve(table[target.label] == name, table[f"prob_{name}"])
            asked = target.model_copy(update={"positive": name})
            area = metrics_for(table, asked)["auroc"](whole(table))
            axes.plot(
                false_rate, true_rate, style, label=f"{name}, {level}s (n={len(table)}): {area:.3f}"
            )
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, aspect="equal")
    axes.legend(title="AUROC", fontsize=8, loc="lower right")
    figure.savefig(path)


def kaplan_meier_figure(
    patients: pd.DataFrame, target: SurvivalConfig, path: Path, *, title: str
) -> None:
    """Kaplan-Meier curves of test patients, grouped by their fold's training median risk.

    95 % confidence bands (Greenwood, log-log), numbers at risk, and the log-rank p value.
    """
    figure = _figure(5.6, 4.8)
    curves, counts = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    time, event = pd.to_numeric(patients[target.time]), pd.to_numeric(patients[target.event])
    groups = [g for g in GROUP_COLOURS if (patients["risk_group"] == g).any()]
    for group in groups:
        mask = patients["risk_group"] == group
        fitter = KaplanMeierFitter(
            label=f"{group} risk (n={mask.sum()}, events={event[mask].sum():.0f})"
        )
        fitter.fit(time[mask], event[mask])
        fitter.plot_survival_function(ax=curves, color=GROUP_COLOURS[group], show_censors=True)
    curves.set(ylim=(0, 1.02), ylabel="survival probability", xlabel="", title=title)
    curves.legend(fontsize=8, loc="lower left")
    if len(groups) == 2:
        high = patients["risk_group"] == "high"
        test = logrank_test(time[high], time[~high], event[high], event[~high])
        note = f"log-rank p = {test.p_value:.2g} (folds pooled)"
        curves.text(0.98, 0.95, note, transform=curves.transAxes, ha="right")
    _numbers_at_risk(counts, time, patients["risk_group"], groups, ticks=curves.get_xticks())
    counts.set_xlabel(target.time)
    figure.savefig(path)


def _numbers_at_risk(
    axes: Axes, time: pd.Series, group: pd.Series, groups: list[str], *, ticks: np.ndarray
) -> None:
    shown = [tick for tick in ticks if 0 <= tick <= time.max()]
    for row, name in enumerate(groups):
        for tick in shown:
            count = int((time[group == name] >= tick).sum())
            axes.text(tick, -row, str(count), ha="center", va="center", color=GROUP_COLOURS[name])
    axes.set(ylim=(-len(groups) + 0.5, 0.5), yticks=range(0, -len(groups), -1), yticklabels=groups)
    axes.set_title("number at risk", fontsize=8, loc="left")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
