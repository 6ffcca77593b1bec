"""Metrics of a regression's test predictions, as functions of rows of one table."""

from collections.abc import Callable

import pandas as pd

from mil.metrics import regression
from mil.metrics.resampling import Metric
from mil.tasks.columns import number_values
from mil.tasks.config import RegressionConfig

IN_UNIT = ("mae", "rmse", "bias")  # the others are bare numbers

_OF_ALL: dict[str, Callable[..., float]] = {
    "r2": regression.r2,
    "mae": regression.mean_absolute_error,
    "rmse": regression.root_mean_squared_error,
    "bias": regression.bias,
}
_WITHIN_FOLDS: dict[str, Callable[..., float]] = {
    "pearson": regression.pearson,
    "spearman": regression.spearman,
    "calibration_slope": regression.calibration_slope,
}


def value_metrics(table: pd.DataFrame, target: RegressionConfig) -> dict[str, Metric]:
    """Errors over all folds together; correlations and the slope within folds."""
    observed = number_values(table, target.column)
    predicted, folds = table["value"].to_numpy(dtype=float), table["fold"].to_numpy()

    def of_all(score: Callable[..., float]) -> Metric:
        return lambda rows: score(observed[rows], predicted[rows])

    def within(score: Callable[..., float]) -> Metric:
        return lambda rows: score(observed[rows], predicted[rows], folds[rows])

    found = {name: of_all(score) for name, score in _OF_ALL.items()}
    return found | {name: within(score) for name, score in _WITHIN_FOLDS.items()}
