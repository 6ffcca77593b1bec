"""One table of a task's answerers, a row each: metrics with intervals, and their differences to one
reference, tested in pairs.

Columns of a metric m: m, m_low, m_high (95 %, as in metrics.csv), m_seed_sd, m_rank (1 is best),
m_difference, m_difference_low, m_difference_high, m_p, m_p_holm, m_test, m_undefined (share of the
resamples in which the difference is undefined; of the reference, the metric). What does not apply
is empty: differences of the reference to itself, spreads of a single seed.
"""

import math

import numpy as np
import pandas as pd

from mil.config import BASELINES, StudyConfig
from mil.evaluation.contest import Contest, Paired
from mil.evaluation.metric_table import left_out_note
from mil.evaluation.statistics import metrics_for
from mil.evaluation.value_metrics import IN_UNIT
from mil.figures.common import number_text, p_text, range_text, signed_text
from mil.glossary import entry
from mil.metrics.resampling import holm
from mil.tasks.config import MultilabelConfig, RegressionConfig, TaskConfig

COLUMNS = ("", "_low", "_high", "_seed_sd", "_rank")
COLUMNS += ("_difference", "_difference_low", "_difference_high", "_p", "_p_holm", "_test")
COLUMNS += ("_undefined",)
TOLD_FROM = 0.01  # share of undefined resamples, as in metrics.csv
ARROWS = {"high": " ↑", "low": " ↓", "": ""}


def comparison_table(contest: Contest) -> pd.DataFrame:
    study, task = contest.study, contest.task
    about = {
        "answerer": list(contest.answers),
        "reference": study.reference,
        "level": contest.level,
        "n": [len(a.table["id"].unique()) for a in contest.answers.values()],
        "folds": study.mil.split.number_of_folds,
        "seeds": [len(study.seeds(name)) for name in contest.answers],
        "training_minutes": [training_minutes(study, task, name) for name in contest.answers],
    }
    spreads = {name: contest.seed_spread(name) for name in contest.answers}
    metrics = [_metric_columns(contest, metric, spreads) for metric in contest.metrics]
    return pd.concat([pd.DataFrame(about), *metrics], axis=1)


def _metric_columns(
    contest: Contest, metric: str, spreads: dict[str, dict[str, float]]
) -> pd.DataFrame:
    rows = []
    for name, answered in contest.answers.items():
        interval = answered.interval(metric, contest.target)
        row = {"": answered.values[metric][0], "_low": interval.low, "_high": interval.high}
        row["_seed_sd"] = spreads[name].get(metric, math.nan)
        row["_undefined"] = contest.undefined(name, metric)
        rows.append(row | _difference_columns(contest, name, metric))
    table = pd.DataFrame(rows)
    table["_p_holm"] = holm(table["_p"])
    better = entry(metric).better
    ranks = table[""].rank(method="min", ascending=better == "low")
    table["_rank"] = (ranks if better else ranks * np.nan).astype("Int64")
    return table[list(COLUMNS)].add_prefix(metric)


def _difference_columns(contest: Contest, name: str, metric: str) -> dict[str, object]:
    reference = contest.study.reference
    found = Paired(math.nan, math.nan, math.nan, math.nan, "")
    if name != reference:
        found = contest.paired(name, reference, metric=metric)
    return {
        "_difference": found.difference,
        "_difference_low": found.low,
        "_difference_high": found.high,
        "_p": found.p,
        "_test": found.test,
    }


def training_minutes(study: StudyConfig, task: str, answerer: str) -> float:
    """Mean over the members of the minutes that all their epochs took; NaN where none are told."""
    if answerer in BASELINES:
        return math.nan
    minutes = []
    for fold in range(study.mil.split.number_of_folds):
        for seed in study.seeds(answerer):
            path = study.member_dir(task, answerer, fold, seed) / "history.csv"
            history = pd.read_csv(path) if path.is_file() else pd.DataFrame()
            if "seconds" not in history:
                return math.nan
            minutes.append(history["seconds"].sum() / 60)
    return float(np.mean(minutes))


