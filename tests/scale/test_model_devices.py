"""Runs the tests of divided parameters and of explicit meshes on eight devices, each file in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = ["on_model_devices.py", "on_explicit_meshes.py"]


def run(name, *options):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    plain = ["-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *options, str(FOLDER / name)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=FOLDER.parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_on_eight_fake_devices(name):
    run(name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FILES)
def test_more_cases_on_eight_fake_devices(name):
    run(name, "-m", "thorough")
