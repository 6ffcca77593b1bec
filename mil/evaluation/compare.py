"""The comparison of all answerers of a task: every pair, and one table with a row an answerer."""

from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from mil.config import StudyConfig
from mil.evaluation.comparison_table import as_markdown, comparison_table
from mil.evaluation.contest import Contest
from mil.metrics.resampling import holm
from mil.predictions import write_csv
from preprocessing.artefacts import whole_file


def comparison_path(study: StudyConfig, task: str) -> Path:
    """All pairs."""
    return study.output / "evaluation" / task / "comparison.csv"


def table_path(study: StudyConfig, task: str) -> Path:
    """One row an answerer; beside it the same as Markdown, for a paper."""
    return comparison_path(study, task).with_name("comparison_table.csv")


def compare_answerers(study: StudyConfig, task: str) -> pd.DataFrame:
    """Writes comparison.csv, comparison_table.csv and comparison_table.md; returns all pairs."""
    contest = Contest.read(study, task)
    pairs, table = _all_pairs(contest), comparison_table(contest)
    write_csv(table, table_path(study, task))
    with whole_file(table_path(study, task).with_suffix(".md")) as partial:
        partial.write_text(as_markdown(table, contest), encoding="utf-8")
    write_csv(pairs, comparison_path(study, task))
    return pairs


def _all_pairs(contest: Contest) -> pd.DataFrame:
    """Differences a - b; Holm's correction over the pairs of a metric."""
    rows = []
    for metric in contest.paired_metrics:
        pairs = [
            {"answerer_a": a, "answerer_b": b, "metric": metric}
            | asdict(contest.paired(a, b, metric=metric))
            for a, b in combinations(contest.answers, 2)
        ]
        adjusted = holm(np.array([pair["p"] for pair in pairs]))
        rows += [pair | {"p_holm": p} for pair, p in zip(pairs, adjusted, strict=True)]
    columns = ["answerer_a", "answerer_b", "metric", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "p", "p_holm", "test"])
