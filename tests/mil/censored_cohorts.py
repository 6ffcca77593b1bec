"""Small random cohorts with many ties and heavy censoring."""

import numpy as np
from hypothesis import strategies as st

from mil.outcomes import Outcomes

# Few distinct times and risks make ties; three of four patients are censored.
patient = st.tuples(
    st.integers(1, 9), st.sampled_from([True, False, False, False]), st.integers(-3, 3)
)
patients = st.lists(patient, min_size=4, max_size=30)


def cohort(rows) -> tuple[Outcomes, np.ndarray]:
    """The outcomes of drawn patients, and their risks."""
    time, event, risk = zip(*rows, strict=True)
    return Outcomes(np.array(time, dtype=float), np.array(event)), np.array(risk) / 4
