"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data (slides, golden arrays, tables); a user's clone has none."""
    root = Path(os.environ.get("HISTOMIL_SHARED", "../shared"))
    if not root.is_absolute():
        root = Path(__file__).parent.parent / root
    if not root.is_dir():
        pytest.skip(f"no reference data at {root}: set HISTOMIL_SHARED to run this test")
    return root
