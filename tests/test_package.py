"""Imports point one way, and `import jaxop` needs the core dependencies only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxop"
ALLOWED = {
    "domains": set(),
    "kernels": set(),
    "spectral": {"domains", "kernels"},
    "attention": {"domains", "kernels", "spectral"},
    "flows": {"kernels", "attention"},
    "kernel_machines": {"kernels", "attention"},
    "nn": {"domains", "kernels", "spectral", "attention", "flows", "kernel_machines"},
    "operators": {"domains", "kernels", "spectral", "attention", "flows", "nn"},
    "data": {"domains"},
    "training": {"domains", "data", "operators"},
}
EXTRAS = (
    "scipy",
    "h5py",
    "diffrax",
    "equinox",
    "tyro",
    "rich",
    "matplotlib",
    "torch",
    "tensorboardX",
    "wandb",
    "sklearn",
)


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxop" and len(parts) > 1 and not parts[1].startswith("_"):
                yield parts[1]


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_imports_point_one_way(layer):
    for path in (PACKAGE / layer).rglob("*.py"):
        for other in imported_layers(path):
            assert other == layer or other in ALLOWED[layer], f"{path.name} of {layer} imports {other}"


def test_every_layer_is_listed():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("_")} == set(ALLOWED)


def test_import_needs_the_core_dependencies_only():
    modules = ", ".join(f"jaxop.{layer}" for layer in sorted(ALLOWED))
    # some import extras if they find them
    core = "jax, jax.experimental.sparse, flax.nnx, optax, orbax.checkpoint, chex, jaxtyping, numpy"
    code = (
        f"import sys, {core}; from orbax.checkpoint import v1; before = set(sys.modules); "
        f"import jaxop, jaxop.testing, {modules}; print(*sorted(m for m in {EXTRAS} if m in set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_import_changes_no_global_switch():
    code = (
        "import jax; before = dict(jax.config.values); import jaxop.training, jaxop.operators; "
        "print([k for k, v in jax.config.values.items() if before.get(k) != v])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
