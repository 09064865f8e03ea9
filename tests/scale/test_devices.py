"""Runs the tests that need several devices in processes of their own: the number is fixed when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("on_eight_devices.py")
MARKERS = {"some": [], "others": ["-m", "thorough"]}


@pytest.mark.parametrize("cases", ["some", pytest.param("others", marks=pytest.mark.thorough)])
def test_on_eight_fake_devices(cases):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", *MARKERS[cases]]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=TESTS.parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
