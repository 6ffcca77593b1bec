import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sksurv.linear_model import CoxnetSurvivalAnalysis
from statsmodels.duration.hazard_regression import PHReg

from mil.bags import CohortFeatures, TileOrigin
from mil.baselines import (
    BaselineData,
    Covariates,
    fit_baseline,
    mean_features,
)
from mil.tasks.base import Answers
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import CoxConfig
from mil.tasks.cox import CoxTask
from preprocessing.errors import CohortError

COX = CoxConfig(time="time", event="event")


def survival_cohort(n: int, d: int, seed: int = 0):
    """Features with the scales of real ones, and follow-up whose log-risk is ten of them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 20)) @ rng.normal(size=(20, d)) / 2 + rng.normal(size=(n, d))
    risk = features[:, :10].sum(axis=1)
    risk = 1.5 * (risk - risk.mean()) / risk.std()
    event_at, censored_at = rng.exponential(np.exp(-risk)), rng.exponential(2, size=n)
    table = pd.DataFrame(
        {
            "time": np.minimum(event_at, censored_at) + 1e-3,
            "event": (event_at <= censored_at).astype(int),
        }
    )
    return features * rng.uniform(0.01, 10, size=d) + 5, risk, table


def parts(task, features, table, *slices):
    return [BaselineData(features[s], task.encode(table[s])) for s in slices]


TRAIN, VALIDATION, TEST = slice(0, 320), slice(320, 400), slice(400, 700)


def test_cox_elastic_net_equals_scikit_survival():
    """Coxnet divides by the patients what here is a mean over events; no ties in these times."""
    features, risk, table = survival_cohort(700, 60)
    task = CoxTask.fit(table[TRAIN], COX)
    fitted = fit_baseline("mean_features", task, *parts(task, features, table, TRAIN, VALIDATION))
    z = (features - features[TRAIN].mean(axis=0)) / features[TRAIN].std(axis=0)
    outcome = np.array(
        [*zip(table["event"][TRAIN] == 1, table["time"][TRAIN], strict=True)],
        dtype=[("event", bool), ("time", float)],
    )
    share = float(table["event"][TRAIN].mean())
    oracle = CoxnetSurvivalAnalysis(
        l1_ratio=0.5, alphas=[fitted.strength * share], tol=1e-12, max_iter=10**6
    ).fit(z[TRAIN], outcome)
    assert fitted.weights[:-1, 0].numpy() == pytest.approx(oracle.coef_[:, 0], abs=2e-5)
    assert (oracle.coef_ == 0).sum() >= 5  # the penalty leaves features out, here as there
    mine = fitted.logits(features[TEST])[:, 0].numpy()

    def c(scores):
        return concordance_index(table["time"][TEST], -scores, table["event"][TEST])

    assert c(mine) > c(risk[TEST]) - 0.03
    assert c(mine) == pytest.approx(c(oracle.predict(z[TEST])), abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_elastic_net_equals_scikit_learn(classes):
    features, risk, _ = survival_cohort(700, 40)
    rng = np.random.default_rng(1)
    noisy = risk + rng.normal(size=700)
    names = np.array(["a", "b", "c"])[np.digitize(noisy, [0.0, 1.0][: classes - 1])]
    table = pd.DataFrame({"label": names})
    task = ClassificationTask.fit(table[TRAIN], label="label")
    fitted = fit_baseline("mean_features", task, *parts(task, features, table, TRAIN, VALIDATION))
    z = (features - features[TRAIN].mean(axis=0)) / features[TRAIN].std(axis=0)

    def objective(weights: np.ndarray, intercept: np.ndarray) -> float:
        """Of one weight vector a class, as the module's docstring has it."""
        logits = torch.from_numpy(z[TRAIN] @ weights + intercept)
        penalty = 0.5 * np.abs(weights).sum() + 0.25 * (weights**2).sum()
        return float(task.loss(logits, task.encode(table[TRAIN]))) + fitted.strength * penalty

    # two classes: scikit-learn has one vector w, here +-w / 2, with half of its square
    square = 0.5 if classes == 3 else 0.25
    oracle = LogisticRegression(
        solver="saga",
        l1_ratio=0.5 / (0.5 + square),
        C=1 / (320 * fitted.strength * (0.5 + square)),
        tol=1e-8,
        max_iter=100_000,
    ).fit(z[TRAIN], names[TRAIN])
    weights, intercept = oracle.coef_.T, oracle.intercept_
    if classes == 2:
        weights, intercept = np.hstack([-weights, weights]) / 2, np.array([-1, 1]) * intercept / 2
    mine = fitted.weights.numpy()
    assert mine[:-1] == pytest.approx(weights, abs=1e-4)
    assert objective(mine[:-1], mine[-1]) == pytest.approx(objective(weights, intercept), abs=1e-7)
    answers = fitted.logits(features[TEST])[:, -1].numpy()
    assert roc_auc_score(names[TEST] == task.classes[-1], answers) > 0.75


