"""What there is to choose from, and how fast this machine is."""

import argparse
import json
import shutil


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
