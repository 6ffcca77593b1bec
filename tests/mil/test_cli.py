"""What the command line says; its stages are tested where they are written."""

import argparse
import errno
import json
import logging
import os

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


def test_what_the_system_refuses_is_told_in_a_line(tmp_path, capsys):
    """Here a folder that cannot be made, because a file is in its place."""
    (tmp_path / "out").write_text("a file")
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,path\ns1,p1,s1.svs\n")
    (tmp_path / "clam").mkdir()
    study = {"output": str(tmp_path / "out")}
    study["preprocessing"] = {"manifest": str(tmp_path / "slides.csv"), "grid": {"mpp": 0.5}}
    config = tmp_path / "study.yaml"
    config.write_text(json.dumps(study))
    command = ["import", "--config", str(config), "--format", "clam"]
    assert main([*command, "--source", str(tmp_path / "clam")]) == 1
    said = capsys.readouterr().err
    assert f"histomil: [Errno 20] Not a directory: '{tmp_path}/out/features'; see that" in said
    assert "Traceback" not in said


def test_a_full_disk_is_told_with_the_slide_at_which_it_was(monkeypatch, capsys):
    def full(_) -> int:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error.add_note("slide 's1'")
        raise error

    monkeypatch.setitem(cli.WITHOUT_STUDY, "presets", full)
    assert main(["presets"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device, slide 's1'; see that the disk has room" in said


def test_an_error_of_a_library_keeps_its_traceback(monkeypatch):
    def broken(_) -> int:
        raise OSError("broken data stream")

    monkeypatch.setitem(cli.WITHOUT_STUDY, "presets", broken)
    with pytest.raises(OSError, match="broken data stream"):
        main(["presets"])


@pytest.mark.parametrize("what", ["store", "reader", "encode", "train"])
def test_a_benchmark_of_no_turns_is_refused(what, capsys):
    assert main(["bench", what, "--repeats", "0"]) == 2
    assert "--repeats: expected 1 or more, got 0" in capsys.readouterr().err
