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
    check = stage("check", "exit with 1 if a slide failed or a feature store is not whole")
    check.add_argument("--deep", action="store_true", help="read everything, compare checksums")
    _with_encoder(stage("pack", "one flat file of all features, which training streams from"))
    _add_import(stage("import", "feature stores from another tool's files"))
    _add_export(stage("export", "feature stores -> another tool's files"))
    _add_inspect(stages)
    for name, summary in (
        ("encoders", "known encoders, their licence and gating"),
        ("presets", "known layouts of label tables, for mil.labels.preset"),
    ):
        stages.add_parser(name, help=summary, description=summary)
    summary = "known MIL methods, or the keys, defaults and presets of one"
    methods = stages.add_parser("methods", help=summary, description=summary)
    methods.add_argument("name", nargs="?", help="a method")
    summary = "how fast this machine reads, stores, encodes and trains, beside the limits"
    _add_benches(stages.add_parser("bench", help=summary, description=summary))
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Features of the manifest's slides, under encoder.name. Facts come from the slide where it "
        "is at hand, from the manifest and from the files; what they lack must be given here."
    )
    _with_format(parser)
    parser.add_argument("--source", type=Path, required=True, metavar="FOLDER")
    facts = parser.add_argument_group("facts that neither slides nor files state")
    facts.add_argument("--mpp", type=float, help="um per level-0 pixel, of slides without one")
    facts.add_argument("--tile-px", type=int, help="side of a tile as the encoder saw it")
    facts.add_argument("--tile-mpp", type=float, help="um per pixel of such a tile")
    facts.add_argument("--tile-px0", type=float, help="side of a tile in level-0 pixels")
    facts.add_argument("--level0-size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    facts.add_argument("--coords-unit", choices=["px0", "um", "stamp-v1"])
    facts.add_argument("--coords-dir", type=Path, help="CLAM's folder of patch coordinates")
    facts.add_argument("--their-encoder", metavar="NAME", help="the encoder's name in the files")
    facts.add_argument("--grid", help="which grid of a raw2features store")
    facts.add_argument(
        "--weight-digest",
        help="SHA-256 of the weights, so that imports from several tools can be mixed",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    _with_encoder(_with_format(parser))
    parser.add_argument("--target", type=Path, required=True, metavar="FOLDER")


def _with_format(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    tools = ["clam", "trident", "stamp", "wsidata", "raw2features"]
    parser.add_argument("--format", choices=tools, required=True)
    return parser


def _with_encoder(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--encoder", metavar="NAME", help="default: encoder.name")
    return parser


def _add_inspect(stages: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "what slides are, at which resolution, and why some cannot be read"
    parser = stages.add_parser("inspect", help=summary, description=summary)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="slides, folders, or a slides.csv"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the whole table")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="write a slides.csv of what can be read"
    )
    parser.add_argument(
        "--patient-is-slide", action="store_true", help="in it, every slide is its own patient"
    )


def _add_benches(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(title="benchmarks", required=True, metavar="WHAT", dest="what")

    def bench(name: str, summary: str, *, repeats: int) -> argparse.ArgumentParser:
        sub = benches.add_parser(name, help=summary, description=summary)
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
        sub.add_argument(
            "--repeats", type=int, default=repeats, help=f"turns of each side (default {repeats})"
        )
        return sub

    reader = bench("reader", "tiles: beside openslide, and beside mere JPEG decoding", repeats=3)
    reader.add_argument("--slide", type=Path, help="one of yours; else two are made")
    reader.add_argument("--mpp", type=float, help="um per level-0 pixel, if the slide has none")
    bench("store", "features of a slide: beside numpy's files and CLAM's", repeats=9)
    encode = bench("encode", "reading, encoding, and both together", repeats=3)
    encode.add_argument("--slides", type=Path, nargs="+", help="some of yours; else one is made")
    encode.add_argument("--mpp", type=float, default=0.5, help="of the tiles (default 0.5)")
    encode.add_argument("--encoder", default="lite0", help="as in encoder.name (default lite0)")
    _with_device(encode)
    train = bench("train", "ABMIL, ACMIL and MHIM: beside published loops and products", repeats=7)
    train.description = (
        "Training passes of abmil, acmil and mhim, in turn with the loops that the field publishes "
        "and with the bare matrix products; ratios are medians over turns. Some minutes on a CPU."
    )
    _with_device(train)


def _with_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


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
