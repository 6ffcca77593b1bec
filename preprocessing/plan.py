"""How an archive is divided into jobs, known before any slide is opened or made."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from preprocessing.config import PreprocessingConfig
from preprocessing.errors import ConfigError
from preprocessing.manifest import SlideRow, read_manifest
from preprocessing.tissue.regions import region_files

Row = TypeVar("Row")
# Counts up when tissue, grid or reader code gives other tiles or pixels for the same settings.
EXTRACTION_VERSION = 4
_ABSENT = ["absent"]


@dataclass(frozen=True)
class Shard:
    """`files` that exist now, and a digest of all else that the shard's result depends on."""

    files: list[str]
    settings: str


def shards_of(rows: Sequence[Row], shard_size: int) -> list[Sequence[Row]]:
    return [rows[i : i + shard_size] for i in range(0, len(rows), shard_size)]


def plan_shards(config: PreprocessingConfig) -> list[Shard]:
    """The shards of the manifest; of a synthetic cohort those that its manifest will have."""
    if config.synthetic is not None:
        from preprocessing.synthetic.plan import plan_cohort

        _refuse_foreign_tables(config.manifest)
        ids = [
            slide.slide_id for patient in plan_cohort(config.synthetic) for slide in patient.slides
        ]
        return [Shard([], _digest(config, part)) for part in shards_of(ids, config.shard_size)]
    rows = read_manifest(config.manifest)
    return [_shard(config, part) for part in shards_of(rows, config.shard_size)]


def _refuse_foreign_tables(manifest: Path) -> None:
    """A workflow deletes a rule's outputs before it makes them: never a user's own tables."""
    if manifest.name != "slides.csv":
        raise ConfigError(f"manifest: a synthetic cohort's is called slides.csv, got {manifest}")
    tables = [manifest, manifest.with_name("labels.csv")]
    theirs = [path for path in tables if path.exists()]
    if theirs and not manifest.with_name("cohort.json").exists():
        raise ConfigError(
            f"{theirs[0]} exists and is no synthetic cohort's: remove `synthetic` from the "
            "configuration to use it, or name another folder"
        )


def _shard(config: PreprocessingConfig, rows: Sequence[SlideRow]) -> Shard:
    files: list[str] = []
    described: list[object] = []
    for row in rows:
        stamps = [_stamp(path) for path in (row.path, *region_files(row, config.tissue))]
        # A missing file must fail alone, inside the job, so it is no input of the job.
        files += [str(path) for path, *facts in stamps if facts != _ABSENT]
        described.append(
            [row.slide_id, row.patient_id, row.mpp, row.extra.get("mpp_force"), *stamps]
        )
    return Shard(files, _digest(config, described))


def _stamp(path: Path) -> list[object]:
    """Changes when a slide, its mask or regions are replaced, also by a copy of an old date."""
    try:
        status = path.stat()
    except OSError:  # absent, or out of reach
        return [str(path), *_ABSENT]
    facts = [status.st_size, status.st_mtime_ns] if S_ISREG(status.st_mode) else _ABSENT
    return [str(path), *facts]


def _digest(config: PreprocessingConfig, rows: object) -> str:
    speed = {
        "encoder": {"batch_size", "device", "compile"},
        "reading": {"cache_mb"},
        "readers": True,
        "shard_size": True,
    }
    later = {"quality": True}  # asked when features are used, not when they are made
    settings = config.model_dump(mode="json", exclude={**speed, **later, "manifest": True})
    return hashlib.sha256(
        json.dumps([EXTRACTION_VERSION, settings, rows], sort_keys=True).encode()
    ).hexdigest()[:16]
