"""What the command line says; its stages are tested where they are written."""

import logging

import fake_archive
import pandas as pd
import pytest

from mil.cli import main
from mil.cohorts.presets import PRESETS, preset_lines
from mil.config import dump_study


def test_presets_fit_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    assert [line.split()[0] for line in lines if line[0] != " "] == list(PRESETS)
    notes = sum(len(preset.notes) for preset in PRESETS.values())
    assert sum(line.startswith(" " * 19 + "- ") for line in lines) == notes
    assert len("\n".join(preset_lines(1000)).splitlines()) == len(PRESETS) + notes


def test_method_may_be_a_baseline(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "baseline (mean_features, clinical)" in " ".join(capsys.readouterr().out.split())


def test_one_answerer_has_nothing_to_be_compared_with(tmp_path, monkeypatch, capsys):
    pairs = pd.DataFrame({"answerer_a": ["abmil"], "p": [0.5]})
    monkeypatch.setattr("mil.evaluation.compare.compare_answerers", lambda study, task: pairs)
    target = {"name": "classification", "label": "y"}
    path = tmp_path / "study.yaml"
    for baselines, told in (([], "t: one answerer, nothing to compare\n"), (None, "abmil 0.500\n")):
        tasks = {"t": {"target": target, "baselines": baselines}}
        study = fake_archive.study_of(tmp_path, tasks=tasks, methods={"abmil": {"name": "abmil"}})
        path.write_text(dump_study(study))
        assert main(["compare", "--config", str(path), "--task", "t"]) == 0
        assert capsys.readouterr().out.endswith(told)


def test_numexpr_does_not_count_its_threads_aloud():
    logging.getLogger("numexpr").setLevel(logging.NOTSET)
    main(["presets"])
    assert not logging.getLogger("numexpr.utils").isEnabledFor(logging.INFO)
