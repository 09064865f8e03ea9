"""The benchmarks as modules."""

import pytest


@pytest.fixture(autouse=True)
def as_a_user(unchecked):
    """Every benchmark runs without run-time type checks, which would take time."""
