"""The command line: one subcommand a stage, each a thin wrapper over a function.

Heavy imports happen inside the subcommands, so that --help answers at once. Exit codes: 0 all went
well; 1 something failed, named on standard error; 2 configuration or command cannot be meant.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mil.config import StudyConfig, load_study
from preprocessing.errors import ConfigError, HistomilError

Command = Callable[[StudyConfig, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        if parsed.command is list_encoders:
            return list_encoders()
        return parsed.command(load_study(parsed.config), parsed)
    except ConfigError as error:
        print(f"histomil: {error}", file=sys.stderr)
        return 2
    except HistomilError as error:
        print(f"histomil: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="histomil",
        description="From slides and labels to attention-MIL models, metrics and heatmaps. "
        "Snakemake runs all stages in order: snakemake --configfile study.yaml",
    )
    stages = parser.add_subparsers(title="stages", required=True, metavar="STAGE")

    def stage(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        sub = stages.add_parser(name, help=summary, description=summary)
        sub.add_argument("--config", type=Path, required=True, help="the study's YAML")
        sub.set_defaults(command=command)
        return sub

    stage("synthesize", synthesize, "make the synthetic demo cohort")
    extract_parser = stage("extract", extract, "slides -> tissue -> tiles -> features (zarr)")
    extract_parser.add_argument("--shard", type=int, help="only this block of the manifest's rows")
    stage("status", status, "table of extracted and failed slides")
    _with_task(stage("split", split, "patient-level folds of a task"))
    train_parser = _with_method(stage("train", train, "train a method on one fold, or on all"))
    train_parser.add_argument("--fold", type=int, help="only this fold")
    _with_method(stage("evaluate", evaluate, "test predictions -> metrics with intervals"))
    heatmap_parser = stage("heatmap", heatmap, "attention and evidence maps of every slide")
    heatmap_parser.add_argument("--task")
    heatmap_parser.add_argument("--method")
    heatmap_parser.add_argument("--apply", metavar="NAME", help="a checkpoint named in mil.apply")
    stage("report", report, "one page with all tables, figures and heatmaps")
    stage("check", check, "exit with 1, naming them, if any slide failed")
    listing = stages.add_parser("encoders", help="known encoders, their licence and gating")
    listing.set_defaults(command=list_encoders)
    return parser


def _with_task(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--task", required=True, help="a key of mil.tasks")
    return parser


def _with_method(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    _with_task(parser).add_argument("--method", required=True, help="a key of mil.methods")
    return parser


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
    cohort = split_task(study, parsed.task)
    for reason, ids in cohort.report.items():
        print(f"{parsed.task}: {len(ids)} {reason}: {', '.join(map(str, ids))}", file=sys.stderr)
    patients = cohort.slides["patient_id"].nunique()
    path = splits_path(study, parsed.task)
    print(f"{parsed.task}: {len(cohort.slides)} slides of {patients} patients in {path}")
    return 0


def train(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.data import splits_path
    from mil.experiment import run_fold
    from mil.records import recorded

    _known_pair(study, parsed)
    folds = study.mil.split.folds
    chosen = range(folds) if parsed.fold is None else [_index(parsed.fold, folds, "fold")]
    inputs = {"splits": splits_path(study, parsed.task)}
    for fold in chosen:
        record = study.fold_dir(parsed.task, parsed.method, fold) / "record.json"
        with recorded(record, "train", study, inputs):
            run_fold(study, parsed.task, parsed.method, fold)
        print(f"{parsed.task}, {parsed.method}, fold {fold}: {record.parent}")
    return 0


def evaluate(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.evaluate import evaluate_method, evaluation_dir
    from mil.records import recorded

    _known_pair(study, parsed)
    folder = evaluation_dir(study, parsed.task, parsed.method)
    inputs = {
        f"fold{k}": study.fold_dir(parsed.task, parsed.method, k) / "predictions.csv"
        for k in range(study.mil.split.folds)
    }
    with recorded(folder / "record.json", "evaluate", study, inputs):
        metrics = evaluate_method(study, parsed.task, parsed.method)
    pooled = metrics[metrics["fold"] == "all"].drop(columns="fold")
    print(pooled.to_string(index=False, float_format="%.3f"))
    return 0


def heatmap(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.paint import paint_method, paint_with

    if parsed.apply is not None:
        _known(parsed.apply, study.mil.apply, "apply")
        paint_with(study, parsed.apply)
        return 0
    if parsed.task is None or parsed.method is None:
        raise ConfigError("give --task and --method, or --apply with a name of mil.apply")
    _known_pair(study, parsed)
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


def list_encoders() -> int:
    from preprocessing.encoders.registry import REGISTRY

    for spec in REGISTRY.values():
        gate = "gated" if spec.gated else "open"
        print(f"{spec.name:16} {spec.dim:5} dims  {spec.input_px} px  {gate:6} {spec.licence}")
    return 0


def _known(name: str, known: dict, kind: str) -> None:
    if name not in known:
        raise ConfigError(f"{kind} {name!r} is not configured; known are {sorted(known)}")


def _known_pair(study: StudyConfig, parsed: argparse.Namespace) -> None:
    _known(parsed.task, study.mil.tasks, "task")
    _known(parsed.method, study.mil.methods, "method")


def _index(value: int, count: int, kind: str) -> int:
    if not 0 <= value < count:
        raise ConfigError(f"{kind} {value} does not exist: there are {count}, counted from 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
