"""From slides to feature stores."""

import argparse
import sys

from mil.commands.keys import index
from mil.config import StudyConfig
from preprocessing.errors import ConfigError


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
    from preprocessing.extraction.encode import encode_shard
    from preprocessing.manifest import read_manifest
    from preprocessing.plan import plan_shards, shards_of
    from preprocessing.process_list import shard_path
    from preprocessing.status import write_status

    rows = read_manifest(study.preprocessing.manifest)
    plans = plan_shards(study.preprocessing)
    shards = shards_of(rows, study.preprocessing.shard_size)
    chosen = (
        range(len(shards)) if parsed.shard is None else [index(parsed.shard, len(shards), "shard")]
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
    """Also brings the previews up to date with the limits of quality."""
    from preprocessing.extraction.preview import renew_previews
    from preprocessing.process_list import collect_statuses, write_process_list

    statuses = collect_statuses(study.features_dir, study.preprocessing)
    done = [slide.slide_id for slide in statuses if slide.status != "failed"]
    path = write_process_list(statuses, study.features_dir)
    renewed = renew_previews(study.features_dir, done, study.preprocessing.quality)
    if renewed:
        print(f"{renewed} preview(s) drawn again, with these limits of quality")
    failed = len(statuses) - len(done)
    print(f"{len(statuses) - failed} slide(s) with features, {failed} failed: see {path}")
    return 0


def inspect_slides(parsed: argparse.Namespace) -> int:
    from preprocessing.inspection.archive import run_inspect

    return run_inspect(
        parsed.paths,
        json=parsed.json,
        csv=parsed.csv,
        manifest=parsed.manifest,
        patient_is_slide=parsed.patient_is_slide,
    )
