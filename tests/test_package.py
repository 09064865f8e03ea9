"""Imports point one way, and `import jaxop` needs the core dependencies only."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxop

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxop"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
ALLOWED = {
    "domains": set(),
    "kernels": set(),
    "spectral": {"domains", "kernels"},
    "attention": {"domains", "kernels", "spectral"},
    "schwarz": {"domains", "kernels", "attention"},
    "flows": {"domains", "kernels", "attention"},
    "kernel_machines": {"domains", "kernels", "attention"},
    "nn": {"domains", "kernels", "spectral", "attention", "schwarz", "flows", "kernel_machines"},
    "operators": {"domains", "kernels", "spectral", "attention", "schwarz", "flows", "nn"},
    "transformers": {"domains", "kernels", "nn", "operators"},
    "distillation": {"kernels", "attention", "kernel_machines", "nn"},
    "data": {"domains"},
    "training": {"domains", "data", "operators", "transformers"},
    "dynamics": {"domains", "data", "nn", "operators", "training"},
    "experiments": {"domains", "nn", "data", "operators", "training", "dynamics"},
    "testing": {"domains", "kernels"},
}
EXTRAS = (
    "scipy",
    "h5py",
    "diffrax",
    "equinox",
    "exponax",
    "tyro",
    "rich",
    "matplotlib",
    "torch",
    "tensorboardX",
    "wandb",
    "sklearn",
    "meshio",
    "xarray",
    "zarr",
)


def files_of(layer):
    return [PACKAGE / f"{layer}.py"] if (PACKAGE / f"{layer}.py").exists() else sorted((PACKAGE / layer).rglob("*.py"))


def imported_modules(path):
    """Names of this package's modules that a file imports, inside functions too, but for those only checkers read."""
    tree = ast.parse(path.read_text())
    for_checkers = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    unseen = {inner for node in for_checkers for inner in ast.walk(node)}
    for node in set(ast.walk(tree)) - unseen:
        if isinstance(node, ast.ImportFrom):
            deep = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module or "" for name in deep]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.partition(".")[0] == "jaxop")


def imported_layers(path):
    parts = (name.split(".") for name in imported_modules(path))
    return [part[1] for part in parts if len(part) > 1 and not part[1].startswith("_")]


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_imports_point_one_way(layer):
    for path in files_of(layer):
        for other in imported_layers(path):
            assert other == layer or other in ALLOWED[layer], f"{path.name} of {layer} imports {other}"


def test_no_module_imports_itself_through_others():
    sorter = graphlib.TopologicalSorter({name: set(imported_modules(path)) - {name} for name, path in MODULES.items()})
    assert len(list(sorter.static_order())) >= len(MODULES)


@pytest.mark.parametrize("folder", ["jaxop", "scripts", "tests"])
def test_no_file_is_long(folder):
    long = {path.name: n for path in (ROOT / folder).rglob("*.py") if (n := len(path.read_text().splitlines())) > 500}
    assert not long


def test_every_layer_is_listed():
    layers = {p.stem for p in PACKAGE.iterdir() if (p.is_dir() or p.suffix == ".py") and not p.name.startswith("_")}
    assert layers - {"models"} == set(ALLOWED) == set(jaxop._PARTS)
    assert not [*(PACKAGE / "models").rglob("*.py")]


def test_parts_are_loaded_when_they_are_used():
    code = (
        "import importlib.metadata, sys, jaxop; print('jax' in sys.modules, 'jaxop.attention' in sys.modules); "
        "print(jaxop.attention.__name__, jaxop.__version__ == importlib.metadata.version('jaxop'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False", "jaxop.attention", "True"]


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("attention.fit_schwarz", "fit"),
        ("attention.SchwarzFactors", "Factors"),
        ("domains.Cover", "Cover"),
        ("nn.fidelity", "fidelity"),
        ("operators.SequenceTransformer", "SequenceTransformer"),
        ("training.plot_errors", "plot_errors"),
    ],
)
def test_names_that_have_moved_are_found_and_say_where(name, new):
    part, _, attribute = name.partition(".")
    with pytest.warns(DeprecationWarning, match=rf"jaxop.{name} is jaxop\.\w+\.{new} now"):
        found = getattr(getattr(jaxop, part), attribute)
    assert found.__module__.split(".")[1] != part
    assert jaxop.domains.decompose is jaxop.schwarz.decompose


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


def _in_a_string(place):
    start = (place["location"]["row"], place["location"]["column"] - 1)
    strings = (
        node
        for node in ast.walk(ast.parse(Path(place["filename"]).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return any((text.lineno, text.col_offset) <= start < (text.end_lineno, text.end_col_offset) for text in strings)


def test_every_name_is_defined():
    """The linter leaves undefined names alone, as axis names of shapes are undefined; outside strings none may be."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821", "--output-format", "json", "--exit-zero"]
    printed = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert [place for place in json.loads(printed) if not _in_a_string(place)] == []
