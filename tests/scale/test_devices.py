"""Runs the tests that need several devices in processes of their own: the number is fixed when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("on_*_devices.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_fake_devices(path):
    count = {"four": 4, "eight": 8}[path.stem.split("_")[1]]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", str(path)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=path.parent.parent.parent,
    )
    assert run.returncode == 0, run.stdout + run.stderr
