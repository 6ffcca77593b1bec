"""What Snakemake makes anew, and what it leaves, after a change of data, settings or results."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fake_archive import study_of, write_archive

from mil.config import StudyConfig, dump_study
from preprocessing.manifest import read_manifest
from preprocessing.plan import plan_shards, shards_of
from preprocessing.process_list import read_process_list, shard_path
from preprocessing.status import write_status

ROOT = Path(__file__).parents[2]
Edit = Callable[[], object]


def made(folder: Path, **mil) -> Path:
    """The YAML of a study whose slides are extracted already, with a covariate in the manifest."""
    tumour = {"aggregate": "max", "covariates": ["age"], "baselines": []}
    tumour["truth"] = {"folder": str(folder / "truth")}
    tumour["target"] = {"name": "classification", "label": "y", "positive": "b"}
    given = {
        "tasks": {"tumour": tumour},
        "methods": {"abmil": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}},
        "train": {"epochs": 1, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(dump_study(study_of(folder, **(given | mil))))
    return path


def mark_extracted(study: StudyConfig) -> None:
    plans = plan_shards(study.preprocessing)
    shards = shards_of(read_manifest(study.preprocessing.manifest), study.preprocessing.shard_size)
    statuses = read_process_list(study.features_dir)
    for number, rows in enumerate(shards):
        ids = {row.slide_id for row in rows}
        mine = [status for status in statuses if status.slide_id in ids]
        write_status(shard_path(study.features_dir, number), mine, settings=plans[number].settings)


def snakemake(study: Path, target: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "workflows/profiles/default"), "--cores", "1"]
    command += [str(target), *arguments, "--configfile", str(study)]
    done = subprocess.run(command, cwd=study.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def archive(tmp_path) -> Path:
    write_archive(tmp_path, patients=16)
    slides = pd.read_csv(tmp_path / "slides.csv").assign(age=50, remark="none")
    slides.to_csv(tmp_path / "slides.csv", index=False)
    mark_extracted(study_of(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_training_runs_again_when_it_must_and_only_then(archive):
    study = made(archive)
    member = archive / "out/models/tumour/abmil/fold0/seed0"
    target, slides = member / "predictions.csv", archive / "slides.csv"
    snakemake(study, target)
    assert "Nothing to be done" in snakemake(study, target, "-n")

    before, stamp = slides.read_text(), slides.stat()

    def with_column(**values: object) -> str:
        pd.read_csv(slides).assign(**values).to_csv(slides, index=False)
        os.utime(slides, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        planned = snakemake(study, target, "-n")
        slides.write_text(before)
        os.utime(slides, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        return planned

    assert "rule split:" in with_column(age=51)
    assert "Nothing to be done" in with_column(remark="read by nobody")
    made(archive, train={"epochs": 1, "device": "auto"})
    assert "Nothing to be done" in snakemake(study, target, "-n")
    made(archive, train={"epochs": 2, "device": "cpu"})
    assert "rule train:" in snakemake(study, target, "-n")
    made(archive)
    (member / "checkpoint.safetensors").unlink()
    assert "rule train:" in snakemake(study, member / "checkpoint.safetensors", "-n")

    snakemake(study, target, "--forcerun", "train")
    check_outlines(study, archive)
    model = member / "checkpoint.safetensors"
    check_applied(archive, model)


def check_outlines(study: Path, archive: Path) -> None:
    """Other outlines of the truth are other figures of the maps."""
    maps = archive / "out/heatmaps/tumour/abmil/predictions.csv"
    outlines = archive / "truth" / "p0-1.geojson"
    outlines.parent.mkdir()

    def draw(side: int) -> None:
        ring = [[0, 0], [side, 0], [side, side], [0, side], [0, 0]]
        polygon = {"type": "Polygon", "coordinates": [ring]}
        feature = {"type": "Feature", "properties": {}, "geometry": polygon}
        collection = {"type": "FeatureCollection", "features": [feature]}
        outlines.write_text(json.dumps(collection))

    draw(150)
    snakemake(study, maps)
    assert "Nothing to be done" in snakemake(study, maps, "-n")
    draw(250)
    assert "rule heatmap:" in snakemake(study, maps, "-n")


def check_applied(archive: Path, model: Path) -> None:
    """Asking a model again: other labels, another number of resamples, another model."""
    asks = {"tasks": {}, "methods": {}, "apply": {"mine": str(model.parents[2])}}
    study, target = made(archive, **asks), archive / "out/applied/mine/predictions.csv"
    snakemake(study, target)
    assert "Nothing to be done" in snakemake(study, target, "-n")
    made(archive, **asks, bootstrap=101)
    assert "rule apply:" in snakemake(study, target, "-n")
    made(archive, **asks)
    for path in (archive / "labels.csv", model):
        before, stamp = path.read_bytes(), path.stat()
        path.write_bytes(before + b"\n")
        assert "rule apply:" in snakemake(study, target, "-n"), path
        path.write_bytes(before)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_baseline_has_no_checkpoint_to_declare(archive):
    """Two rules make members: the dry run finds exactly one for each kind of answerer."""
    made(archive)
    tumour = {"aggregate": "max", "baselines": ["mean_features"]}
    tumour["target"] = {"name": "classification", "label": "y", "positive": "b"}
    study = made(archive, tasks={"tumour": tumour})
    for answerer, rule in (("abmil", "train"), ("mean_features", "baseline")):
        target = archive / f"out/models/tumour/{answerer}/fold0/seed0/predictions.csv"
        assert f"rule {rule}:" in snakemake(study, target, "-n")
