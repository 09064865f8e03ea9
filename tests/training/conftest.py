"""Fixtures of the training tests."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Calls as a user's program makes them: without the suite's run-time type checks, which would answer first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
