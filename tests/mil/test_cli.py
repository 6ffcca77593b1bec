"""What the command line says; its stages are tested where they are written."""

import argparse
import logging

import pytest

from mil import cli
from mil.cli import main
from mil.cli_parser import build_parser
from mil.cohorts.presets import PRESETS, preset_lines


def test_presets_fit_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    assert [line.split()[0] for line in lines if line[0] != " "] == list(PRESETS)
    notes = sum(len(preset.notes) for preset in PRESETS.values())
    assert sum(line.startswith(" " * 19 + "- ") for line in lines) == notes
    assert len("\n".join(preset_lines(1000)).splitlines()) == len(PRESETS) + notes


def test_methods_are_listed_with_their_keys(capsys):
    assert main(["methods"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"abmil", "acmil", "mhim", "transmil", "clam"} <= set(names)
    for name in names:
        assert main(["methods", name]) == 0
        assert "hidden_dim" in capsys.readouterr().out
    assert main(["methods", "abmill"]) == 2
    assert "'abmill' is not known; known are abmil, acmil" in capsys.readouterr().err


def test_method_may_be_a_baseline(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "baseline (mean_features, clinical)" in " ".join(capsys.readouterr().out.split())


def test_every_stage_that_can_be_written_can_be_run():
    (stages,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(stages.choices) == {*cli.STAGES, *cli.WITHOUT_STUDY}
    for name, parser in stages.choices.items():
        assert ("--config" in parser.format_help()) == (name in cli.STAGES)


def test_numexpr_does_not_count_its_threads_aloud():
    logging.getLogger("numexpr").setLevel(logging.NOTSET)
    main(["presets"])
    assert not logging.getLogger("numexpr.utils").isEnabledFor(logging.INFO)
