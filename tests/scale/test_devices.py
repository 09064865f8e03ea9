"""Runs the tests that need eight devices in processes of their own: the number is fixed when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MARKERS = {"some": [], "others": ["-m", "thorough"]}
LONG = [
    "model_devices",
    "domain_training",
    "domain_grids",
    "explicit_meshes",
    "ragged_samples",
    "query_points",
]
ROUNDING = ["domain_devices", "domain_latent"]
FILES = [
    "eight_devices",
    *(pytest.param(name, marks=pytest.mark.thorough) for name in LONG),
    *(pytest.param(name, marks=[pytest.mark.thorough, pytest.mark.optimized]) for name in ROUNDING),
]


@pytest.mark.parametrize("cases", ["some", pytest.param("others", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", FILES)
def test_on_eight_fake_devices(name, cases):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", *MARKERS[cases]]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(FOLDER / f"on_{name}.py")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=FOLDER.parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr
