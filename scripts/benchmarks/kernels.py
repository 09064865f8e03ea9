"""Attention with every kernel against softmax's, 2 samples × 4 heads of 1024 nodes, in turns."""

from collections.abc import Callable

import jax
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import compile_call, compile_gradient, run, scratch
from benchmarks.timing import median_seconds_in_turns
from jaxop import kernels, nn
from jaxop._validation import check_name
from jaxop.attention import integral_attention, linear_attention
from jaxop.kernels.per_head import over_heads

ABOUT = {
    "kernels": About(
        "Attention with every kernel",
        "Attention of 2 samples with 4 heads is computed with every kernel, in turns. The ratios divide the time of a "
        "kernel by that of the first kernel in the same run and implementation, the exponentiated dot product of "
        "softmax. Learned features use linear attention, whose ratio is taken to the chunked dot product. Scratch is "
        "the temporary memory of the gradient.",
    ),
}

LEARNED = "learned features"
KERNELS: dict[str, kernels.Kernel] = {
    "exponentiated dot product": kernels.ExpDotProduct(),
    "Gaussian": kernels.Gaussian(0.5),
    "Euclidean distance": kernels.EuclideanDistance(),
    "intersection": kernels.Intersection(0.25),
    "quadratic": kernels.Quadratic(),
    "truncated exponential, degree 2": kernels.TruncatedExponential(2),
    "truncated exponential, degree 8": kernels.TruncatedExponential(8),
    "Gaussian + 2 · quadratic": kernels.Gaussian(0.5) + 2.0 * kernels.Quadratic(),
    "Fourier integral": kernels.FourierIntegral(0.4),
}

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def with_kernel(kernel: kernels.Kernel, implementation: str) -> Attention:
    """Attention of one sample with a kernel."""
    return lambda q, k, v: integral_attention(q, k, v, kernel=kernel, implementation=implementation)


def with_learned_features(depth: int) -> Attention:
    """Linear attention of one sample with learned features of 4 heads."""
    learned = nn.LearnedFeaturesConfig().make(4, depth, rngs=nnx.Rngs(0))

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        by_query, by_key = over_heads(lambda h, q, k: h.features(q, k), learned, (q, k), (1, 1), 1, heads=4)
        return linear_attention(by_query, by_key, v)

    return attention


def main(
    names: tuple[str, ...] = (*KERNELS, LEARNED),
    nodes: int = 1024,
    depths: tuple[int, ...] = (16, 64),
    repeats: int = 15,
) -> None:
    """Prints times of value and gradient, and their ratios to the first kernel.

    Args:
        names: which kernels.
        nodes: number of nodes.
        depths: channels of a head.
        repeats: measured calls.
    """
    title = f"n = {nodes}, depth, kernel"
    print_header(title, "implementation", "forward", "ratio", "with gradient", "ratio", "scratch")
    for name in names:
        check_name(name, "names", (*KERNELS, LEARNED))
    for depth in depths:
        for implementation in ("dense", "chunked"):
            attentions = {n: with_kernel(KERNELS[n], implementation) for n in names if n != LEARNED}
            labels = dict.fromkeys(attentions, implementation)
            if LEARNED in names and implementation == "chunked":
                attentions[LEARNED] = with_learned_features(depth)
                labels[LEARNED] = "linear"
            rows(attentions, labels, nodes, depth, repeats)


def rows(attentions: dict[str, Attention], labels: dict[str, str], nodes: int, depth: int, repeats: int) -> None:
    """Prints a row for each attention, all of them measured in turns."""
    arrays = jax.random.normal(jax.random.key(0), (4, 2, nodes, 4, depth))
    forward = {name: compile_call(jax.vmap(one), *arrays[:3]) for name, one in attentions.items()}
    gradient = {name: compile_gradient(jax.vmap(one), *arrays) for name, one in attentions.items()}
    calls = {f"forward {name}": run(program, *arrays[:3]) for name, program in forward.items()}
    calls |= {f"gradient {name}": run(program, *arrays) for name, program in gradient.items()}
    medians = median_seconds_in_turns(calls, repeats)
    for name, program in gradient.items():
        cells = []
        for what in ("forward", "gradient"):
            seconds, reference = medians[f"{what} {name}"], medians[f"{what} {next(iter(attentions))}"]
            cells += [f"{1e3 * seconds:.0f} ms", f"{seconds / reference:.2f}"]
        print_row(f"{depth}, {name}", labels[name], *cells, scratch(program))
