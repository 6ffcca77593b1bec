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
    refuse_unsealed(member)
    (member / "predictions.csv").write_text("id,prob_a\ns1,0.95\n")
    with pytest.raises(CohortError, match=r"predictions\.csv changed after the seal was set"):
        refuse_unsealed(member)
    assert not is_sealed(member, "run-1")


def test_what_was_fitted_is_sealed_too(member):
    (member / "fitted.json").write_text('{"threshold": 0.1}')
    with pytest.raises(CohortError, match=r"fitted\.json changed after the seal"):
        refuse_unsealed(member)


def test_a_seal_is_of_one_run(member):
    assert is_sealed(member, "run-1")
    assert not is_sealed(member, "run-2")


def test_predictions_without_a_seal_or_absent_are_refused(member):
    (member / "seal.json").unlink()
    with pytest.raises(CohortError, match="predictions without a seal"):
        refuse_unsealed(member)
    (member / "predictions.csv").unlink()
    with pytest.raises(CohortError, match=r"no predictions in .*: train that fold first"):
        refuse_unsealed(member)


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
