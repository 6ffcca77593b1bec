"""From feature stores to models, metrics and heatmaps."""

import argparse
from typing import TYPE_CHECKING

from mil.commands.keys import index, known
from mil.config import StudyConfig
from preprocessing.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


def split(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.data import splits_path
    from mil.experiment import split_task

    known(parsed.task, study.mil.tasks, "task")
    for line in split_task(study, parsed.task):
        print(f"{parsed.task}: {line}")
    print(f"{parsed.task}: folds in {splits_path(study, parsed.task)}")
    return 0


def train(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.data import splits_path
    from mil.experiment import run_member
    from mil.records import recorded

    _known_pair(study, parsed)
    folds, seeds = study.mil.split.number_of_folds, study.seeds(parsed.method)
    if parsed.seed is not None and parsed.seed not in seeds:
        raise ConfigError(f"seed {parsed.seed} is not configured; {parsed.method} has {[*seeds]}")
    inputs = {"splits": splits_path(study, parsed.task)}
    for fold in range(folds) if parsed.fold is None else [index(parsed.fold, folds, "fold")]:
        for seed in seeds if parsed.seed is None else [parsed.seed]:
            folder = study.member_dir(parsed.task, parsed.method, fold, seed)
            with recorded(folder / "record.json", "train", study, inputs):
                run_member(study, parsed.task, parsed.method, fold=fold, seed=seed)
            print(f"{parsed.task}, {parsed.method}, fold {fold}, seed {seed}: {folder}")
    return 0


def evaluate(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.evaluation.evaluate import evaluate_answerer
    from mil.evaluation.held_out import evaluation_dir
    from mil.records import recorded

    _known_pair(study, parsed)
    folder = evaluation_dir(study, parsed.task, parsed.method)
    inputs = {
        f"fold{k}, seed{s}": study.member_dir(parsed.task, parsed.method, k, s) / "predictions.csv"
        for k in range(study.mil.split.number_of_folds)
        for s in study.seeds(parsed.method)
    }
    with recorded(folder / "record.json", "evaluate", study, inputs):
        metrics = evaluate_answerer(study, parsed.task, parsed.method)
    _print_metrics(metrics)
    return 0


def compare_task(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.evaluation.compare import compare_answerers

    known(parsed.task, study.mil.tasks, "task")
    compare_answerers(study, parsed.task)
    _print_table(study, parsed.task)
    return 0


def compare(study: StudyConfig, parsed: argparse.Namespace) -> int:
    """Snakemake's exit code; tables are shown only where all went well, and so none is old."""
    from mil.evaluation.compare import table_path
    from mil.workflow import run_workflow

    if parsed.task is not None:
        known(parsed.task, study.mil.tasks, "task")
    tasks = [*study.mil.tasks] if parsed.task is None else [parsed.task]
    if not tasks:
        raise ConfigError(f"{parsed.config}: mil.tasks is empty, there is nothing to compare")
    tables = [table_path(study, task) for task in tasks]
    targets = [path for table in tables for path in (table, table.with_suffix(".md"))]
    code = run_workflow(parsed.config, targets, cores=parsed.cores, dry_run=parsed.dry_run)
    for task in tasks if code == 0 and not parsed.dry_run else []:
        _print_table(study, task)
    return code


def _print_table(study: StudyConfig, task: str) -> None:
    from mil.evaluation.compare import table_path

    print(table_path(study, task).with_suffix(".md").read_text(encoding="utf-8"))


def predict(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.checkpoint import ensemble_paths
    from mil.ensemble import applied_dir, predict_cohort
    from mil.evaluation.evaluate import evaluate_applied
    from mil.records import recorded

    known(parsed.apply, study.mil.apply, "apply")
    folder = applied_dir(study, parsed.apply)
    models = ensemble_paths(study.mil.apply[parsed.apply])
    inputs = {f"model{i}": path for i, path in enumerate(models)}
    with recorded(folder / "record.json", "predict", study, inputs):
        table = predict_cohort(study, parsed.apply)
        metrics = evaluate_applied(study, parsed.apply)
    print(
        f"{len(models)} model(s) answered for {(table['level'] == 'slide').sum()} slides of "
        f"{table['patient_id'].nunique()} patients: {folder / 'predictions.csv'}"
    )
    if metrics is not None:
        _print_metrics(metrics)
    return 0


def heatmap(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.paint import paint_method, paint_with

    if parsed.apply is not None:
        if parsed.task is not None or parsed.method is not None:
            raise ConfigError("--apply names models with their task: leave --task and --method out")
        known(parsed.apply, study.mil.apply, "apply")
        paint_with(study, parsed.apply)
        return 0
    if parsed.task is None or parsed.method is None:
        raise ConfigError("give --task and --method, or --apply with a name of mil.apply")
    known(parsed.task, study.mil.tasks, "task")
    known(parsed.method, study.mil.methods, "method")
    paint_method(study, parsed.task, parsed.method)
    return 0


def report(study: StudyConfig, _: argparse.Namespace) -> int:
    from mil.report import write_report

    print(f"report: {write_report(study)}")
    return 0


def _print_metrics(metrics: "pd.DataFrame") -> None:
    pooled = metrics[metrics["fold"] == "all"].drop(columns="fold")
    print(pooled.to_string(index=False, float_format="%.3f", na_rep=""))


def _known_pair(study: StudyConfig, parsed: argparse.Namespace) -> None:
    known(parsed.task, study.mil.tasks, "task")
    known(parsed.method, dict.fromkeys(study.answerers(parsed.task)), "method")
