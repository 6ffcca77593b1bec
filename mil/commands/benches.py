"""How fast this machine is, beside its limits."""

import argparse
import json
from typing import Any

from preprocessing.errors import ConfigError


def bench(parsed: argparse.Namespace) -> int:
    """A table, or with `--json` one object; nothing else on standard output."""
    if parsed.repeats < 1:
        raise ConfigError(f"--repeats: expected 1 or more, got {parsed.repeats}")
    record, table = BENCHES[parsed.what](parsed)
    print(json.dumps(record) if parsed.json else table)
    return 0


Result = tuple[dict[str, Any], str]


def _reader(parsed: argparse.Namespace) -> Result:
    from preprocessing.bench.reader import as_record, as_table, bench_reader

    found = bench_reader(parsed.slide, parsed.mpp, parsed.repeats)
    return as_record(found), as_table(found)


def _store(parsed: argparse.Namespace) -> Result:
    from preprocessing.bench.store import as_record, as_table, bench_store

    found = bench_store(repeats=parsed.repeats)
    return as_record(found), as_table(found)


def _encode(parsed: argparse.Namespace) -> Result:
    from preprocessing.bench.encode import as_record, as_table, bench_encode

    found = bench_encode(
        parsed.slides,
        parsed.encoder,
        device=parsed.device,
        mpp=parsed.mpp,
        repeats=parsed.repeats,
    )
    return as_record(found), as_table(found)


def _train(parsed: argparse.Namespace) -> Result:
    from mil.bench.train import as_record, as_table, bench_training

    found = bench_training(device=parsed.device, repeats=parsed.repeats)
    return as_record(found), as_table(found)


BENCHES = {"reader": _reader, "store": _store, "encode": _encode, "train": _train}
