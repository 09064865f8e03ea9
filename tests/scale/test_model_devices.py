"""Runs the tests of divided parameters and of explicit meshes on eight devices, each file in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["on_model_devices.py", "on_explicit_meshes.py"])
def test_on_eight_fake_devices(name):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", str(FOLDER / name)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=FOLDER.parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr
