"""How an archive is divided into jobs, known before any slide is opened or made."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from preprocessing.config import PreprocessingConfig
from preprocessing.manifest import SlideRow, read_manifest
from preprocessing.process_list import shards_of


@dataclass(frozen=True)
class Shard:
    """`files` that exist now, and a digest of all else that the shard's result depends on."""

    files: list[str]
    settings: str


def plan_shards(config: PreprocessingConfig) -> list[Shard]:
    """The shards of the manifest; of a synthetic cohort those that its manifest will have."""
    if config.synthetic is not None:
        from preprocessing.synthetic.plan import plan_cohort

        ids = [
            slide.slide_id for patient in plan_cohort(config.synthetic) for slide in patient.slides
        ]
        return [Shard([], _digest(config, part)) for part in shards_of(ids, config.shard_size)]
    rows = read_manifest(config.manifest)
    return [_shard(config, part) for part in shards_of(rows, config.shard_size)]


def _shard(config: PreprocessingConfig, rows: Sequence[SlideRow]) -> Shard:
    # A missing file must fail alone, inside the job, so it is no input of the job.
    files = [str(row.path) for row in rows if row.path.is_file()]
    described = [[row.slide_id, row.patient_id, str(row.path), row.mpp, row.extra] for row in rows]
    return Shard(files, _digest(config, described))


def _digest(config: PreprocessingConfig, rows: object) -> str:
    settings = config.model_dump(mode="json", exclude={"shard_size"})
    return hashlib.sha256(json.dumps([settings, rows], sort_keys=True).encode()).hexdigest()[:16]
