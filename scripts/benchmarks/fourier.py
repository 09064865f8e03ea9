"""Fourier integral attention, 2 samples × 4 heads, against the obvious jnp code, PyTorch's autograd and KeOps."""

import importlib.util

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import (
    NOT_RUN,
    SKIP_ABOVE,
    compile_call,
    compile_gradient,
    scratch,
    scratch_bytes,
    seconds_of_program,
)
from benchmarks.timing import measured_by
from jaxop.attention import integral_attention
from jaxop.kernels import FourierIntegral

ABOUT = {
    "fourier": About(
        "Fourier integral attention against jnp, PyTorch and KeOps",
        "The kernel matrix of the Fourier integral kernel, its attention and the gradient of that are computed for 2 "
        "samples with 4 heads. The ratios divide the time of the other code by the time of jaxop: above 1 jaxop is "
        "faster. The baselines are the obvious jnp code, PyTorch with autograd, and KeOps. A baseline that needs more "
        "than 8 GB of scratch is not run, nor is KeOps beyond 512 nodes. The last column divides the operations of "
        "the formulas per second by the rate of products of matrices on this machine.",
        packages=(
            "torch",
            "pykeops",
        ),
    ),
}

KERNEL = FourierIntegral(1.0)


def matrix(q: jax.Array, k: jax.Array) -> jax.Array:
    """The kernel matrices, (b, n, h, d) and (b, m, h, d) to (b, h, n, m)."""
    return jnp.exp(jax.vmap(jax.vmap(KERNEL.tile, in_axes=1))(q, k))


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of every sample."""
    return jax.vmap(lambda q, k, v: integral_attention(q, k, v, kernel=KERNEL))(q, k, v)


def obvious_matrix(q: jax.Array, k: jax.Array) -> jax.Array:
    """Π_d sinc(q_d − k_d)⁴, as one would write it."""
    return jnp.prod(jnp.sinc((q[:, :, None] - k[:, None]) / jnp.pi) ** 4, axis=-1)


def obvious(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The published form: rows divided by their sum plus 1e-6."""
    kernel = obvious_matrix(q, k)
    return jnp.einsum("bijh,bjhc->bihc", kernel, v) / (jnp.sum(kernel, axis=2)[..., None] + 1e-6)


def matrix_product_rate() -> float:
    """Operations per second of this machine in products of square matrices."""
    square = jnp.ones((1024, 1024))
    return 2 * 1024**3 / seconds_of_program(jax.jit(jnp.matmul), square, square, repeats=20)


def main(nodes: tuple[int, ...] = (512, 2048), depths: tuple[int, ...] = (16, 64), repeats: int = 5) -> None:
    """Prints the times of the kernel matrix, of attention, and of its gradient.

    Args:
        nodes: numbers of nodes.
        depths: channels of a head.
        repeats: measured calls.
    """
    rate = matrix_product_rate()
    print(f"\nmatrix products on this machine: {1e-9 * rate:.0f} GFlop/s")
    others = [title for name in ("obvious jnp", "PyTorch", "KeOps") for title in (name, "ratio")]
    print_header("n, depth", "what", "jaxop", *others, "scratch jaxop", "scratch jnp", "of rate")
    for n in nodes:
        for depth in depths:
            rows(n, depth, rate, repeats)


def rows(n: int, depth: int, rate: float, repeats: int) -> None:
    """Prints the three rows of a size."""
    arrays = 0.3 * jax.random.normal(jax.random.key(0), (4, 2, n, 4, depth))
    torch, keops = baselines(n, depth, repeats)
    programs = {
        "matrix": (2, compile_call, matrix, obvious_matrix),
        "forward": (3, compile_call, attend, obvious),
        "gradient": (4, compile_gradient, attend, obvious),
    }
    for what, (count, make, function, reference) in programs.items():
        operands = arrays[:count]
        ours, plain = make(function, *operands), make(reference, *operands)
        seconds = seconds_of_program(ours, *operands, repeats=repeats)
        plain_seconds = None
        if scratch_bytes(plain) <= SKIP_ABOVE:
            plain_seconds = seconds_of_program(plain, *operands, repeats=max(2, repeats // 2))
        cells = [f"{1e3 * seconds:.0f} ms"]
        for other in (plain_seconds, torch.get(what), keops.get(what)):
            cells += [f"{1e3 * other:.0f} ms", f"{other / seconds:.1f}×"] if other else [NOT_RUN, ""]
        # operations per pair and channel of the formulas, forward 12, with gradient 12 + 12 + 24
        operations = 8 * n * n * depth * (48 if what == "gradient" else 12)
        print_row(f"{n}, {depth}", what, *cells, scratch(ours), scratch(plain), f"{operations / seconds / rate:.0%}")


def baselines(n: int, depth: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the seconds of PyTorch and of KeOps for each result; empty if one is not installed or would not fit."""
    has_torch = importlib.util.find_spec("torch") is not None
    has_keops = has_torch and importlib.util.find_spec("pykeops") is not None
    sizes = f"--nodes={n}", f"--depth={depth}", f"--repeats={repeats}"
    autograd = 32 * n * n * depth * 8  # bytes that PyTorch's backward pass keeps, about
    torch = measured_by("torch_fourier.py", *sizes) if has_torch and autograd < SKIP_ABOVE else {}
    # KeOps takes seconds at the smallest size already
    keops = measured_by("keops_fourier.py", *sizes) if has_keops and n <= 512 else {}
    return torch, keops