def as_markdown(table: pd.DataFrame, contest: Contest) -> str:
    """The table in two panels, for a page is not wide enough: metrics, then differences."""
    reference = contest.study.reference
    names = [_named(m, contest.target) for m in contest.metrics]
    timed = bool(table["training_minutes"].notna().any())
    head = ["", "folds × seeds", *["minutes a model"] * timed, *names, "ranks"]
    lines = []
    for row in table.to_dict("records"):
        asked = [row["answerer"], f"{row['folds']} × {row['seeds']}"]
        asked += [_minutes(row["training_minutes"])] * timed
        ranks = [row[f"{m}_rank"] for m in contest.metrics]
        cells = [_estimate(row, m) for m in contest.metrics]
        lines.append([*asked, *cells, ", ".join("–" if pd.isna(r) else str(r) for r in ranks)])
    text = _pipes([head, *lines])
    rivals = [row for row in table.to_dict("records") if row["answerer"] != reference]
    if rivals:
        lines = [[r["answerer"], *(_difference(r, m) for m in contest.metrics)] for r in rivals]
        text += "\n" + _pipes([[f"minus {reference}", *names], *lines])
    return f"**{contest.task}**\n\n{text}\n{_note(table, contest)}\n"


def _note(table: pd.DataFrame, contest: Contest) -> str:
    """What a reader must know to understand the two panels."""
    count, folds = table["n"].iloc[0], table["folds"].iloc[0]
    text = (
        f"Test parts of {folds} folds, {count} {contest.level}s. In brackets 95 % intervals "
        f"({contest.study.mil.bootstrap} bootstrap resamples of patients); bold is best."
    )
    if (table["seeds"] > 1).any():
        text += (
            " The models of a fold's seeds answer together; ± is the standard deviation over seeds "
            "of what one seed's models reach alone."
        )
    if len(table) > 1:
        text += (
            f" Differences to {contest.study.reference} are of the same {contest.level}s, with "
            f"paired intervals; p after Holm's correction over the {len(table) - 1} difference(s) "
            "of a metric."
        )
    return text + _undefined_note(table, contest) + _left_out_note(contest)


def _undefined_note(table: pd.DataFrame, contest: Contest) -> str:
    """Of metrics that are undefined in more than one of a hundred resamples."""
    shares = {m: table[f"{m}_undefined"].max() for m in contest.metrics}
    told = [f"{entry(m).name} in {s:.0%}" for m, s in shares.items() if s > TOLD_FROM]
    if not told:
        return ""
    return f" Undefined in some resamples, which do not count: {', '.join(told)} at most."


def _left_out_note(contest: Contest) -> str:
    """The labels that a mean over labels is not of; the same for all, who are asked the same."""
    if not isinstance(contest.target, MultilabelConfig):
        return ""
    table = next(iter(contest.answers.values())).table
    metrics = metrics_for(table, contest.target)
    notes = {m: left_out_note(m, metrics, table, contest.target) for m in contest.metrics}
    told = [f"{entry(m).name} {note}" for m, note in notes.items() if note]
    return f" Means over labels: {'; '.join(told)}." if told else ""


def _named(metric: str, target: TaskConfig) -> str:
    """`mean absolute error, points ↓`"""
    known, unit = entry(metric), ""
    if isinstance(target, RegressionConfig) and metric in IN_UNIT and target.unit is not None:
        unit = f", {target.unit}"
    return f"{known.name}{unit}{ARROWS[known.better]}"


def _estimate(row: dict, metric: str) -> str:
    """`**0.912 (0.850–0.960) ± 0.010**`"""
    value, spread = row[metric], row[f"{metric}_seed_sd"]
    if math.isnan(value):
        return "undefined"
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    text = number_text(value)
    text += "" if math.isnan(low) or math.isnan(high) else f" ({range_text(low, high)})"
    text += "" if math.isnan(spread) else f" ± {number_text(spread)}"
    best = pd.notna(row[f"{metric}_rank"]) and row[f"{metric}_rank"] == 1
    return f"**{text}**" if best else text


def _difference(row: dict, metric: str) -> str:
    """`+0.031 (−0.012 to +0.074), p = 0.12`"""
    value, low, high = (row[f"{metric}_difference{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "undefined"
    interval = f"{signed_text(low)} to {signed_text(high)}"
    return f"{signed_text(value)} ({interval}), {p_text(row[f'{metric}_p_holm'])}"


def _minutes(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _pipes(rows: list[list[str]]) -> str:
    """A Markdown table whose columns stand one below the other in a terminal, too."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    rule = ["-" * width for width in widths]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))
