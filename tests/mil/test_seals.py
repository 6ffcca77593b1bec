import json

import pytest
from fake_archive import study_of

from mil.seals import enter, is_sealed, looks, refuse_unsealed, seal
from preprocessing.errors import CohortError


@pytest.fixture
def member(tmp_path):
    (tmp_path / "predictions.csv").write_text("id,prob_a\ns1,0.25\n")
    (tmp_path / "fitted.json").write_text("{}")
    seal(tmp_path, "run-1")
    return tmp_path


def test_an_edited_prediction_is_refused_by_name(member):
    refuse_unsealed(member, "run-1")
    (member / "predictions.csv").write_text("id,prob_a\ns1,0.95\n")
    with pytest.raises(CohortError, match=r"predictions\.csv changed after the seal was set"):
        refuse_unsealed(member, "run-1")
    assert not is_sealed(member, "run-1")


def test_what_was_fitted_is_sealed_too(member):
    (member / "fitted.json").write_text('{"threshold": 0.1}')
    with pytest.raises(CohortError, match=r"fitted\.json changed after the seal"):
        refuse_unsealed(member, "run-1")


def test_a_seal_is_of_one_run(member):
    assert is_sealed(member, "run-1")
    assert not is_sealed(member, "run-2")
    with pytest.raises(CohortError, match=r"made under other settings, labels or splits than now"):
        refuse_unsealed(member, "run-2")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_seal_is_no_seal(member, content):
    (member / "seal.json").write_text(content)
    assert not is_sealed(member, "run-1")
    with pytest.raises(CohortError, match="train that fold anew"):
        refuse_unsealed(member, "run-1")


def test_what_was_fitted_may_not_be_gone(member):
    (member / "fitted.json").unlink()
    with pytest.raises(CohortError, match=r"fitted\.json changed after the seal"):
        refuse_unsealed(member, "run-1")


def test_predictions_without_a_seal_or_absent_are_refused(member):
    (member / "seal.json").unlink()
    with pytest.raises(CohortError, match="predictions without a seal"):
        refuse_unsealed(member, "run-1")
    (member / "predictions.csv").unlink()
    with pytest.raises(CohortError, match=r"no predictions in .*: train that fold first"):
        refuse_unsealed(member, "run-1")


def test_the_ledger_counts_settings_not_folds_or_seeds(tmp_path):
    study = study_of(tmp_path)
    study.output.mkdir()
    assert looks(study, "tumour") == {}
    for fold, settings in [(0, "a"), (1, "a"), (0, "b"), (0, "a")]:
        enter(
            study,
            {"task": "tumour", "answerer": "acmil", "fold": fold, "settings": settings},
        )
    enter(study, {"task": "survival", "answerer": "acmil", "fold": 0, "settings": "c"})
    assert looks(study, "tumour") == {"acmil": 2}
    lines = (study.output / "seals.jsonl").read_text().splitlines()
    assert [json.loads(line)["fold"] for line in lines] == [0, 1, 0, 0, 0]


def test_other_folds_and_other_seeds_are_other_looks(tmp_path):
    study = study_of(tmp_path)
    study.output.mkdir()
    looked = {"task": "tumour", "answerer": "acmil", "settings": "a"}
    for fold in (0, 1):
        for splits, seeds in [("x", [0, 1]), ("y", [0, 1]), ("y", [1, 1])]:
            enter(study, {**looked, "fold": fold, "splits": splits, "seeds": seeds})
    assert looks(study, "tumour") == {"acmil": 3}


def test_a_line_that_a_kill_cut_short_costs_neither_itself_nor_the_next_twice(tmp_path):
    study = study_of(tmp_path)
    study.output.mkdir()
    looked = {"task": "tumour", "answerer": "acmil", "settings": "a"}
    enter(study, looked)
    ledger = study.output / "seals.jsonl"
    ledger.write_text(ledger.read_text() + '{"when": "2025')
    enter(study, {**looked, "settings": "b"})
    assert looks(study, "tumour") == {"acmil": 2}
