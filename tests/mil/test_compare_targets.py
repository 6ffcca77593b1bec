"""The comparison of several labels and of values: pairs, units, and what is undefined."""

import numpy as np
import pandas as pd
import pytest
from sealed_fakes import runs, study, write_members
from target_fakes import LABELS, TARGETS, label_rows, value_rows

from mil.config import StudyConfig
from mil.evaluation.compare import compare_answerers, table_path
from mil.metrics.ranking import delong_test

pytestmark = pytest.mark.usefixtures(runs.__name__)
MUTATIONS, SCORE = TARGETS.values()
MINUS = "\N{MINUS SIGN}"


def compared(setting: StudyConfig, **answers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table by answerer, and its Markdown."""
    for name, rows in answers.items():
        write_members(setting, name, rows)
    compare_answerers(setting, "t")
    path = table_path(setting, "t")
    return pd.read_csv(path).set_index("answerer"), path.with_suffix(".md").read_text()


def blurred(rows: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    noisy = {
        name: np.clip(rows[name] + 0.2 * rng.normal(size=len(rows)), 0.01, 0.99)
        for name in (f"prob_{label}" for label in LABELS)
    }
    return rows.assign(**noisy)


def test_every_label_has_its_pairs_among_those_of_whom_it_is_known(tmp_path):
    rows = {"m": label_rows(), "n": blurred(label_rows())}
    setting = study(tmp_path, MUTATIONS)
    table, _ = compared(setting, **rows)
    pairs = compare_answerers(setting, "t").set_index("metric")
    assert list(pairs.index) == ["auroc", "auprc", "brier", "auroc_EGFR", "auroc_KRAS"]
    assert "auroc_KRAS" not in table
    for name in LABELS:
        one, other = (
            r[r[name].notna()].sort_values(["fold", "id"]).reset_index(drop=True)
            for r in rows.values()
        )
        expected = delong_test(
            one[name] == "1", one[f"prob_{name}"], other[f"prob_{name}"], strata=one["fold"]
        )
        found = pairs.loc[f"auroc_{name}"]
        assert found["test"] == "DeLong"
        assert found["difference"] == pytest.approx(expected.value)
        assert found["p"] == pytest.approx(expected.p)


def test_resamples_without_an_answer_are_counted_and_told(tmp_path):
    """Two patients in two folds have the label: a resample of their folds may draw neither."""
    rows = label_rows().assign(KRAS="0")
    rows.loc[rows["id"].isin(["p000", "p001"]), "KRAS"] = "1"
    table, text = compared(study(tmp_path, MUTATIONS), m=rows, n=blurred(rows))
    shares = table["auroc_undefined"]
    assert shares.nunique() == 1  # of the truth alone
    # (1 - 1/30)^30 of the resamples of a fold lack its one patient, independently in both
    assert shares.iloc[0] == pytest.approx((1 - 1 / 30) ** 60, abs=0.1)
    assert (table["brier_undefined"] == 0).all()
    assert f"which do not count: AUROC in {shares.iloc[0]:.0%}" in text
    assert "Means over labels" not in text


def test_a_label_that_the_means_leave_out_is_named(tmp_path):
    rows = label_rows().assign(KRAS="0")
    table, text = compared(study(tmp_path, MUTATIONS), m=rows, n=blurred(rows))
    assert (table["auroc_undefined"] == 0).all()
    assert "Means over labels: AUROC without KRAS, of which it is undefined" in text
    assert "Brier score without" not in text


def test_values_of_small_units_keep_their_digits_and_name_the_unit(tmp_path):
    target = SCORE | {"unit": "mmol/l"}

    def scaled(rows: pd.DataFrame) -> pd.DataFrame:
        observed = (rows["hrd"].astype(float) * 1e-6).astype(str)
        return rows.assign(hrd=observed, value=rows["value"] * 1e-6)

    one = scaled(value_rows())
    other = one.assign(value=1.2 * one["value"])
    table, text = compared(study(tmp_path, target), m=one, n=other)
    assert "| R² ↑ " in text
    assert "| mean absolute error, mmol/l ↓ " in text
    row = table.loc["m"]
    assert f"{row['mae']:.3g} ({row['mae_low']:.3g}–{row['mae_high']:.3g})" in text
    difference = table.loc["n", "mae_difference"]
    assert f"| +{difference:.3g} (" in text
    low, high = table.loc["n", ["r2_low", "r2_high"]]
    assert low < 0
    end = f"{high:.3f}" if high >= 0 else f"{MINUS}{-high:.3f}"
    assert f"({MINUS}{-low:.3f} to {end})" in text