def test_features_of_an_encoder_fit_in_seconds():
    """320 patients, 1280 features: the size of a real cohort; lifelines takes minutes for 300."""
    features, risk, table = survival_cohort(700, 1280)
    task = CoxTask.fit(table[TRAIN], COX)
    threads = torch.get_num_threads()
    begin = time.process_time()
    fitted = fit_baseline("mean_features", task, *parts(task, features, table, TRAIN, VALIDATION))
    assert time.process_time() - begin < 30
    assert torch.get_num_threads() == threads
    mine = fitted.logits(features[TEST])[:, 0].numpy()
    reached, possible = (
        concordance_index(table["time"][TEST], -r, table["event"][TEST]) for r in (mine, risk[TEST])
    )
    assert reached > possible - 0.06


def test_penalty_is_chosen_on_validation_and_everything_else_on_train():
    features, _, table = survival_cohort(400, 30)
    task = CoxTask.fit(table[TRAIN], COX)
    train, validation = parts(task, features, table, TRAIN, VALIDATION)
    fitted = fit_baseline("mean_features", task, train, validation)
    strengths, losses = (np.array(values) for values in zip(*fitted.path, strict=True))
    assert (np.diff(strengths) < 0).all()
    assert fitted.strength == strengths[losses.argmin()]
    added = _log_likelihood(fitted, features, table, slice(0, VALIDATION.stop))
    added -= _log_likelihood(fitted, features, table, TRAIN)
    assert -added == pytest.approx(losses.min())
    assert fitted.mean == pytest.approx(train.features.mean(axis=0))
    assert fitted.sd == pytest.approx(train.features.std(axis=0))
    shuffled = task.encode(table[VALIDATION].sample(frac=1, random_state=0))
    misled = fit_baseline("mean_features", task, train, BaselineData(validation.features, shuffled))
    assert misled.strength > fitted.strength


def _log_likelihood(fitted, features, table, rows) -> float:
    """The log partial likelihood of given risks, by statsmodels."""
    risk = fitted.logits(features[rows]).numpy()
    model = PHReg(table["time"][rows], risk, status=table["event"][rows], ties="efron")
    return model.loglike(np.array([1.0]))


def test_no_signal_gives_the_null_model():
    features, _, table = survival_cohort(400, 30)
    noise = np.random.default_rng(3).normal(size=features.shape)
    task = CoxTask.fit(table[TRAIN], COX)
    fitted = fit_baseline("mean_features", task, *parts(task, noise, table, TRAIN, VALIDATION))
    assert float(fitted.weights.abs().max()) < 0.1


def test_a_constant_feature_gets_no_weight_and_no_division_by_zero():
    features, _, table = survival_cohort(400, 5)
    features[:, 2] = 0.1
    task = CoxTask.fit(table[TRAIN], COX)
    fitted = fit_baseline("clinical", task, *parts(task, features, table, TRAIN, VALIDATION))
    assert abs(float(fitted.weights[2])) < 1e-12
    assert torch.isfinite(fitted.logits(features)).all()


def test_clinical_cox_with_a_weak_ridge_is_the_usual_one():
    """With many patients the ridge hardly matters: lifelines' unpenalised coefficients."""
    features, _, table = survival_cohort(700, 3)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    task = CoxTask.fit(table[:600], COX)
    fitted = fit_baseline(
        "clinical", task, *parts(task, features, table, slice(600), slice(600, 700))
    )
    oracle = CoxPHFitter().fit(table[:600].join(pd.DataFrame(features[:600])), "time", "event")
    mine = fitted.weights[:-1, 0].numpy() / fitted.sd
    assert mine == pytest.approx(oracle.params_.to_numpy(), rel=0.1, abs=0.02)


def test_a_validation_part_of_censored_patients_judges_by_who_outlived_whom():
    features, risk, table = survival_cohort(700, 5)
    table.loc[VALIDATION, "event"] = 0
    task = CoxTask.fit(table[TRAIN], COX)
    fitted = fit_baseline("mean_features", task, *parts(task, features, table, TRAIN, VALIDATION))
    mine = fitted.logits(features[TEST])[:, 0].numpy()
    assert np.corrcoef(mine, risk[TEST])[0, 1] > 0.9


def test_data_that_cannot_be_is_refused():
    with pytest.raises(CohortError, match=r"\(2, 3\) and 5"):
        BaselineData(np.zeros((2, 3)), torch.zeros(5))
    with pytest.raises(CohortError, match=r"bag\(s\) number 1 are not finite"):
        BaselineData(np.array([[0.0], [np.nan]]), torch.zeros(2))


