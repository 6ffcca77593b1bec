"""`histomil compare`: one command from a study to its tables, killed and called again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from fake_archive import study_of, write_archive

from mil import workflow
from mil.cli import main
from mil.config import dump_study
from preprocessing.plan import plan_shards
from preprocessing.process_list import read_process_list, shard_path
from preprocessing.status import write_status

ROOT = Path(__file__).parents[2]
CLASSES = {"name": "classification", "label": "y", "positive": "b"}
ABMIL = {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}


def written(folder: Path, **mil) -> Path:
    """The YAML of a study with one question and two folds."""
    given = {
        "tasks": {"tumour": {"aggregate": "max", "target": CLASSES}},
        "methods": {"abmil": ABMIL},
        "train": {"epochs": 2, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(dump_study(study_of(folder, **(given | mil))))
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    """Slides whose features are extracted already."""
    write_archive(tmp_path, patients=16)
    study = study_of(tmp_path)
    done = shard_path(study.features_dir, 0)
    statuses = read_process_list(study.features_dir)
    write_status(done, statuses, settings=plan_shards(study.preprocessing)[0].settings)
    return tmp_path


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone whose Snakefile makes tables of one line, but of a task that is called broken."""
    root = tmp_path / "clone"
    (root / "workflows/profiles/default").mkdir(parents=True)
    (root / "workflows/profiles/default/config.yaml").write_text("keep-going: true\n")
    (root / "Snakefile").write_text(
        "OUT = config['output']\n"
        "rule table:\n"
        "    output: OUT + '/evaluation/{task}/comparison_table.csv',\n"
        "        OUT + '/evaluation/{task}/comparison_table.md'\n"
        "    shell: 'test {wildcards.task} != broken && touch {output[0]} && '\n"
        "        'echo table of {wildcards.task} > {output[1]}'\n"
    )
    monkeypatch.setattr(workflow, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    return root


def tasks(*names: str) -> dict:
    return {name: {"aggregate": "max", "target": CLASSES} for name in names}


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mil.cli", "compare", "--config", str(path), *arguments]


def compare(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(path, *arguments),
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_command_that_cannot_be_meant(tmp_path, clone, capsys):
    path = written(tmp_path)
    given = ["compare", "--config", str(path)]

    def refused(*arguments: str) -> str:
        assert main([*given, *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert "task 'tumor' is not configured; known are ['tumour']" in refused("--task", "tumor")
    assert "--cores: expected 1 or more, got 0" in refused("--cores", "0")
    (clone / "Snakefile").unlink()
    assert f"no workflow at {clone / 'Snakefile'}: histomil was installed without it" in refused()
    written(tmp_path, tasks={}, methods={}, labels=None)
    assert "mil.tasks is empty, there is nothing to compare" in refused()
    assert not (tmp_path / "out").exists()


def test_tables_of_the_asked_tasks_are_printed_and_the_exit_code_is_snakemakes(
    tmp_path, clone, capfd
):
    path = written(tmp_path, tasks=tasks("one", "two", "broken"))
    given = ["compare", "--config", str(path)]
    assert main([*given, "--task", "two"]) == 0
    out, err = capfd.readouterr()
    assert out == "table of two\n\n"
    assert "rule table:" in err
    assert not (tmp_path / "out/evaluation/one").exists()
    (tmp_path / "out/evaluation/two/comparison_table.md").unlink()
    assert main([*given, "--task", "two"]) == 0
    assert capfd.readouterr().out == "table of two\n\n"
    assert main([*given, "--cores", "2"]) == 1
    assert capfd.readouterr().out == ""  # one failed: the others are made, but nothing is shown
    assert (tmp_path / "out/evaluation/one/comparison_table.md").is_file()
    assert not (tmp_path / "out/evaluation/broken/comparison_table.csv").exists()


def test_a_dry_run_shows_the_plan_and_makes_nothing(tmp_path, clone, capfd):
    path = written(tmp_path, tasks=tasks("one", "two"))
    assert main(["compare", "--config", str(path), "--dry-run"]) == 0
    plan = capfd.readouterr().out
    assert plan.count("rule table:") == 2
    assert "table of" not in plan
    assert not (tmp_path / "out").exists()


def test_a_signal_is_an_exit_code(tmp_path):
    wait = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert workflow._run(wait, stdout=None) == 137


def trained(folder: Path) -> list[tuple[str, int]]:
    """Every (answerer, fold) that was trained or fitted, as often as it was."""
    entries = map(json.loads, (folder / "out/seals.jsonl").read_text().splitlines())
    return sorted((entry["answerer"], entry["fold"]) for entry in entries)


def kill_in_the_second_member(path: Path) -> None:
    """Ends the command, Snakemake and its jobs when one member is done and the next has begun."""
    process = subprocess.Popen(
        command(path),
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while len(list(path.parent.glob("out/logs/train/*.log"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it never came to the point of the kill"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_a_new_method_is_all_that_is_trained(archive):
    path = written(archive)
    kill_in_the_second_member(path)
    folder = archive / "out/evaluation/tumour"
    assert not folder.exists()
    assert len(trained(archive)) == 1
    done = compare(path)
    members = [(name, fold) for name in ("abmil", "mean_features") for fold in range(2)]
    assert trained(archive) == members  # each once: what was done before the kill is kept
    assert done.stdout == (folder / "comparison_table.md").read_text() + "\n"
    assert "**tumour**" in done.stdout

    stamp = (folder / "comparison_table.csv").stat().st_mtime_ns
    assert compare(path).stdout == done.stdout
    assert (folder / "comparison_table.csv").stat().st_mtime_ns == stamp

    methods = {"abmil": ABMIL, "wider": ABMIL | {"hidden_dim": 16}}
    written(archive, methods=methods)
    assert "| wider " in compare(path, "--task", "tumour").stdout
    members += [("wider", fold) for fold in range(2)]
    assert trained(archive) == members
    table = pd.read_csv(folder / "comparison_table.csv")
    assert table["answerer"].tolist() == ["abmil", "wider", "mean_features"]
    assert (table["training_minutes"] > 0).tolist() == [True, True, False]
    written(archive, methods=methods, reference="wider")
    assert "| minus wider " in compare(path).stdout
    assert trained(archive) == members
