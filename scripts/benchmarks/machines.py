"""Binary kernel machines: the closed form against scikit-learn on the same problem, and large domains."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from rich import progress
from rich.console import Console
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.timing import median_seconds, peak_memory, seconds_of
from jaxop import kernel_machines, kernels

ABOUT = {
    "machines": About(
        "Fits of binary kernel machines",
        "The closed form on all pairs of two domains is compared with `KernelRidge` of scikit-learn on the same "
        "problem: the ratio in the last row says how many times longer scikit-learn takes, and its name says how far "
        "the predictions differ. The other rows are fits of large problems: listed responses of some pairs by "
        "conjugate gradients with landmarks, and all pairs in both spans. They are run once. The memory is the peak "
        "of the process so far.",
        packages=("scikit-learn",),
    ),
}

PENALTY = 0.1


def main(
    points: int = 100,
    listed_points: int = 10_000,
    observed: int = 1_000_000,
    landmarks: tuple[int, ...] = (256, 512),
    dense_points: int = 2000,
    repeats: int = 5,
) -> None:
    """Prints one row per fit.

    Args:
        points: of each domain, for the comparison with scikit-learn.
        listed_points: of each domain, for responses that are listed.
        observed: number of listed responses.
        landmarks: of each domain, one fit each.
        dense_points: of each domain, for dense responses of every span.
        repeats: measured calls of the comparison.
    """
    print_header("fit", "seconds", "ratio", "peak memory of the process so far")
    x, y, responses = smooth_pairs(points)
    mine = median_seconds(lambda: fit_product(x, y, responses).coefficients.block_until_ready(), repeats)
    print_fit(f"{points} × {points} pairs, product of Gaussians", mine)
    listed(listed_points, observed, landmarks)
    dense(dense_points)
    ridge(x, y, responses, mine)  # last: scikit-learn takes threads and memory


def print_fit(name: str, seconds: float, ratio: str = "") -> None:
    """Prints one row."""
    print_row(name, f"{seconds:.3f} s", ratio, peak_memory())


def smooth_pairs(points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of two domains and noisy responses of every pair."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, points, 3)).astype(np.float32)
    return x, y, np.sin(x @ y.T) + 0.1 * rng.normal(size=(points, points)).astype(np.float32)


def fit_product(x: np.ndarray, y: np.ndarray, responses: np.ndarray) -> kernel_machines.BinaryMachine:
    """The closed form for a product of Gaussians."""
    return kernel_machines.fit(kernels.Gaussian(0.5), x, y, responses, span="product", regularization=PENALTY)


def ridge(x: np.ndarray, y: np.ndarray, responses: np.ndarray, mine: float) -> None:
    """scikit-learn's KernelRidge on all pairs of the same problem."""
    from sklearn.kernel_ridge import KernelRidge

    count = len(x)
    pairs = np.concatenate([np.repeat(x, count, axis=0), np.tile(y, (count, 1))], axis=1)
    gamma = 0.5 / 3**0.5  # the product of both Gaussians is the Gaussian on pairs
    machine = KernelRidge(kernel="rbf", gamma=gamma, alpha=PENALTY)  # pyright: ignore[reportArgumentType]
    theirs = seconds_of(lambda: machine.fit(pairs, responses.ravel()))
    difference = np.abs(machine.predict(pairs[:count]) - fit_product(x, y, responses)(x[:1], y)[0]).max()
    name = f"{count} × {count} pairs, scikit-learn's KernelRidge (differs by {difference:.0e})"
    print_fit(name, theirs, f"{theirs / mine:.0f}×")


def listed(points: int, observed: int, landmarks: tuple[int, ...]) -> None:
    """Listed responses of some of many pairs, with landmarks."""
    rng = np.random.default_rng(1)
    x, y = jax.random.normal(jax.random.key(2), (2, points, 4)) / 2
    held_out = observed // 100
    i, j = np.divmod(rng.choice(points**2, observed + held_out, replace=False), points)
    truth = np.sin(2 * np.einsum("kd,kd->k", np.asarray(x)[i], np.asarray(y)[j]))
    noisy = (truth + 0.1 * rng.normal(size=truth.size)).astype(np.float32)
    indices = jnp.asarray(np.stack([i, j], axis=1)[:observed])
    responses = BCOO((jnp.asarray(noisy[:observed]), indices), shape=(points, points))
    for count in landmarks:
        found: list[kernel_machines.BinaryMachine] = []
        seconds = seconds_of(lambda count=count, found=found: found.append(fit_listed(x, y, responses, count)))
        (machine,) = found
        predicted = np.asarray(machine.pairs(x[i[observed:]], y[j[observed:]]))
        error = np.sqrt(np.mean((predicted - truth[observed:]) ** 2))
        size = f"{points:,} × {points:,}, {observed:,} observed, {count} landmarks"
        print_fit(f"{size}, {int(machine.steps)} steps (held-out error {error:.3f})", seconds)


def fit_listed(x: jax.Array, y: jax.Array, responses: BCOO, landmarks: int) -> kernel_machines.BinaryMachine:
    """A fit with landmarks, below a bar that shows its steps."""
    with progress.Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{landmarks} landmarks", total=None)
        machine = kernel_machines.fit(
            kernels.Gaussian(1.0),
            x,
            y,
            responses,
            landmarks=landmarks,
            rng_key=jax.random.key(1),
            tolerance=1e-3,
            progress=lambda step, _: bar.update(task, completed=step),
        )
        machine.coefficients.block_until_ready()
    return machine


def dense(points: int) -> None:
    """Dense responses, in every span."""
    x, y = jax.random.normal(jax.random.key(0), (2, points, 8))
    responses = jnp.sin(x @ y.T)

    def fit(span: str) -> Callable[[], jax.Array]:
        kernel = kernels.Gaussian(0.5)
        return lambda: kernel_machines.fit(kernel, x, y, responses, span=span).coefficients.block_until_ready()

    for span in kernel_machines.SPANS:
        print_fit(f"{points} × {points} pairs, span {span}, compiled and run once", seconds_of(fit(span)))
