"""What can be written on the command line; mil.cli does it."""

import argparse
from pathlib import Path

from mil.config import BASELINES


def build_parser() -> argparse.ArgumentParser:
    """Parses to a namespace with `stage`, and `config` of every stage but the listings."""
    parser = argparse.ArgumentParser(
        prog="histomil",
        description="From slides and labels to attention-MIL models, metrics and heatmaps. "
        "Snakemake runs all stages in order: snakemake --configfile study.yaml",
    )
    stages = parser.add_subparsers(title="stages", required=True, metavar="STAGE", dest="stage")

    def stage(name: str, summary: str) -> argparse.ArgumentParser:
        sub = stages.add_parser(name, help=summary, description=summary)
        sub.add_argument("--config", type=Path, required=True, help="the study's YAML")
        return sub

    stage("synthesize", "make the synthetic demo cohort")
    extract = stage("extract", "slides -> tissue -> tiles -> features (zarr)")
    extract.add_argument("--shard", type=int, help="only this block of the manifest's rows")
    stage("status", "table of extracted and failed slides")
    _with_task(stage("split", "patient-level folds of a task"))
    train = _with_method(stage("train", "train a method on one fold, or on all"))
    train.add_argument("--fold", type=int, help="only this fold")
    train.add_argument("--seed", type=int, help="only this seed")
    _with_method(stage("evaluate", "test predictions -> metrics with intervals"))
    _with_task(stage("compare-task", "tables of all answerers of a task, from their predictions"))
    _add_compare(stage("compare", "all methods x folds x seeds, whatever is missing -> one table"))
    predict = stage("predict", "answers of trained models for this archive")
    predict.add_argument(
        "--apply", metavar="NAME", required=True, help="trained models named in mil.apply"
    )
    heatmap = stage("heatmap", "attention and evidence maps of every slide")
    heatmap.add_argument("--task")
    heatmap.add_argument("--method")
    heatmap.add_argument("--apply", metavar="NAME", help="trained models named in mil.apply")
    stage("report", "one page with all tables, figures and heatmaps")
    stage("check", "exit with 1, naming them, if any slide failed")
    for name, summary in (
        ("encoders", "known encoders, their licence and gating"),
        ("presets", "known layouts of label tables, for mil.labels.preset"),
    ):
        stages.add_parser(name, help=summary, description=summary)
    summary = "known MIL methods, or the keys, defaults and presets of one"
    methods = stages.add_parser("methods", help=summary, description=summary)
    methods.add_argument("name", nargs="?", help="a method")
    _add_bench(stages.add_parser("bench", help="how fast this machine trains, beside its limit"))
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Training passes of abmil, acmil and mhim, in turn with the loops that the field publishes "
        "and with the bare matrix products; ratios are medians over turns. Some minutes on a CPU."
    )
    parser.add_argument("what", choices=["train"])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (default 7)")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs the workflow as far as the comparison tables: missing features, folds and models are "
        "made, finished ones are kept, a killed run goes on. Prints the tables when all is there."
    )
    parser.add_argument("--task", help="only this key of mil.tasks")
    parser.add_argument("--cores", type=int, default=1, help="jobs at a time (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be run")


def _with_task(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--task", required=True, help="a key of mil.tasks")
    return parser


def _with_method(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    who = f"a key of mil.methods, or a baseline ({', '.join(BASELINES)})"
    _with_task(parser).add_argument("--method", required=True, help=who)
    return parser
