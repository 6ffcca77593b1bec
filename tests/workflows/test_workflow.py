"""The whole chain as a user runs it: Snakemake, the command line, kill -9."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from preprocessing.config import SyntheticConfig
from preprocessing.stores.store import open_store
from preprocessing.synthetic.cohort import make_cohort

ROOT = Path(__file__).parents[2]
HISTOMIL = [sys.executable, "-m", "mil.cli"]
COHORT = SyntheticConfig(patients=14, width_px=1536, height_px=1152, seed=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(COHORT, folder)
    return folder


def study(folder: Path, cohort: Path, *, epochs: int = 4, **methods: dict) -> Path:
    """Writes a study on `cohort`, its results below `folder`; returns the YAML's path."""
    values = {
        "output": str(folder / "out"),
        "preprocessing": {
            "manifest": str(cohort / "slides.csv"),
            "grid": {"mpp": 1.0, "tile_px": 224},
            "encoder": {"device": "cpu", "batch_size": 8},
            "shard_size": 8,
        },
        "mil": {
            "labels": str(cohort / "labels.csv"),
            "tasks": {
                "tumour": {
                    "aggregate": "max",
                    "truth": {"folder": str(cohort / "truth")},
                    "target": {"name": "classification", "label": "tumour", "positive": "tumour"},
                },
                "survival": {
                    "bag": "patient",
                    "target": {"name": "survival", "time": "time", "event": "event", "bins": 2},
                },
            },
            "methods": methods or {"abmil": {"name": "abmil", "hidden_dim": 16}},
            "split": {"folds": 2, "validation_share": 0.25},
            "train": {"epochs": epochs, "patience": epochs, "device": "cpu"},
            "bootstrap": 100,
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def histomil(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HISTOMIL, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def workflow_command(*arguments: str) -> list[str]:
    profile = ROOT / "workflows/profiles/default"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    return [*command, "--workflow-profile", str(profile), "--cores", "2", *arguments]


def snakemake(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = workflow_command(*arguments)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def kill_when(condition: Callable[[], bool], command: list[str], cwd: Path) -> None:
    """Starts `command` and sends SIGKILL to its whole process group once `condition` holds."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it never came to the point of the kill"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_dry_run_from_a_clean_clone(tmp_path):
    for name in ("Snakefile", "workflows", "configs", "mil", "preprocessing"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()


def test_workflow_refuses_a_misspelt_key_and_a_missing_manifest(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("output: x\npreprocessing: {manifest: no.csv, grid: {mpp: 1, tile: 3}}\n")
    done = snakemake("-n", "--configfile", str(path), cwd=tmp_path)
    assert done.returncode != 0
    assert "preprocessing.grid.tile: unknown key" in done.stderr + done.stdout
    path.write_text("output: x\npreprocessing: {manifest: no.csv, grid: {mpp: 1}}\n")
    done = snakemake("-n", "--configfile", str(path), cwd=tmp_path)
    assert done.returncode != 0
    assert "no.csv: no such file" in done.stderr + done.stdout


def test_command_line_exit_codes(tmp_path, cohort):
    path = study(tmp_path, cohort)
    assert histomil("--help").returncode == 0
    wrong_fold = histomil(
        "train", "--config", str(path), "--task", "tumour", "--method", "abmil", "--fold", "7"
    )
    assert (wrong_fold.returncode, "fold 7 does not exist" in wrong_fold.stderr) == (2, True)
    wrong_task = histomil("split", "--config", str(path), "--task", "tumor")
    assert (wrong_task.returncode, "known are ['survival', 'tumour']" in wrong_task.stderr) == (
        2,
        True,
    )
    too_early = histomil("split", "--config", str(path), "--task", "tumour")
    assert (too_early.returncode, "run extract" in too_early.stderr) == (1, True)


@pytest.mark.slow
def test_whole_chain_with_one_corrupt_slide(tmp_path, cohort):
    """The other slides come out whole, the corrupt one is named, and the exit code says so."""
    damaged = tmp_path / "cohort"
    shutil.copytree(cohort, damaged)
    slides = pd.read_csv(damaged / "slides.csv", dtype=str)
    victim = slides["slide_id"].iloc[-1]
    file = damaged / slides["path"].iloc[-1]
    good = file.read_bytes()
    file.write_bytes(good[:1000])
    path = study(tmp_path, damaged)
    out = tmp_path / "out"

    run = ("--configfile", str(path))
    stores = lambda: len(list((out / "features").glob("*.zarr"))) >= 3  # noqa: E731
    kill_when(stores, workflow_command(*run), tmp_path)
    assert not (out / "report.html").exists()
    done = snakemake(*run, cwd=tmp_path)
    assert done.returncode != 0
    assert f"slide '{victim}'" in done.stdout + done.stderr
    assert f"slide &#39;{victim}&#39;" in (out / "report.html").read_text()
    assert not (out / "all_slides_done").exists()
    maps = {p.stem for p in (out / "heatmaps/tumour/abmil").glob("*.png")}
    assert maps == set(slides["slide_id"]) - {victim}
    metrics = pd.read_csv(out / "evaluation/survival/abmil/metrics.csv")
    assert {"c_index", "uno_c", "td_auc_1", "ibs"} <= set(metrics["metric"])
    compared = pd.read_csv(out / "evaluation/tumour/comparison.csv")
    assert set(compared["answerer_b"]) == {"mean_features"}
    assert json.loads((out / "evaluation/tumour/abmil/record.json").read_text())["inputs"]

    file.write_bytes(good)
    done = snakemake(*run, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "heatmaps/tumour/abmil" / f"{victim}.png").exists()
    assert victim not in (out / "report.html").read_text().split("<h2>")[0]

    done = snakemake("-n", *run, cwd=tmp_path)
    assert "Nothing to be done" in done.stdout + done.stderr
    check_what_runs_again(damaged, run, tmp_path)


def check_what_runs_again(cohort: Path, run: tuple[str, ...], cwd: Path) -> None:
    """One more slide runs its own shard; a changed label runs training, even after a kill."""
    manifest, labels = cohort / "slides.csv", cohort / "labels.csv"
    before = manifest.read_text()
    shutil.copy(cohort / "slides/demo-001-1.tiff", cohort / "slides/new.tiff")
    manifest.write_text(before + "new,demo-001,slides/new.tiff\n")
    planned = snakemake("-n", *run, cwd=cwd).stdout
    assert planned.count("rule extract:") == 1
    manifest.write_text(before)
    table = pd.read_csv(labels)
    table.loc[table["patient_id"] == "demo-001", "time"] += 1
    table.to_csv(labels, index=False)
    assert snakemake("--until", "split", *run, cwd=cwd).returncode == 0  # as if killed after it
    planned = snakemake("-n", *run, cwd=cwd).stdout
    assert "rule extract:" not in planned
    assert set(re.findall(r"task=(\w+), method=abmil, fold", planned)) == {"survival"}


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_result(tmp_path, cohort):
    """SIGKILL in extraction and in both stages of MHIM's training, then the same commands again."""
    methods = {"mhim": {"name": "mhim", "hidden_dim": 16}, "acmil": {"name": "acmil"}}
    results = {}
    for name, killed in (("whole", False), ("killed", True)):
        folder = tmp_path / name
        folder.mkdir()
        path = study(folder, cohort, epochs=60, **methods)
        results[name] = run_chain(folder / "out", path, killed=killed)
    for file in results["whole"]:
        assert results["whole"][file] == results["killed"][file], file


def run_chain(out: Path, path: Path, *, killed: bool) -> dict[str, bytes]:
    config = ("--config", str(path))
    features = out / "features"
    if killed:
        stores = lambda: len(list(features.glob("*.zarr"))) >= 3  # noqa: E731
        kill_when(stores, [*HISTOMIL, "extract", *config], ROOT)
        assert not (features / "shards/0.json").exists()
    assert histomil("extract", *config).returncode == 0
    assert histomil("status", *config).returncode == 0
    assert histomil("split", *config, "--task", "tumour").returncode == 0
    kept: dict[str, bytes] = {}
    for store_path in sorted(features.glob("*.zarr")):
        store = open_store(store_path)
        kept[store_path.name] = np.nan_to_num(store.features("lite0")).tobytes()
    assert not list(features.glob("*partial*"))
    for method in ("mhim", "acmil"):
        train = ("train", *config, "--task", "tumour", "--method", method, "--fold", "0")
        folder = out / f"models/tumour/{method}/fold0/seed0"
        states = ["baseline", "main"] if method == "mhim" else ["main"]
        for state in states if killed else []:
            kill_when((folder / f"{state}.state.pt").exists, [*HISTOMIL, *train], ROOT)
            assert not (folder / "checkpoint.safetensors").exists()
        done = histomil(*train)
        assert done.returncode == 0, done.stderr
        assert not list(folder.glob("*.state.pt"))
        kept[method] = (folder / "predictions.csv").read_bytes()
        kept[f"{method} weights"] = (folder / "checkpoint.safetensors").read_bytes()
    return kept
