"""One CSV that says how every slide fared, from what the shards say."""

import csv
from dataclasses import asdict, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from preprocessing.artefacts import whole_file
from preprocessing.config import PreprocessingConfig
from preprocessing.errors import ManifestError
from preprocessing.plan import plan_shards
from preprocessing.status import SlideStatus, read_status

_ROWS = TypeAdapter(list[SlideStatus])


def shard_path(features_dir: Path, shard: int) -> Path:
    return features_dir / "shards" / f"{shard}.json"


def process_list_path(features_dir: Path) -> Path:
    return features_dir / "process_list.csv"


def collect_statuses(features_dir: Path, config: PreprocessingConfig) -> list[SlideStatus]:
    """The status of every slide of the manifest; a shard of other settings than now is refused."""
    return [
        status
        for number, shard in enumerate(plan_shards(config))
        for status in read_status(shard_path(features_dir, number), settings=shard.settings)
    ]


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
        except (ValidationError, csv.Error) as error:
            raise ManifestError(
                f"{path} is not a process list, run status anew: {error}"
            ) from error
