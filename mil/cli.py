"""The command line: one subcommand a stage, each a thin wrapper over a function (mil.cli_parser).

Heavy imports happen inside the subcommands, so that --help answers at once. Exit codes: 0 all went
well; 1 something failed, named on standard error; 2 configuration or command cannot be meant.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mil.cli_parser import build_parser
from mil.config import StudyConfig, load_study
from preprocessing.errors import ConfigError, HistomilError

if TYPE_CHECKING:
    import pandas as pd

Command = Callable[[StudyConfig, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # it counts its threads aloud
    try:
        if parsed.stage in WITHOUT_STUDY:
            return WITHOUT_STUDY[parsed.stage](parsed)
        return STAGES[parsed.stage](load_study(parsed.config), parsed)
    except HistomilError as error:
        print(f"histomil: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def synthesize(study: StudyConfig, _: argparse.Namespace) -> int:
    from preprocessing.synthetic.cohort import make_cohort

    config = study.preprocessing.synthetic
    if config is None:
        raise ConfigError("preprocessing.synthetic is absent: there is no cohort to make")
    made = make_cohort(config, study.preprocessing.manifest.parent)
    print(f"synthetic slides and labels: {made.parent}")
    return 0


def extract(study: StudyConfig, parsed: argparse.Namespace) -> int:
    """A single shard with failed slides ends with 0: `check` tells, after the others are done."""
    from mil.records import recorded
    from preprocessing.encode import encode_shard
    from preprocessing.manifest import read_manifest
    from preprocessing.plan import plan_shards, shards_of
    from preprocessing.process_list import shard_path
    from preprocessing.status import write_status

    rows = read_manifest(study.preprocessing.manifest)
    plans = plan_shards(study.preprocessing)
    shards = shards_of(rows, study.preprocessing.shard_size)
    chosen = (
        range(len(shards)) if parsed.shard is None else [_index(parsed.shard, len(shards), "shard")]
    )
    failed = 0
    for shard in chosen:
        done = shard_path(study.features_dir, shard)
        done.unlink(missing_ok=True)  # from here on the shard is not done
        with recorded(done.with_suffix(".record.json"), "extract", study):
            statuses = encode_shard(shards[shard], study.preprocessing, study.features_dir)
        write_status(done, statuses, settings=plans[shard].settings)
        for slide in statuses:
            if slide.status == "failed":
                failed += 1
                print(f"failed: {slide.error}", file=sys.stderr)
    print(f"{sum(len(shards[s]) for s in chosen) - failed} slide(s) extracted, {failed} failed")
    return 1 if failed and parsed.shard is None else 0


def status(study: StudyConfig, _: argparse.Namespace) -> int:
    from preprocessing.process_list import collect_statuses, write_process_list

    statuses = collect_statuses(study.features_dir, study.preprocessing)
    path = write_process_list(statuses, study.features_dir)
    failed = sum(s.status == "failed" for s in statuses)
    print(f"{len(statuses) - failed} slide(s) with features, {failed} failed: see {path}")
    return 0


def split(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.data import splits_path
    from mil.experiment import split_task

    _known(parsed.task, study.mil.tasks, "task")
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
    for fold in range(folds) if parsed.fold is None else [_index(parsed.fold, folds, "fold")]:
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

    _known(parsed.task, study.mil.tasks, "task")
    compare_answerers(study, parsed.task)
    _print_table(study, parsed.task)
    return 0


def compare(study: StudyConfig, parsed: argparse.Namespace) -> int:
    """Snakemake's exit code; tables are shown only where all went well, and so none is old."""
    from mil.evaluation.compare import table_path
    from mil.workflow import run_workflow

    if parsed.task is not None:
        _known(parsed.task, study.mil.tasks, "task")
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

    _known(parsed.apply, study.mil.apply, "apply")
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
        _known(parsed.apply, study.mil.apply, "apply")
        paint_with(study, parsed.apply)
        return 0
    if parsed.task is None or parsed.method is None:
        raise ConfigError("give --task and --method, or --apply with a name of mil.apply")
    _known(parsed.task, study.mil.tasks, "task")
    _known(parsed.method, study.mil.methods, "method")
    paint_method(study, parsed.task, parsed.method)
    return 0


def report(study: StudyConfig, _: argparse.Namespace) -> int:
    from mil.report import write_report

    print(f"report: {write_report(study)}")
    return 0


def check(study: StudyConfig, _: argparse.Namespace) -> int:
    from preprocessing.process_list import read_process_list

    failed = [s for s in read_process_list(study.features_dir) if s.status == "failed"]
    for slide in failed:
        print(f"histomil: failed: {slide.error}", file=sys.stderr)
    if failed:
        print(
            f"histomil: {len(failed)} slide(s) failed, all others are done; correct them or take "
            "them out of the manifest, and run again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _print_metrics(metrics: "pd.DataFrame") -> None:
    pooled = metrics[metrics["fold"] == "all"].drop(columns="fold")
    print(pooled.to_string(index=False, float_format="%.3f", na_rep=""))


def list_encoders(_: argparse.Namespace) -> int:
    from preprocessing.encoders.registry import REGISTRY

    for spec in REGISTRY.values():
        gate = "gated" if spec.gated else "open"
        print(f"{spec.name:16} {spec.dim:5} dims  {spec.input_px} px  {gate:6} {spec.licence}")
    return 0


def list_presets(_: argparse.Namespace) -> int:
    from mil.cohorts.presets import preset_lines

    print("\n".join(preset_lines(shutil.get_terminal_size().columns)))
    return 0


def list_methods(parsed: argparse.Namespace) -> int:
    from mil.models.config import method_lines

    print("\n".join(method_lines(parsed.name)))
    return 0


def bench(parsed: argparse.Namespace) -> int:
    from mil.bench.train import as_record, as_table, bench_training

    measured = bench_training(device=parsed.device, repeats=parsed.repeats)
    print(json.dumps(as_record(measured)) if parsed.json else as_table(measured))
    return 0


def _known(name: str, known: dict, kind: str) -> None:
    if name not in known:
        raise ConfigError(f"{kind} {name!r} is not configured; known are {sorted(known)}")


def _known_pair(study: StudyConfig, parsed: argparse.Namespace) -> None:
    _known(parsed.task, study.mil.tasks, "task")
    _known(parsed.method, dict.fromkeys(study.answerers(parsed.task)), "method")


def _index(value: int, count: int, kind: str) -> int:
    if not 0 <= value < count:
        raise ConfigError(f"{kind} {value} does not exist: there are {count}, counted from 0")
    return value


STAGES: Mapping[str, Command] = {
    "synthesize": synthesize,
    "extract": extract,
    "status": status,
    "split": split,
    "train": train,
    "evaluate": evaluate,
    "compare-task": compare_task,
    "compare": compare,
    "predict": predict,
    "heatmap": heatmap,
    "report": report,
    "check": check,
}
WITHOUT_STUDY: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "encoders": list_encoders,
    "methods": list_methods,
    "presets": list_presets,
    "bench": bench,
}


if __name__ == "__main__":
    sys.exit(main())
