"""Target tables of patients with follow-up in months, for tests of the survival tasks."""

import numpy as np
import pandas as pd


def follow_up(times, events):
    index = [f"p{i}" for i in range(len(times))]
    return pd.DataFrame({"months": times, "dead": events}, index=index)


def random_follow_up(patients):
    rng = np.random.default_rng(0)
    return follow_up(rng.exponential(30, patients) + 0.1, rng.integers(0, 2, patients))
