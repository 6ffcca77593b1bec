"""Sealed test predictions of all folds -> metrics and figures. Nothing is fitted here."""

import json
from pathlib import Path

import pandas as pd

from mil.config import StudyConfig, TaskSection
from mil.ensemble import applied_dir
from mil.evaluation.hazard import hazard_ratios
from mil.evaluation.held_out import HeldOut, evaluation_dir, read_held_out
from mil.evaluation.metric_table import metric_rows
from mil.evaluation.survival_metrics import FoldFit, outcomes_of
from mil.figures.common import first_tests
from mil.figures.draw import draw_figures
from mil.predictions import read_predictions, write_csv
from mil.tasks.columns import answered
from mil.tasks.config import SurvivalTarget, TaskConfig
from preprocessing.artefacts import whole_file


def evaluate_answerer(study: StudyConfig, task: str, answerer: str) -> pd.DataFrame:
    """Writes predictions, what was fitted, hazard ratios, figures and metrics; returns metrics."""
    section = study.mil.tasks[task]
    target, folder = section.target, evaluation_dir(study, task, answerer)
    test = read_held_out(study, task, answerer)
    write_csv(test.table, folder / "predictions.csv")
    with whole_file(folder / "fitted.json") as partial:
        partial.write_text(json.dumps({"folds": test.fitted}, indent=1))
    if isinstance(target, SurvivalTarget):
        # The clinical baseline is made of the covariates: there is nothing to adjust it for.
        covariates = () if answerer == "clinical" else section.covariates
        ratios = hazard_ratios(first_tests(test.level("patient")), target, covariates)
        write_csv(ratios, folder / "hazard_ratios.csv")
    return _measure(study, test, target, folder, title=f"{task}, {answerer}")


def _measure(
    study: StudyConfig, test: HeldOut, target: TaskConfig, folder: Path, *, title: str
) -> pd.DataFrame:
    """Writes figures and metrics of the rows; the metrics last, they say that all is there."""
    rows = [metric_rows(test, level, target, study.mil.bootstrap) for level in test.levels(target)]
    metrics = pd.concat(rows, ignore_index=True)
    draw_figures(test.table, metrics, target, folder, fits=test.fits, title=title)
    write_csv(metrics, folder / "metrics.csv")
    return metrics


def evaluate_applied(study: StudyConfig, name: str) -> pd.DataFrame | None:
    """Metrics and figures of trained models on a cohort of their own, where it is labelled.

    Slides and patients without a label, or that a model was trained or validated on, are left out;
    None if nobody remains. Censoring weights are of this cohort itself: the models' training
    patients are not at hand.
    """
    folder = applied_dir(study, name)
    table = read_predictions(folder / "predictions.csv")
    about = json.loads((folder / "fitted.json").read_text())
    target = TaskSection.model_validate(about["section"]).target
    if not set(target.columns) <= set(table):
        return None
    labelled = answered(table, target.columns, target)
    known = table[labelled & ~table["seen"]].assign(fold=0, repeat=0)
    if known.empty:
        return None
    fits = {}
    if isinstance(target, SurvivalTarget):
        outcomes = outcomes_of(known[known["level"] == "patient"], target)
        fits[0] = FoldFit(outcomes, tuple(about["times"]), tuple(about["horizons"]))
    return _measure(study, HeldOut(known, fits, []), target, folder, title=name)
