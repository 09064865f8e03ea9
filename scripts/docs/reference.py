"""The reference: the public names of every part of jaxop, and one page for each part."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = (
    "domains",
    "kernels",
    "attention",
    "spectral",
    "schwarz",
    "flows",
    "kernel_machines",
    "nn",
    "operators",
    "transformers",
    "distillation",
    "data",
    "training",
    "dynamics",
    "experiments",
    "testing",
)


def public_names(part: str) -> list[str]:
    """Returns the public names of a part: what its package exports, or what its module defines."""
    package = ROOT / "jaxop" / part / "__init__.py"
    module = ast.parse((package if package.exists() else ROOT / "jaxop" / f"{part}.py").read_text())
    names = []
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
    if not package.exists():
        for node in module.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return sorted((name for name in names if not name.startswith("_")), key=lambda name: (_kind(name), name.lower()))


def _kind(name: str) -> int:
    """Functions first, then classes, then constants."""
    return 2 if name.isupper() else int(name[0].isupper())


def page(part: str) -> str:
    """Returns the page of a part in Markdown, for mkdocstrings."""
    about = f"::: jaxop.{part}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}\n"
    entries = "\n".join(f"::: jaxop.{part}.{name}\n" for name in public_names(part))
    return f"# jaxop.{part}\n\n{about}\n{entries}"
