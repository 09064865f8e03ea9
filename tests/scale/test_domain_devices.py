"""Runs the tests of nodes on several devices in a process of its own: the number is fixed when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = [str(Path(__file__).with_name(f"on_domain_{name}.py")) for name in ("devices", "training")]


@pytest.mark.parametrize(
    "selected",
    [
        "not thorough",
        pytest.param("thorough", marks=pytest.mark.thorough),
    ],
)
def test_on_domain_devices(selected):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", "-m", selected]
    run = subprocess.run(
        [*command, *TESTS],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
