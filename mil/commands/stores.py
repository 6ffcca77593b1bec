"""Feature stores themselves: are they whole, packed for training, from and for other tools."""

import argparse
import sys

from mil.config import StudyConfig


def check(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from preprocessing.check import check_archive
    from preprocessing.manifest import read_manifest

    slides = [row.slide_id for row in read_manifest(study.preprocessing.manifest)]
    lines, code = check_archive(study.features_dir, slides, deep=parsed.deep)
    for line in lines:
        print(f"histomil: {line}", file=sys.stderr)
    if code == 0:
        how = "checksums agree" if parsed.deep else "nothing is missing"
        print(f"{len(slides)} slide(s), every one done; {how}")
    return code


def pack(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.data import rows_with_features
    from preprocessing.stores.pack import pack_features, pack_path

    encoder = parsed.encoder or study.preprocessing.encoder.name
    slides = [row.slide_id for row in rows_with_features(study)]
    folder = pack_path(study.features_dir, encoder)
    limits = study.preprocessing.quality
    print(f"pack: {pack_features(study.features_dir, slides, encoder, limits, folder)}")
    return 0


def import_stores(study: StudyConfig, parsed: argparse.Namespace) -> int:
    """The slides of the manifest; afterwards the workflow takes their extraction as done."""
    from mil.records import recorded
    from preprocessing.interchange.base import GivenFacts
    from preprocessing.interchange.imports import import_features
    from preprocessing.manifest import read_manifest
    from preprocessing.plan import plan_shards, shards_of
    from preprocessing.process_list import shard_path, write_process_list
    from preprocessing.status import write_status

    config, features_dir = study.preprocessing, study.features_dir
    given = {name: getattr(parsed, name) for name in GivenFacts.__dataclass_fields__}
    given["level0_size"] = given["level0_size"] and tuple(given["level0_size"])
    rows = read_manifest(config.manifest)
    with recorded(features_dir / "import.record.json", "import", study):
        statuses = import_features(
            parsed.format,
            parsed.source,
            rows,
            features_dir,
            encoder=config.encoder.name,
            given=GivenFacts(**given),
        )
    plans = plan_shards(config)
    for shard, part in enumerate(shards_of(statuses, config.shard_size)):
        write_status(shard_path(features_dir, shard), part, settings=plans[shard].settings)
    failed = [slide for slide in statuses if slide.status == "failed"]
    for slide in failed:
        print(f"failed: {slide.error}", file=sys.stderr)
    path = write_process_list(statuses, features_dir)
    print(f"{len(rows) - len(failed)} slide(s) imported, {len(failed)} failed: see {path}")
    return 1 if failed else 0


def export_stores(study: StudyConfig, parsed: argparse.Namespace) -> int:
    from mil.data import rows_with_features
    from preprocessing.interchange.exports import export_features

    written = export_features(
        parsed.format,
        study.features_dir,
        [row.slide_id for row in rows_with_features(study)],
        parsed.encoder or study.preprocessing.encoder.name,
        parsed.target,
        limits=study.preprocessing.quality,
    )
    print(f"{len(written)} file(s) in {parsed.target}")
    return 0
