"""The studies as modules, run as a user runs them: without the suite's run-time type checks."""

import pytest


@pytest.fixture(autouse=True)
def as_a_user(unchecked):
    """Every test of a study does without run-time type checks, which would answer first."""
