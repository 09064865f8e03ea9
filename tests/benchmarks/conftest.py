"""The benchmarks as modules."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.fixture(autouse=True)
def as_a_user(unchecked):
    """Every benchmark runs without run-time type checks, which would take time."""
