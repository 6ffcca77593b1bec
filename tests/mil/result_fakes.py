"""Tables as an evaluation leaves them, of made-up patients, for tests of figures and report."""

import json
from itertools import combinations

import numpy as np
import pandas as pd

from mil.config import StudyConfig, validate_study
from mil.data import cohort_path
from mil.evaluation.compare import comparison_path
from mil.evaluation.held_out import evaluation_dir
from mil.predictions import write_csv
from mil.seals import enter
from mil.tasks.config import SurvivalTarget
from preprocessing.process_list import write_process_list
from preprocessing.status import SlideStatus


def class_rows(
    classes: tuple[str, ...] = ("benign", "tumour"),
    *,
    patients: int = 120,
    folds: int = 4,
    repeats: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Test predictions; every third patient has two slides; uncalibrated ones are too sure."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(len(classes), size=patients)
    parts = []
    for repeat in range(repeats):
        logits = 0.9 * rng.normal(size=(patients, len(classes)))
        logits[np.arange(patients), truth] += 1.3
        fold = rng.permutation(np.arange(patients) % folds)
        base = pd.DataFrame({"repeat": repeat, "fold": repeat * folds + fold})
        base["patient_id"] = [f"p{i:03}" for i in range(patients)]
        base["y"] = np.array(classes)[truth]
        for level, copies in (("slide", 2), ("patient", 1)):
            for copy in range(copies):
                mine = base.index % 3 == 0 if copy else np.full(patients, True)
                noisy = logits + (level == "slide") * 0.4 * rng.normal(size=logits.shape)
                table = base.assign(level=level, id=base["patient_id"] + f"-{copy}" * (copies - 1))
                parts.append(_called(table, noisy, classes)[mine])
    return pd.concat(parts, ignore_index=True)


def _called(table: pd.DataFrame, logits: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    for prefix, temperature in (("prob_", 0.65), ("uncalibrated_", 0.25)):
        odds = np.exp(logits / temperature)
        for i, name in enumerate(classes):
            table[prefix + name] = odds[:, i] / odds.sum(axis=1)
    called = np.array(classes)[logits.argmax(axis=1)]
    table["threshold"] = np.nan
    if len(classes) == 2:
        table["threshold"] = 0.42 + 0.04 * (table["fold"] % 4)
        above = table[f"prob_{classes[1]}"] >= table["threshold"]
        called = np.where(above, classes[1], classes[0])
    return table.assign(predicted=called, conformal_set=called, abstain=False)


def by_fold(metric, truth: pd.Series, score: pd.Series, table: pd.DataFrame) -> float:
    """Mean of a metric of sklearn over the folds, weighted by their pairs of the two classes."""
    rows = list(table.groupby("fold").groups.values())
    pairs = [truth[r].sum() * (~truth[r]).sum() for r in rows]
    return float(np.average([metric(truth[r], score[r]) for r in rows], weights=pairs))


def survival_rows(
    *, patients: int = 160, folds: int = 4, repeats: int = 1, seed: int = 0
) -> pd.DataFrame:
    """Exponential times of mean 24 at average risk, about half of them censored."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=patients)
    time = rng.exponential(24 * np.exp(-truth))
    censoring = rng.uniform(3, 60, size=patients)
    parts = []
    for repeat in range(repeats):
        risk = truth + 0.7 * rng.normal(size=patients)
        fold = rng.permutation(np.arange(patients) % folds)
        base = pd.DataFrame({"repeat": repeat, "fold": repeat * folds + fold})
        base["patient_id"] = [f"p{i:03}" for i in range(patients)]
        base["months"] = np.round(np.minimum(time, censoring), 2) + 0.01
        base["died"] = (time <= censoring).astype(int)
        base["risk"] = base["risk_sd"] = risk
        base["risk_cut"] = 0.0
        base["risk_group"] = np.where(risk > 0, "high", "low")
        for j, month in enumerate((6, 12, 24)):
            base[f"survival_{j:02}"] = np.exp(-month / 24 * np.exp(risk))
        parts += [base.assign(level=level, id=base["patient_id"]) for level in ("slide", "patient")]
    return pd.concat(parts, ignore_index=True)


def study_of(
    folder, *, methods=("abmil", "acmil"), covariates=("age", "stage"), apply=None, **split
):
    """A study of a binary, a three-class and a survival question."""
    tasks = {
        "tumour": {"target": {"label": "y", "classes": ["benign", "tumour"]}},
        "grade": {"target": {"label": "y", "classes": ["I", "II", "III"], "ordered": True}},
        "overall_survival": {
            "bag": "patient",
            "covariates": list(covariates),
            "target": {"name": "survival", "time": "months", "event": "died"},
        },
    }
    for task in ("tumour", "grade"):
        tasks[task]["target"]["name"] = "classification"
    values = {
        "output": str(folder),
        "preprocessing": {"manifest": "slides.csv", "grid": {"mpp": 0.5}},
        "mil": {
            "labels": "labels.csv",
            "tasks": tasks,
            "methods": {name: {"name": name} for name in methods},
            "split": {"folds": 4, **split},
            "apply": apply or {},
        },
    }
    return validate_study(values, source="fake results")


CLASS_METRICS = ("auroc", "auprc", "accuracy", "balanced_accuracy", "macro_f1", "sensitivity")
CLASS_METRICS += ("specificity", "brier", "ece", "brier_uncalibrated", "ece_uncalibrated")
CLASS_METRICS += ("conformal_coverage", "conformal_set_size", "abstained")
SURVIVAL_METRICS = ("c_index", "uno_c", "td_auc_1", "brier_1", "td_auc_2", "brier_2", "ibs")
SURVIVAL_METRICS += ("ibs_skill",)
NOTES = {"td_auc_1": "at 12 (months)", "brier_1": "at 12 (months)"}
NOTES |= {"td_auc_2": "at 24 (months)", "brier_2": "at 24 (months)"}


def write_tables(study: StudyConfig) -> None:
    """All tables of all tasks and answerers, but no figures and no heatmaps."""
    statuses = [SlideStatus(f"p{i:03}-0", "done", 900, 1.0) for i in range(120)]
    write_process_list(statuses, study.features_dir)
    for task, section in study.mil.tasks.items():
        survival = isinstance(section.target, SurvivalTarget)
        answerers = study.answerers(task)
        for number, answerer in enumerate(answerers):
            folder = evaluation_dir(study, task, answerer)
            levels = ("patient",) if survival else ("slide", "patient")
            names = SURVIVAL_METRICS if survival else CLASS_METRICS
            write_csv(metric_rows(names, levels, seed=number), folder / "metrics.csv")
            if survival:
                write_csv(hazard_rows(), folder / "hazard_ratios.csv")
            for settings in ("s1", "s2") if answerer == "acmil" else ("s1",):
                enter(study, {"task": task, "answerer": answerer, "settings": settings})
        metrics = ("c_index", "ibs") if survival else ("auroc", "brier")
        write_csv(comparison_rows(answerers, metrics), comparison_path(study, task))
        _write_cohort(study, task)


def metric_rows(names: tuple[str, ...], levels: tuple[str, ...], *, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for level in levels:
        for name in names:
            value = 0.7 + 0.1 * rng.random()
            whole = {"level": level, "metric": name, "patients": 120}
            whole["n"] = 150 if level == "slide" else 120
            bounds = {"low": value - 0.06, "high": value + 0.05, "note": NOTES.get(name, "")}
            rows.append(whole | {"fold": "all", "value": value} | bounds)
            part = whole | {"n": 30, "patients": 30}
            rows += [part | {"fold": str(k), "value": value + 0.01 * k} for k in range(4)]
    return pd.DataFrame(rows)


def comparison_rows(answerers: list[str], metrics: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for metric in metrics:
        for i, (a, b) in enumerate(combinations(answerers, 2)):
            row = {"answerer_a": a, "answerer_b": b, "metric": metric}
            row |= {"difference": 0.031 - 0.02 * i, "low": -0.012, "high": 0.074}
            p = 0.0004 * 10**i if i < 3 else 0.9
            row |= {"p": p, "p_holm": min(3 * p, 1), "test": "paired bootstrap"}
            rows.append(row)
    columns = ["answerer_a", "answerer_b", "metric", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "p", "p_holm", "test"])


def hazard_rows() -> pd.DataFrame:
    rows = []
    for exposure in ("risk, per SD", "high against low"):
        for model, terms in (("alone", [exposure]), ("adjusted", [exposure, "age", "stage: III"])):
            for term in terms:
                row = {"exposure": exposure, "model": model, "term": term, "hr": 2.07}
                row |= {"low": 1.61, "high": 2.68, "p": 2e-8, "ph_p": 0.41, "n": 118}
                rows.append(row | {"events": 77, "note": "2 patient(s) left out"})
    return pd.DataFrame(rows)


def _write_cohort(study: StudyConfig, task: str) -> None:
    facts = {
        "lines": ["150 slides of 120 patients", "tumour: 70 patients; benign: 50 patients"],
        "report": {"slides without a label": ["p900-0", "p901-0"]},
    }
    path = cohort_path(study, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
