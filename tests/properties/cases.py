"""The table every implementation of attention is held against: kernels × implementations × what they can do."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import kernels
from jaxop.attention import integral_attention
from jaxop.kernels import Kernel

N, M, HEADS, DEPTH, CHANNELS = 19, 37, 2, 5, 3


@dataclasses.dataclass(frozen=True)
class KernelCase:
    name: str
    make: Callable[[], Kernel]
    per_head: Callable[[], Sequence[Kernel]] | None = None  # set when the kernel carries a head axis

    def __str__(self):
        return self.name

    @property
    def axis(self):
        return None if self.per_head is None else 0

    def oracle(self):
        return self.make() if self.per_head is None else self.per_head()


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


def _composed():
    """Positive, with parts that vanish and parts that do not: sum, product, multiple and projection."""
    maps = (0.4 * jnp.sin(jnp.arange(DEPTH * 4.0) + shift).reshape(DEPTH, 4) for shift in (0.0, 0.5))
    polynomial = kernels.Quadratic(jnp.asarray(0.8)) * kernels.TruncatedExponential(3, clip=True)
    projected = kernels.Projected(polynomial, *maps)
    return kernels.Scaled(projected, jnp.asarray(0.3), "nonnegative") + kernels.Gaussian(jnp.asarray(0.2))


def _signed_composed():
    """Signed parts beside logarithms of others."""

    def feature_map(params, x):
        return jnp.tanh(x @ params)

    params = tuple(jnp.cos(jnp.arange(DEPTH * 3.0) + shift).reshape(DEPTH, 3) for shift in (0.0, 0.5))
    features = kernels.LearnedFeatures(feature_map, feature_map, params)
    distance = kernels.EuclideanDistance(jnp.asarray(0.6))
    return features * distance + kernels.Scaled(kernels.Intersection(jnp.asarray(0.2)), jnp.asarray(-0.3), "signed")


KERNELS = [
    KernelCase("exp-dot-product", kernels.ExpDotProduct),
    KernelCase("exp-dot-product-scaled", lambda: kernels.ExpDotProduct(jnp.asarray(0.7))),
    KernelCase(
        "exp-dot-product-per-head",
        lambda: kernels.ExpDotProduct(jnp.asarray([0.3, 0.9])),
        lambda: [kernels.ExpDotProduct(jnp.asarray(0.3)), kernels.ExpDotProduct(jnp.asarray(0.9))],
    ),
    KernelCase("gaussian", lambda: kernels.Gaussian(jnp.asarray(0.4))),
    KernelCase("fourier", lambda: kernels.FourierIntegral(jnp.linspace(0.5, 1.0, DEPTH))),
    KernelCase(
        "fourier-per-head",
        lambda: kernels.FourierIntegral(jnp.asarray([[0.6], [0.9]]), 2),
        lambda: [kernels.FourierIntegral(jnp.asarray([radius]), 2) for radius in (0.6, 0.9)],
    ),
    KernelCase("euclidean-distance", lambda: kernels.EuclideanDistance(jnp.asarray(0.7))),
    KernelCase(
        "intersection-per-head",
        lambda: kernels.Intersection(jnp.asarray([0.5, 0.9])),
        lambda: [kernels.Intersection(jnp.asarray(scale)) for scale in (0.5, 0.9)],
    ),
    KernelCase("composed", _composed),
    KernelCase("gaussian-pair", lambda: kernels.from_pair(_gaussian, {"rate": jnp.asarray(0.4)}, log=True)),
    KernelCase("compact-pair", lambda: kernels.from_pair(_compact)),
    KernelCase("cosine-pair", lambda: kernels.from_pair(_cosine, log=True)),
    KernelCase("laplace-pair", lambda: kernels.from_pair(_laplace, jnp.linspace(0.5, 1.0, DEPTH), log=True)),
]
SIGNED = [
    KernelCase("signed-pair", lambda: kernels.from_pair(_signed, sign="signed")),
    KernelCase("signed-composed", _signed_composed),
]

IMPLEMENTATIONS = ["dense", "chunked", "xla"]
PAIRS = [
    (kernel, implementation)
    for kernel in KERNELS
    for implementation in IMPLEMENTATIONS
    if implementation != "xla" or kernel.name in ("exp-dot-product", "exp-dot-product-scaled")
]


def inputs(dtype=jnp.float32, seed=0, n=N, m=M):
    rng = np.random.default_rng(seed)
    shapes = [(n, HEADS, DEPTH), (m, HEADS, DEPTH), (m, HEADS, CHANNELS)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    return (*arrays, jnp.asarray(rng.uniform(0.5, 1.5, m) / m, jnp.float64 if dtype == jnp.float64 else jnp.float32))


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
            kernel_axis=case.axis,
            implementation=implementation,
            mask=mask,
            **options,
        )

    return call