def test_mean_features_are_the_means_of_bags():
    tiles = {"a": torch.ones(2, 3).half(), "b": torch.full((6, 3), 5.0).half()}
    origin = TileOrigin("e", "w", "t", 0.5, 224)
    bags = pd.DataFrame({"slide_ids": [("a",), ("a", "b")]})
    means = mean_features(bags, CohortFeatures(tiles, {}, origin))
    assert means == pytest.approx(np.array([[1.0] * 3, [4.0] * 3]))


CLINICAL = pd.DataFrame(
    {
        "age": ["60", "70.0", None, "50", "65"],
        "stage": ["II", "III", "II", None, "I"],
        "sex": ["0", "1", "1", "0", "1"],
    },
    index=list("vwxyz"),
)


def test_design_matrix_of_covariates():
    design = Covariates.fit(CLINICAL, ("age", "stage", "sex"))
    assert design.names == ("age", "age missing", "stage=I", "stage=III", "stage missing", "sex")
    assert design.matrix(CLINICAL).tolist() == [
        [60, 0, 0, 0, 0, 0],
        [70, 0, 0, 1, 0, 1],
        [62.5, 1, 0, 0, 0, 1],
        [50, 0, 0, 0, 1, 0],
        [65, 0, 1, 0, 0, 1],
    ]
    unseen = pd.DataFrame({"age": [None], "stage": ["IV"], "sex": [None]})
    assert design.matrix(unseen).tolist() == [[62.5, 1, 0, 0, 0, 1]]
    assert design.matrix(CLINICAL.iloc[:0]).shape == (0, 6)


@settings(max_examples=50)
@given(
    st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3).map(str)), min_size=2, max_size=20),
    st.lists(st.one_of(st.none(), st.sampled_from("abc")), min_size=2, max_size=20),
)
def test_designs_are_full_and_what_is_new_changes_nothing_fitted(ages, grades):
    n = min(len(ages), len(grades))
    table = pd.DataFrame({"age": ages[:n], "grade": grades[:n]}, dtype=object)
    if table.isna().all().any():
        with pytest.raises(CohortError, match=r"is empty for all \d+ training bags"):
            Covariates.fit(table, ("age", "grade"))
        return
    design = Covariates.fit(table, ("age", "grade"))
    matrix = design.matrix(table)
    assert matrix.shape == (n, len(design.names))
    assert np.isfinite(matrix).all()
    levels = [i for i, name in enumerate(design.names) if name.startswith("grade=")]
    assert (matrix[:, levels].sum(axis=1) <= 1).all()
    again = pd.concat([table, pd.DataFrame({"age": ["1e9"], "grade": ["new"]})])
    assert (design.matrix(again)[:n] == matrix).all()


def test_a_covariate_that_is_neither_is_refused():
    with pytest.raises(CohortError, match=r"'age': expected numbers or categories.* >90 for c;"):
        Covariates.fit(pd.DataFrame({"age": ["1", "2", ">90"]}, index=list("abc")), ("age",))
    design = Covariates.fit(CLINICAL, ("age",))
    for wrong in (">90", "inf"):
        with pytest.raises(CohortError, match=rf"expected numbers, as in .* got {wrong} for q"):
            design.matrix(pd.DataFrame({"age": ["1", wrong]}, index=list("pq")))
    with pytest.raises(CohortError, match="expected one column 'grade'"):
        Covariates.fit(CLINICAL, ("grade",))


def test_answers_serve_the_task():
    features, _, table = survival_cohort(700, 4)
    task = CoxTask.fit(table[TRAIN], COX)
    train, validation = parts(task, features, table, TRAIN, VALIDATION)
    fitted = fit_baseline("clinical", task, train, validation)
    told = [Answers(fitted.logits(part.features), part.encoded) for part in (train, validation)]
    answers = task.completed(*told).predict(fitted.logits(features[TEST]))
    curves = answers.filter(like="survival_").to_numpy()
    assert (np.diff(curves) <= 0).all()
    order = np.argsort(answers["risk"])
    assert (np.diff(curves[order], axis=0) <= 0).all()  # a higher risk, a lower curve


def test_a_few_validation_patients_do_not_silence_the_clinic():
    """The ridge of the covariates is fixed: who the six are changes nothing."""
    features, risk, table = survival_cohort(400, 3)
    task = CoxTask.fit(table[:25], COX)
    fitted = [
        fit_baseline("clinical", task, *parts(task, features, table, slice(25), slice(a, a + 6)))
        for a in (30, 60)
    ]
    assert torch.equal(fitted[0].weights, fitted[1].weights)
    mine = fitted[0].logits(features[100:])[:, 0].numpy()
    assert mine.std() > 0.3 * risk[100:400].std()
