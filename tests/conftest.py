"""Fixtures of the whole suite."""

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine proves nothing false.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data (slides, golden arrays, tables); a user's clone has none."""
    root = Path(os.environ.get("HISTOMIL_SHARED", "../shared"))
    if not root.is_absolute():
        root = Path(__file__).parent.parent / root
    if not root.is_dir():
        pytest.skip(f"no reference data at {root}: set HISTOMIL_SHARED to run this test")
    return root


@pytest.fixture(scope="session")
def compiler() -> None:
    """torch.compile works here: on a CPU it needs a C++ compiler and Python's headers."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # a warning is no reason to skip
            torch.compile(lambda x: x + x)(torch.ones(2))
    except RuntimeError as error:
        pytest.skip(f"torch cannot compile here: {error!r:.200}")
