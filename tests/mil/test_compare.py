"""The comparison table: every number against another computation, pairs that are pairs."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from result_fakes import by_fold, class_rows, survival_rows
from scipy.stats import norm, sem
from sealed_fakes import CLASSES, SURVIVAL, runs, study, write_members
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

from mil.config import StudyConfig
from mil.evaluation import contest, held_out
from mil.evaluation.compare import compare_answerers, table_path
from mil.evaluation.comparison_table import training_minutes
from mil.evaluation.evaluate import evaluate_answerer
from mil.metrics.ranking import delong_test
from mil.predictions import write_csv
from preprocessing.errors import CohortError, ConfigError

pytestmark = pytest.mark.usefixtures(runs.__name__)
WIDTH = 2 * norm.ppf(0.975)  # of a 95 % interval, in standard errors


def noisy(rows: pd.DataFrame, *, by: float, seed: int) -> pd.DataFrame:
    """The same patients and truth, answered somewhat differently."""
    noise = by * np.random.default_rng(seed).normal(size=len(rows))
    if "risk_sd" in rows:
        return rows.assign(risk_sd=rows["risk_sd"] + noise)
    probability = np.clip(rows["prob_tumour"] + noise, 0.01, 0.99)
    called = np.where(probability >= rows["threshold"], "tumour", "benign")
    return rows.assign(prob_tumour=probability, prob_benign=1 - probability, predicted=called)


def table_of(setting: StudyConfig) -> pd.DataFrame:
    compare_answerers(setting, "t")
    return pd.read_csv(table_path(setting, "t")).set_index("answerer")


def patients(rows: pd.DataFrame) -> pd.DataFrame:
    mine = rows[rows["level"] == "patient"]
    return mine.sort_values(["fold", "id"], ignore_index=True)


def by_scikit_learn(rows: pd.DataFrame) -> dict[str, float]:
    mine = patients(rows)
    ill, score = mine["y"] == "tumour", mine["prob_tumour"]
    return {
        "auroc": by_fold(roc_auc_score, ill, score, mine),
        "auprc": average_precision_score(ill, score),
        "balanced_accuracy": balanced_accuracy_score(mine["y"], mine["predicted"]),
        "brier": float(np.mean((ill - score) ** 2)),
    }


def squared_errors(rows: pd.DataFrame) -> np.ndarray:
    mine = patients(rows)
    return ((mine["y"] == "tumour") - mine["prob_tumour"]).to_numpy() ** 2


def test_a_row_holds_the_metrics_of_its_answerer(tmp_path):
    setting = study(tmp_path, CLASSES, baselines=["mean_features"])
    rows = {name: noisy(class_rows(), by=0.2 * i, seed=i) for i, name in enumerate("mn")}
    rows["mean_features"] = noisy(class_rows(), by=0.6, seed=9)
    for name, table in rows.items():
        write_members(setting, name, table)
    found = table_of(setting)
    assert list(found.index) == ["m", "n", "mean_features"]
    assert (
        found[["level", "n", "folds", "seeds"]].to_numpy().tolist() == [["patient", 120, 4, 1]] * 3
    )
    for name, table in rows.items():
        for metric, value in by_scikit_learn(table).items():
            assert found.loc[name, metric] == pytest.approx(value), metric
        metrics = evaluate_answerer(setting, "t", name)
        pooled = metrics[(metrics["level"] == "patient") & (metrics["fold"] == "all")]
        pooled = pooled.set_index("metric")
        for metric in ("auroc", "auprc", "balanced_accuracy", "brier"):
            columns = [metric, f"{metric}_low", f"{metric}_high"]
            expected = pooled.loc[metric, ["value", "low", "high"]].astype(float)
            assert found.loc[name, columns].astype(float).tolist() == pytest.approx([*expected])
    for metric, best in (
        ("auroc", max),
        ("auprc", max),
        ("balanced_accuracy", max),
        ("brier", min),
    ):
        assert found[metric][found[f"{metric}_rank"] == 1].tolist() == [best(found[metric])]
    assert found.filter(like="seed_sd").isna().all(axis=None)
    assert found["training_minutes"].isna().all()


def test_survival_is_ranked_by_pairs_within_folds_and_equal_answers_share_a_rank(tmp_path):
    setting = study(tmp_path, SURVIVAL, methods=("m", "n", "same"))
    rows = {"m": survival_rows(), "n": noisy(survival_rows(), by=3, seed=1)}
    rows["same"] = rows["m"]
    for name, table in rows.items():
        write_members(setting, name, table)
    found = table_of(setting)
    for name, table in rows.items():
        right = comparable = 0.0
        for _, fold in patients(table).groupby("fold"):
            for a, b in combinations(fold.itertuples(), 2):
                first, last = sorted((a, b), key=lambda row: row.months)
                if first.died and first.months < last.months:
                    comparable += 1
                    right += first.risk_sd > last.risk_sd
        assert found.loc[name, "c_index"] == pytest.approx(right / comparable)
    assert found["c_index_rank"].tolist() == [1, 3, 1]
    assert found.loc["same", ["c_index_difference", "ibs_difference"]].tolist() == [0, 0]
    assert found.loc["same", ["c_index_p", "uno_c_p_holm"]].tolist() == [1, 1]
    assert {c for c in found if c.endswith("_rank")} == {"c_index_rank", "uno_c_rank", "ibs_rank"}


def test_differences_of_answerers_that_err_alike_have_a_narrow_interval(tmp_path):
    """Paired standard errors by scipy; an interval of unpaired ones would be many times as wide."""
    setting = study(tmp_path, CLASSES, bootstrap=600)
    one = class_rows(patients=200)
    other = noisy(one, by=0.02, seed=3)
    write_members(setting, "m", one)
    write_members(setting, "n", other)
    row = table_of(setting).loc["n"]
    errors = squared_errors(one), squared_errors(other)
    difference = errors[1] - errors[0]
    width = row["brier_difference_high"] - row["brier_difference_low"]
    assert row["brier_difference"] == pytest.approx(difference.mean())
    assert width == pytest.approx(WIDTH * sem(difference), rel=0.15)
    unpaired = WIDTH * np.hypot(sem(errors[0]), sem(errors[1]))
    assert unpaired > 8 * width
    z = abs(difference.mean()) / sem(difference)
    assert row["brier_p"] == pytest.approx(2 * norm.sf(z), abs=0.06)
    own = row["brier_high"] - row["brier_low"]
    assert own == pytest.approx(WIDTH * sem(errors[1]), rel=0.15)


def test_differences_are_to_the_reference_and_corrected_for_their_number(tmp_path):
    names = ("m", "n", "o", "mean_features")
    setting = study(
        tmp_path, CLASSES, methods=names[:3], baselines=names[3:], reference="mean_features"
    )
    rows = {name: noisy(class_rows(), by=0.1 * i, seed=i) for i, name in enumerate(names)}
    for name, table in rows.items():
        write_members(setting, name, table)
    pairs = (
        compare_answerers(setting, "t")
        .set_index(["metric", "answerer_a", "answerer_b"])
        .sort_index()
    )
    found = pd.read_csv(table_path(setting, "t")).set_index("answerer")
    rivals = found.drop(index="mean_features")
    assert set(found["reference"]) == {"mean_features"}
    assert found.loc["mean_features"].filter(regex="difference|_p$|_p_holm|_test").isna().all()
    mine = patients(rows["mean_features"])
    for name in rivals.index:
        theirs = patients(rows[name])
        expected = delong_test(
            mine["y"] == "tumour", theirs["prob_tumour"], mine["prob_tumour"], strata=mine["fold"]
        )
        row = rivals.loc[name]
        assert row["auroc_test"] == "DeLong"
        assert row["auroc_difference"] == pytest.approx(expected.value)
        assert row["auroc_difference_low"] == pytest.approx(expected.low)
        assert row["auroc_difference_high"] == pytest.approx(expected.high)
        assert row["auroc_p"] == pytest.approx(expected.p)
        pair = pairs.loc["brier", name, "mean_features"]
        columns = ["brier_difference", "brier_difference_low", "brier_difference_high", "brier_p"]
        ours = pair[["difference", "low", "high", "p"]].astype(float).tolist()
        assert row[columns].astype(float).tolist() == pytest.approx(ours)
    for metric in ("auroc", "auprc", "balanced_accuracy", "brier"):
        for p, corrected in (
            (rivals[f"{metric}_p"], rivals[f"{metric}_p_holm"]),  # three differences
            (pairs.loc[metric, "p"], pairs.loc[metric, "p_holm"]),  # all six pairs
        ):
            expected = multipletests(p.to_numpy(dtype=float), method="holm")[1]
            assert corrected.to_numpy(dtype=float) == pytest.approx(expected)


def test_seeds_answer_together_and_their_spread_is_told(tmp_path):
    setting = study(tmp_path, CLASSES, seeds=3, methods=("m",), baselines=["mean_features"])
    each = [noisy(class_rows(), by=0.2, seed=seed) for seed in range(3)]
    for seed, table in enumerate(each):
        write_members(setting, "m", table, seed=seed)
    write_members(setting, "mean_features", class_rows())
    found = table_of(setting)
    assert found["seeds"].tolist() == [3, 1]
    mean = sum(table["prob_tumour"] for table in each) / 3
    together = by_scikit_learn(each[0].assign(prob_tumour=mean))
    for metric in ("auroc", "auprc", "brier"):
        alone = [by_scikit_learn(table)[metric] for table in each]
        assert found.loc["m", metric] == pytest.approx(together[metric])
        assert found.loc["m", f"{metric}_seed_sd"] == pytest.approx(np.std(alone, ddof=1))
    assert found.filter(like="seed_sd").loc["mean_features"].isna().all()


def test_markdown_has_every_answerer_and_says_what_it_shows(tmp_path):
    setting = study(tmp_path, CLASSES, seeds=2, baselines=["mean_features"])
    for seed in range(2):
        for i, name in enumerate("mn"):
            write_members(setting, name, noisy(class_rows(), by=0.1 + i, seed=seed), seed=seed)
    write_members(setting, "mean_features", noisy(class_rows(), by=0.7, seed=0))
    found = table_of(setting)
    text = table_path(setting, "t").with_suffix(".md").read_text()
    metrics, differences, note = text.removeprefix("**t**\n\n").split("\n\n")
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in metrics.splitlines()]
    assert {len(line) for line in metrics.splitlines()} == {len(metrics.splitlines()[0])}
    assert cells[0][2:6] == [
        "AUROC ↑",
        "average precision ↑",
        "balanced accuracy ↑",
        "Brier score ↓",
    ]
    assert [row[:2] for row in cells[2:]] == [
        ["m", "4 × 2"],
        ["n", "4 × 2"],
        ["mean_features", "4 × 1"],
    ]
    value, low, high, spread = found.loc["m", ["auroc", "auroc_low", "auroc_high", "auroc_seed_sd"]]
    assert cells[2][2] == f"**{value:.3f} ({low:.3f}–{high:.3f}) ± {spread:.3f}**"
    assert "±" not in cells[4][2]
    assert cells[2][6] == "1, 1, 1, 1"
    assert [line.split()[1] for line in differences.splitlines()[2:]] == ["n", "mean_features"]
    assert f"\N{MINUS SIGN}{-found.loc['n', 'auroc_difference']:.3f} (" in differences
    assert "120 patients" in note
    assert "(100 bootstrap resamples of patients)" in note
    assert "Holm's correction over the 2 difference(s)" in note


def test_one_answerer_has_no_differences(tmp_path):
    setting = study(tmp_path, CLASSES, methods=("m",))
    write_members(setting, "m", class_rows())
    assert compare_answerers(setting, "t").empty
    text = table_path(setting, "t").with_suffix(".md").read_text()
    assert "minus" not in text
    assert "Holm" not in text
    assert text.count("| m ") == 1


def test_answers_for_different_slides_are_no_pairs(tmp_path):
    setting = study(tmp_path, CLASSES)
    rows = class_rows()
    write_members(setting, "m", rows)
    renamed = rows["id"].where(rows["id"] != "p007", "p007 again")
    write_members(setting, "n", rows.assign(id=renamed))
    with pytest.raises(CohortError, match="task 't': n and m answered for different patients"):
        compare_answerers(setting, "t")


def test_minutes_are_of_all_epochs_of_a_member_and_only_where_all_members_tell(tmp_path):
    setting = study(tmp_path, CLASSES, seeds=2, methods=("m",))
    folders = [setting.member_dir("t", "m", fold, seed) for fold in range(4) for seed in range(2)]
    for number, folder in enumerate(folders):
        history = pd.DataFrame({"epoch": [0, 1], "seconds": [60.0, 30.0 * number]})
        write_csv(history, folder / "history.csv")
    assert training_minutes(setting, "t", "m") == pytest.approx(1 + 0.5 * np.mean(range(8)))
    assert np.isnan(training_minutes(setting, "t", "mean_features"))
    write_csv(pd.DataFrame({"epoch": [0]}), folders[3] / "history.csv")
    assert np.isnan(training_minutes(setting, "t", "m"))


def test_the_reference_answers_every_task(tmp_path):
    with pytest.raises(ConfigError, match=r"mil\.reference: 'o' is not of task 't': m, n"):
        study(tmp_path, CLASSES, reference="o")
    with pytest.raises(ConfigError, match=r"mil\.reference: 'clinical' is not of task 't'"):
        study(tmp_path, CLASSES, baselines=["mean_features"], reference="clinical")
    assert study(tmp_path, CLASSES, reference="n").reference == "n"
    assert study(tmp_path, CLASSES).reference == "m"


def test_the_stores_are_opened_once_for_all_answerers_and_seeds(tmp_path, monkeypatch):
    setting = study(tmp_path, CLASSES, seeds=2)
    for seed in range(2):
        for name in "mn":
            write_members(setting, name, noisy(class_rows(), by=0.2, seed=seed), seed=seed)
    opened, given = [], []
    splits_of, runs_of = contest.task_splits, held_out.member_runs
    monkeypatch.setattr(contest, "task_splits", lambda *of: opened.append(of) or splits_of(*of))
    monkeypatch.setattr(held_out, "member_runs", lambda *of: given.append(of[3]) or runs_of(*of))
    compare_answerers(setting, "t")
    assert opened == [(setting, "t")]
    assert given == [splits_of(setting, "t")] * 6  # two answerers, together and seed by seed
