"""`preprocessing.quality` holds wherever tiles are used: training, predictions, maps, digests."""

from pathlib import Path

import fake_archive
import numpy as np
import pandas as pd
import pytest
from fake_archive import study_of, write_archive, write_features

from mil.config import StudyConfig
from mil.data import data_digest, task_cohort
from mil.ensemble import predict_cohort
from mil.experiment import run_member, split_task
from mil.paint import applied_maps_dir, paint_with
from preprocessing.errors import CohortError, StoreError

ABMIL = {"abmil": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}}
FAST = {"methods": ABMIL, "train": {"epochs": 2, "device": "cpu"}}
INK = np.array([0.0, 0.9, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0])


@pytest.fixture
def archive(tmp_path) -> Path:
    """Two of the nine tiles of p3-1 are inked, of every other slide none."""
    for slide_id, patient in write_archive(tmp_path, patients=8).items():
        seed = sum(map(ord, slide_id))
        features = np.random.default_rng(seed).normal(size=(fake_archive.TILES, fake_archive.DIM))
        ink = INK if slide_id == "p3-1" else 0.0
        write_features(tmp_path / "out" / "features", slide_id, patient, features, ink=ink)
    return tmp_path


def limited(study: StudyConfig, **quality) -> StudyConfig:
    content = study.model_dump(mode="json")
    content["preprocessing"]["quality"] = quality
    return StudyConfig.model_validate(content)


def digest(study: StudyConfig) -> str:
    return data_digest(study, "tumour", task_cohort(study, "tumour"))


def test_the_digest_follows_the_tiles_that_are_used(archive):
    study = study_of(archive, **FAST)
    plain = digest(study)
    assert digest(limited(study, max_ink=0.9)) == plain
    assert digest(limited(study, min_sharpness=1.0)) == plain
    assert (
        len({plain, digest(limited(study, max_ink=0.7)), digest(limited(study, max_ink=0.5))}) == 3
    )


def test_the_same_number_of_other_tiles_is_another_digest(archive):
    study = limited(study_of(archive, **FAST), max_ink=0.5)
    before = digest(study)
    features = np.random.default_rng(sum(map(ord, "p3-1"))).normal(size=(9, fake_archive.DIM))
    write_features(study.features_dir, "p3-1", "p3", features, ink=INK[::-1])
    assert digest(study) != before


def test_other_limits_ask_for_new_splits(archive):
    study = study_of(archive, **FAST)
    split_task(study, "tumour")
    run_member(study, "tumour", "abmil", fold=0, seed=0)
    run_member(limited(study, max_ink=0.9), "tumour", "abmil", fold=0, seed=0)
    with pytest.raises(CohortError, match="have changed since"):
        run_member(limited(study, max_ink=0.5), "tumour", "abmil", fold=0, seed=0)


def test_answers_and_maps_are_of_the_tiles_within_the_limits(archive):
    """As if the inked tiles were not in the store."""
    study = study_of(archive, **FAST)
    split_task(study, "tumour")
    run_member(study, "tumour", "abmil", fold=0, seed=0)
    study = study_of(archive, **FAST, apply={"all": str(study.output / "models/tumour/abmil")})
    strict = limited(study, max_ink=0.5)
    limits = predict_cohort(strict, "all")
    paint_with(strict, "all")
    tiles = pd.read_csv(applied_maps_dir(study, "all") / "p3-1.csv")
    places = {(100 * (i % 3), 100 * (i // 3)) for i in range(9)}
    assert set(zip(tiles["x_px0"], tiles["y_px0"], strict=True)) == places - {(100, 0), (100, 100)}

    def answers(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["id"] == "p3-1"].filter(like="prob_")

    features = np.random.default_rng(sum(map(ord, "p3-1"))).normal(size=(9, fake_archive.DIM))
    write_features(study.features_dir, "p3-1", "p3", features[INK < 0.5])
    pd.testing.assert_frame_equal(answers(limits), answers(predict_cohort(study, "all")))
    write_features(study.features_dir, "p3-1", "p3", features)
    assert not answers(limits).equals(answers(predict_cohort(study, "all")))


def test_a_limit_that_leaves_nothing_names_the_slides(archive):
    study = study_of(archive, **FAST)
    split_task(study, "tumour")
    strict = limited(study, min_sharpness=10.0)
    split_task(strict, "tumour")
    with pytest.raises(StoreError, match=r"(?s)not one tile to use.*'p0-1': of 9 tiles 0 .*relax"):
        run_member(strict, "tumour", "abmil", fold=0, seed=0)
