"""The scripts as modules."""

import sys
from pathlib import Path

import jaxtyping
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture(autouse=True)
def unchecked():
    """Scripts as a user runs them: without the suite's run-time type checks, which would answer first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
