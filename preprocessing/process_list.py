"""The archive's slides in shards, and one CSV that says how every slide fared."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from preprocessing.artefacts import whole_file
from preprocessing.config import PreprocessingConfig
from preprocessing.errors import ManifestError
from preprocessing.manifest import read_manifest
from preprocessing.status import SlideStatus, read_status

Row = TypeVar("Row")
_ROWS = TypeAdapter(list[SlideStatus])


def shards_of(rows: Sequence[Row], shard_size: int) -> list[Sequence[Row]]:
    return [rows[i : i + shard_size] for i in range(0, len(rows), shard_size)]


def shard_path(features_dir: Path, shard: int) -> Path:
    return features_dir / "shards" / f"{shard}.json"


def process_list_path(features_dir: Path) -> Path:
    return features_dir / "process_list.csv"


def collect_statuses(features_dir: Path, config: PreprocessingConfig) -> list[SlideStatus]:
    """The status of every slide of the manifest; a slide that no shard has reached is refused."""
    ids = [row.slide_id for row in read_manifest(config.manifest)]
    count = len(shards_of(ids, config.shard_size))
    paths = [shard_path(features_dir, shard) for shard in range(count)]
    status_of = {s.slide_id: s for path in paths if path.exists() for s in read_status(path)}
    lacking = [slide_id for slide_id in ids if slide_id not in status_of]
    if lacking:
        raise ManifestError(
            f"{len(lacking)} slide(s) of {config.manifest} have not been extracted yet, the first "
            f"is {lacking[0]!r}; run extract"
        )
    return [status_of[slide_id] for slide_id in ids]


def write_process_list(statuses: list[SlideStatus], features_dir: Path) -> Path:
    path = process_list_path(features_dir)
    with whole_file(path) as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(SlideStatus)])
        writer.writeheader()
        writer.writerows(asdict(status) for status in statuses)
    return path


def read_process_list(features_dir: Path) -> list[SlideStatus]:
    path = process_list_path(features_dir)
    if not path.is_file():
        raise ManifestError(f"no process list at {path}: run extract, then status")
    with path.open(newline="") as stream:
        try:
            return _ROWS.validate_python(list(csv.DictReader(stream)))
        except ValidationError as error:
            raise ManifestError(
                f"{path} is not a process list, run status anew: {error}"
            ) from error
