"""The table every implementation of attention is held against: kernels × implementations × what they can do."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, kernels
from jaxop.attention import grid_averages, integral_attention, read_grid
from jaxop.kernels import Kernel, PerHead

N, M, HEADS, DEPTH, CHANNELS = 19, 37, 2, 5, 3


@dataclasses.dataclass(frozen=True)
class KernelCase:
    name: str
    make: Callable[[], Kernel | PerHead]
    per_head: Callable[[], Sequence[Kernel]] | None = None  # set when the kernel is one per head

    def __str__(self):
        return self.name

    def oracle(self):
        return _oracle(self, jax.config.read("jax_enable_x64"))


class Compiled(Kernel):
    """A kernel by its definition on one pair, as one program."""

    def __init__(self, kernel):
        self.sign, self._value, self._log = kernel.sign, jax.jit(kernel.__call__), jax.jit(kernel.log)

    def __call__(self, a, b):
        return self._value(a, b)

    def log(self, a, b):
        return self._log(a, b)


@functools.lru_cache
def _oracle(case, x64):
    del x64  # in whose precision the kernel is made
    if case.per_head is None:
        return Compiled(case.make())
    return [Compiled(kernel) for kernel in case.per_head()]


def _gaussian(params, q, k):
    return -params["rate"] * jnp.sum((q - k) ** 2)


def _compact(q, k):  # zero beyond distance 3: some rows keep a few keys only
    return jnp.maximum(1.0 - jnp.sum((q - k) ** 2) / 9.0, 0.0) ** 2


def _cosine(q, k):  # not defined at 0
    return jnp.dot(q, k) / (jnp.linalg.norm(q) * jnp.linalg.norm(k))


def _laplace(scales, q, k):  # not differentiable at q = k
    return -jnp.sqrt(jnp.sum(((q - k) * scales) ** 2))


def _signed(q, k):
    return jnp.dot(q, k)


def scales():
    return jnp.asarray(np.linspace(0.5, 1.0, DEPTH))


def _composed():
    """Positive, with parts that vanish and parts that do not: sum, product, multiple and projection."""
    maps = (jnp.asarray(0.4 * np.sin(np.arange(DEPTH * 4.0) + shift).reshape(DEPTH, 4)) for shift in (0.0, 0.5))
    polynomial = kernels.Quadratic(jnp.asarray(0.8)) * kernels.TruncatedExponential(3, clip=True)
    projected = kernels.Projected(polynomial, *maps)
    return kernels.Scaled(projected, jnp.asarray(0.3), "nonnegative") + kernels.Gaussian(jnp.asarray(0.2))


def _signed_composed():
    """Signed parts beside logarithms of others."""

    def feature_map(params, x):
        return jnp.tanh(x @ params)

    params = tuple(jnp.asarray(np.cos(np.arange(DEPTH * 3.0) + shift).reshape(DEPTH, 3)) for shift in (0.0, 0.5))
    features = kernels.LearnedFeatures(feature_map, feature_map, params)
    distance = kernels.EuclideanDistance(jnp.asarray(0.6))
    return features * distance + kernels.Scaled(kernels.Intersection(jnp.asarray(0.2)), jnp.asarray(-0.3), "signed")


KERNELS = [
    KernelCase("exp-dot-product", kernels.ExpDotProduct),
    KernelCase("exp-dot-product-scaled", lambda: kernels.ExpDotProduct(jnp.asarray(0.7))),
    KernelCase(
        "exp-dot-product-per-head",
        lambda: PerHead(kernels.ExpDotProduct(jnp.asarray([0.3, 0.9]))),
        lambda: [kernels.ExpDotProduct(jnp.asarray(0.3)), kernels.ExpDotProduct(jnp.asarray(0.9))],
    ),
    KernelCase("gaussian", lambda: kernels.Gaussian(jnp.asarray(0.4))),
    KernelCase("fourier", lambda: kernels.FourierIntegral(scales())),
    KernelCase(
        "fourier-per-head",
        lambda: PerHead(kernels.FourierIntegral(jnp.asarray([[0.6], [0.9]]), 2)),
        lambda: [kernels.FourierIntegral(jnp.asarray([radius]), 2) for radius in (0.6, 0.9)],
    ),
    KernelCase("euclidean-distance", lambda: kernels.EuclideanDistance(jnp.asarray(0.7))),
    KernelCase(
        "intersection-per-head",
        lambda: PerHead(kernels.Intersection(jnp.asarray([0.5, 0.9]))),
        lambda: [kernels.Intersection(jnp.asarray(scale)) for scale in (0.5, 0.9)],
    ),
    KernelCase("composed", _composed),
    KernelCase("gaussian-pair", lambda: kernels.from_pair(_gaussian, {"rate": jnp.asarray(0.4)}, log=True)),
    KernelCase("compact-pair", lambda: kernels.from_pair(_compact)),
    KernelCase("cosine-pair", lambda: kernels.from_pair(_cosine, log=True)),
    KernelCase("laplace-pair", lambda: kernels.from_pair(_laplace, scales(), log=True)),
]
SIGNED = [
    KernelCase("signed-pair", lambda: kernels.from_pair(_signed, sign="signed")),
    KernelCase("signed-composed", _signed_composed),
]

# of kernels that differ in a detail one stands for all where programs are compared rather than numbers
_DETAILS = ("exp-dot-product-scaled", "exp-dot-product-per-head", "fourier-per-head", "cosine-pair", "laplace-pair")
DISTINCT = [case for case in [*KERNELS, *SIGNED] if case.name not in _DETAILS]

IMPLEMENTATIONS = ["dense", "chunked", "xla"]
PAIRS = [
    (kernel, implementation)
    for kernel in KERNELS
    for implementation in IMPLEMENTATIONS
    if implementation != "xla" or kernel.name in ("exp-dot-product", "exp-dot-product-scaled")
]
# a positive, a compact and a per-head kernel: what does not depend on the kernel is tested with these by default, and
# with all others where studies run
EXEMPLARY = ("exp-dot-product", "compact-pair", "fourier-per-head")
# of kernels that differ in a detail or are made of others, one goes through all invariants: the rest through oracles
# and derivatives
_SAME = ("cosine-pair", "laplace-pair", "gaussian-pair", "exp-dot-product-scaled", "composed")
CORE = [(case, implementation) for case, implementation in PAIRS if case.name not in _SAME or implementation == "xla"]


def exemplary(rows, names=EXEMPLARY):
    """Rows for ``parametrize``, each a case or a tuple that begins with one; cases of other names are studies."""
    rows = [row if isinstance(row, tuple) else (row,) for row in rows]
    return [pytest.param(*row, marks=() if row[0].name in names else pytest.mark.study) for row in rows]


def inputs(dtype=jnp.float32, seed=0, n=N, m=M):
    rng = np.random.default_rng(seed)
    shapes = [(n, HEADS, DEPTH), (m, HEADS, DEPTH), (m, HEADS, CHANNELS)]
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    return (*arrays, (rng.uniform(0.5, 1.5, m) / m).astype(np.float64 if dtype == jnp.float64 else np.float32))


def on_grid(values, radius):
    """Averages of 2 heads of 4 channels over several blocks of nodes, read at these nodes."""
    grid, by_head = domains.box((4, 64), rule="midpoint"), jnp.broadcast_to(radius, (2,))
    options = {"radius": by_head, "background": jnp.ones((2, 4)), "share": jnp.ones(2)}
    points = jnp.asarray(np.random.default_rng(1).random((len(values), 2), np.float32))
    z = grid_averages(points, values, jnp.ones(len(values)), grid, **options)
    return read_grid(z, grid, points, radius=by_head)


def replaced(array, index, value):
    """A copy with other entries."""
    array = np.array(array)
    array[index] = value
    return array


@functools.cache
def attend(case, implementation, **options):
    """The jitted call of one case; the kernel is built inside, in the precision of the test."""

    @jax.jit
    def call(query, key, value, weights, mask=None):
        return integral_attention(
            query,
            key,
            value,
            weights,
            kernel=case.make(),
            implementation=implementation,
            mask=mask,
            **options,
        )

    return call


@functools.cache
def differentiate(case, implementation):
    """The jitted derivatives of Σ_i sin A_i over some rows, in query, key, value and weights, and A."""

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2, 3), has_aux=True)
    def call(query, key, value, weights, mask, rows):
        out = attend(case, implementation)(query, key, value, weights, mask)
        return jnp.sum(jnp.where(rows[:, None, None], jnp.sin(out), 0)), out

    return call


@functools.cache
def dense_and_chunked(case, is_causal):
    """Jitted: (derivatives of Σ sin A in the kernel, query, key, value and weights; A) of either implementation."""

    def loss(kernel, query, key, value, weights, mask, implementation):
        out = integral_attention(
            query,
            key,
            value,
            weights,
            kernel=kernel,
            mask=mask,
            is_causal=is_causal,
            normalize=case not in SIGNED,
            implementation=implementation,
        )
        return jnp.sum(jnp.sin(out)), out

    @jax.jit
    def call(kernel, query, key, value, weights, mask=None):
        of = jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)
        return [of(kernel, query, key, value, weights, mask, i) for i in ("dense", "chunked")]

    return call
