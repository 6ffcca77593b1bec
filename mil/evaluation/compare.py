"""Paired comparisons of all answerers of a task on the same test patients."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.config import StudyConfig
from mil.evaluation.held_out import read_held_out
from mil.evaluation.metric_table import positive_scores
from mil.evaluation.statistics import Metric, draws_of, metrics_for, whole
from mil.metrics.ranking import delong_test
from mil.metrics.resampling import bootstrap_p, holm, percentile_interval
from mil.predictions import write_csv
from mil.tasks.config import TaskConfig

COMPARED = ("auroc", "auprc", "balanced_accuracy", "brier", "c_index", "uno_c", "ibs")


def comparison_path(study: StudyConfig, task: str) -> Path:
    return study.output / "evaluation" / task / "comparison.csv"


def compare_answerers(study: StudyConfig, task: str) -> pd.DataFrame:
    """Paired comparisons of all answerers on the same test patients, or slides where these stand
    alone; writes comparison.csv.

    Differences a - b with intervals and p from one set of patient draws, for the AUROC from
    DeLong's paired test where it applies; Holm's correction over the pairs of a metric.
    """
    target = study.mil.tasks[task].target
    answerers = study.answerers(task)
    tests = {name: read_held_out(study, task, name) for name in answerers}
    level = tests[answerers[0]].levels(target)[-1]
    tables = {name: test.level(level) for name, test in tests.items()}
    draws = draws_of(tables[answerers[0]], study.mil.bootstrap)
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in answerers:
        found = metrics_for(tables[name], target, tests[name].fits)
        kept = {m: found[m] for m in COMPARED if m in found}
        values[name] = {m: _on_draws(f, tables[name], draws) for m, f in kept.items()}
    rows = []
    for metric in values[answerers[0]]:
        pairs = [
            _pair(metric, (a, b), values, tables, target) for a, b in combinations(answerers, 2)
        ]
        adjusted = holm(np.array([pair["p"] for pair in pairs]))
        rows += [pair | {"p_holm": p} for pair, p in zip(pairs, adjusted, strict=True)]
    columns = ["answerer_a", "answerer_b", "metric", "difference", "low", "high"]
    table = pd.DataFrame(rows, columns=[*columns, "p", "p_holm", "test"])
    write_csv(table, comparison_path(study, task))
    return table


def _on_draws(metric: Metric, table: pd.DataFrame, draws: list) -> NDArray[np.float64]:
    """The value on the whole table, then on every draw."""
    return np.array([metric(whole(table)), *(metric(rows) for rows in draws)])


def _pair(
    metric: str,
    names: tuple[str, str],
    values: dict[str, dict[str, NDArray[np.float64]]],
    tables: dict[str, pd.DataFrame],
    target: TaskConfig,
) -> dict[str, object]:
    a, b = names
    differences = values[a][metric] - values[b][metric]
    low, high = percentile_interval(differences[1:])
    p, test = bootstrap_p(differences[1:]), "paired bootstrap"
    ours, theirs = (positive_scores(tables[name], target) for name in names)
    if tables[a]["patient_id"].duplicated().any():  # slides of a patient are not independent
        ours = None
    if metric == "auroc" and ours is not None and theirs is not None:
        strata = tables[a]["fold"].to_numpy()
        found = delong_test(ours[0], ours[1], theirs[1], strata=strata)
        if np.isfinite(found.p):  # folds with a single patient of a class have no variance
            low, high, p, test = found.low, found.high, found.p, "DeLong"
    return {
        "answerer_a": a,
        "answerer_b": b,
        "metric": metric,
        "difference": differences[0],
        "low": low,
        "high": high,
        "p": p,
        "test": test,
    }
