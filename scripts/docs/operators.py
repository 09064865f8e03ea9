"""The table "which operator takes which domain", made by calling every operator on every kind of domain."""

import dataclasses
import functools
import hashlib
import math
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxop
from jaxop import domains, operators
from jaxop.domains import Domain
from jaxop.nn import LatentAttentionConfig, SchwarzAttentionConfig

ROOT = Path(__file__).parents[2]
PACKAGE = Path(jaxop.__file__).parent
CACHE = ROOT / ".cache" / "docs"

TINY = {
    "width": 8,
    "heads": 2,
    "layers": 1,
    "feedforward": 8,
    "patches": 2,
    "modes": 2,
    "smoothing_modes": 2,
    "reference": 8,
}
MARKS = {True: "✓", False: "–"}
REFUSALS = (TypeError, ValueError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        operator: name of the model in `jaxop.operators.models`.
        setting: what differs from the default settings, in the terms of the config; "" for none.
        fields: the fields of the config for n nodes.
    """

    operator: str
    setting: str = ""
    fields: Callable[[int], dict[str, Any]] = lambda n: {}

    def build(self, dim: int, n: int) -> Any:
        """Returns a tiny operator for functions of one channel."""
        config = operators.CONFIGS[self.operator]
        known = {field.name for field in dataclasses.fields(config)}
        fields = {name: value for name, value in TINY.items() if name in known} | self.fields(n)
        return _build(config(1, 1, dim=dim, **fields))


@functools.cache
def _build(config: Any) -> Any:
    return operators.build(config, rngs=nnx.Rngs(0))


def rows() -> list[Row]:
    """Returns one row for every operator, and one for each setting that changes what an operator takes."""
    found = []
    for name, config in operators.CONFIGS.items():
        fields = {field.name for field in dataclasses.fields(config)}
        few: dict[str, Any] = {"attention": LatentAttentionConfig(latents=8)} if name == "latent" else {}
        found.append(Row(name, "", lambda n, few=few: few))
        if "decoder_layers" in fields:
            found.append(Row(name, "decoder_layers=1", lambda n, few=few: few | {"decoder_layers": 1}))
        if "schwarz" in fields:
            found.append(Row(name, "schwarz=…", _schwarz))
    return found


def _schwarz(n: int) -> dict[str, Any]:
    return {"schwarz": SchwarzAttentionConfig(subdomains=max(2, n // 32))}


def examples() -> dict[str, Domain]:
    """Returns the domains of the table, by the heads of its columns."""
    random = np.random.default_rng(0)
    triangles = [[0, 1, 4], [0, 4, 3], [1, 2, 5], [1, 5, 4], [3, 4, 7], [3, 7, 6], [4, 5, 8], [4, 8, 7]]
    plane = np.stack(np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 3), indexing="ij"), -1).reshape(-1, 2)
    bump = np.sin(np.pi * plane).prod(axis=1)
    return {
        "grid of equal weights": domains.box((8, 8), rule="midpoint"),
        "periodic grid": domains.box((8, 8), rule="periodic"),
        "grid of other weights": domains.box((8, 8), rule="trapezoid"),
        "uneven nodes": domains.from_samples(np.sort(random.random(16, np.float32))),
        "scattered nodes": domains.monte_carlo(random.random((24, 2), np.float32)),
        "triangle mesh": domains.triangle_mesh(plane.astype(np.float32), triangles),
        "surface in space": domains.triangle_mesh(np.column_stack([plane, bump]).astype(np.float32), triangles),
        "volume": domains.from_points(random.random((24, 3), np.float32)),
        "curve": domains.line_mesh(np.column_stack([plane, bump]).astype(np.float32), [[i, i + 1] for i in range(8)]),
        "sphere": domains.sphere(4),
    }


def accepts(operator: Any, domain: Domain, at: Domain | None = None) -> bool:
    """Calls an operator; returns False if jaxop itself refuses the call.

    Raises:
        Exception: any other error of the call.
    """
    try:
        outputs = operator(jnp.ones((domain.size, 1)), domain, at=at)
    except REFUSALS as error:
        origin = traceback.extract_tb(error.__traceback__)[-1].filename
        if not Path(origin).is_relative_to(PACKAGE):
            raise
        return False
    return bool(jnp.isfinite(outputs).all())


def is_quadrature(operator: Any) -> bool:
    """Splits one node into two of half its weight; returns whether the outputs stay the same."""
    points = np.random.default_rng(1).random((24, 2)).astype(np.float32)
    weights = np.full(24, 1 / 24, np.float32)
    halves = weights.copy()
    halves[-1] /= 2
    split = domains.from_nodes(np.concatenate([points, points[-1:]]), np.append(halves, halves[-1]))
    before = operator(jnp.sin(points[:, :1]), domains.from_nodes(points, weights))
    after = operator(jnp.sin(split.points[:, :1]), split)
    return bool(np.allclose(before, after[:24], atol=1e-5))


def exponent(row: Row, sizes: tuple[int, int] = (256, 512)) -> float:
    """Returns p in flops ∝ n^p, from the floating-point operations that XLA counts on two grids of an interval."""

    def flops(n: int) -> float:
        domain = domains.interval(n, rule="midpoint")
        call = jax.jit(lambda model, values, domain: model(values, domain))
        cost = call.lower(row.build(1, n), jnp.ones((n, 1)), domain).compile().cost_analysis()
        if cost is None:
            raise RuntimeError("XLA does not count operations on this device; build the documentation on a CPU.")
        return cost["flops"]

    small, large = sizes
    return math.log(flops(large) / flops(small)) / math.log(large / small)


def checked_by(operator: str) -> str:
    """Returns the test module with the name of an operator, or the one that names it or its class most often.

    Raises:
        FileNotFoundError: if no test module does.
    """
    kind = getattr(operators.models()[operator].module, "__name__", operator)
    paths = [path for folder in ("operators", "nn") for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    for path in paths:
        if path.stem == f"test_{operator}":
            return path.name
    mentions = {path: len(re.findall(rf'\b{kind}\b|"{operator}"', path.read_text())) for path in paths}
    best = max(paths, key=lambda path: mentions[path])
    if not mentions[best]:
        raise FileNotFoundError(f"no module of tests/operators and tests/nn names {kind} or {operator!r}.")
    return best.name


def line(row: Row) -> list[str]:
    """Returns the cells of a row."""
    model = operators.models()[row.operator].module
    name = f"[`{row.operator}`][jaxop.operators.{getattr(model, '__name__', '')}]"
    if row.setting:
        name += f" with `{row.setting}`"
    cells, plain = [], True
    for title, domain in examples().items():
        accepted = accepts(row.build(domain.dim, domain.size), domain)
        cells.append(MARKS[accepted])
        plain = plain and accepted == title.endswith(("equal weights", "periodic grid"))
    grid = domains.box((8, 8), rule="midpoint")
    cells.append(MARKS[accepts(row.build(2, 64), grid, domains.box((6, 6), rule="midpoint"))])
    cells.append(MARKS[plain])
    scattered = cells[list(examples()).index("scattered nodes")] == MARKS[True]
    cells.append(MARKS[is_quadrature(row.build(2, 24))] if scattered else "grid only")
    return [name, *cells, f"n<sup>{exponent(row):.1f}</sup>", f"`{checked_by(row.operator)}`"]


def table() -> str:
    """Returns the table in Markdown. It is measured again whenever the package or this file changes."""
    sources = [Path(__file__), *sorted(PACKAGE.rglob("*.py"))]
    digest = hashlib.sha256(jax.__version__.encode())
    for path in sources:
        digest.update(path.read_bytes())
    cached = CACHE / f"operators-{digest.hexdigest()[:16]}.md"
    if not cached.exists():
        heads = [
            "operator",
            *examples(),
            "output on other nodes",
            "needs equal weights",
            "uses quadrature",
            "operations",
            "checked by",
        ]
        lines = [heads, ["---"] * len(heads), *map(line, rows())]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.replace(cached)
    return cached.read_text()


if __name__ == "__main__":
    print(table())
