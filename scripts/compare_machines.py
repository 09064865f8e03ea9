"""Binary kernel machines on real pairs: ratings of films by users, against a low-rank factorisation.

    python scripts/compare_machines.py

MovieLens-100k, root mean square error in stars. One fifth of the ratings is held out: pairs of known users and films,
all ratings of new users, or all of new films, where a factorisation has nothing but means to offer. What is free in a
machine (the width of its kernel, λ, how much an identity weighs) is chosen by a further tenth. Features: age, gender
and occupation; year and genres. Data: see real_data.py. The factorisation is that of scikit-surprise, of the extra
"benchmark".
"""

import dataclasses
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from real_data import CACHE, Ratings, fetch, movielens

from jaxop import kernel_machines
from jaxop.experiments.comparison import check_options, options_of
from jaxop.experiments.terminal import run_command
from jaxop.kernels import Gaussian

SPLITS = ("pairs", "new users", "new films")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How often, and where the data are.

    Attributes:
        seeds: of what is held out.
        splits: of "pairs", "new users" and "new films".
        landmarks: of the symmetrised machine, whose domain is that of users and films together.
        max_steps: of the conjugate gradients.
        cache: where the package is kept.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    splits: tuple[str, ...] = SPLITS
    landmarks: int = 600
    max_steps: int = 60
    cache: Path = CACHE

    def __post_init__(self):
        check_options(self)
        for name in self.splits:
            if name not in SPLITS:
                raise SystemExit(f"splits: {name!r} is none; choose from " + ", ".join(map(repr, SPLITS)) + ".")


class Set(NamedTuple):
    """Some of the ratings, as a list and as a matrix with its mask."""

    rows: np.ndarray
    columns: np.ndarray
    ratings: np.ndarray
    matrix: np.ndarray
    mask: np.ndarray


def choose(ratings: Ratings, chosen: np.ndarray) -> Set:
    """The ratings of some numbers."""
    rows, columns, values = (a[chosen] for a in (ratings.rows, ratings.columns, ratings.ratings))
    matrix = np.zeros((len(ratings.users), len(ratings.films)), np.float32)
    mask = np.zeros(matrix.shape, bool)
    matrix[rows, columns], mask[rows, columns] = values, True
    return Set(rows, columns, values, matrix, mask)


def hold_out(ratings: Ratings, split: str, share: float, seed: int, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of ratings to keep and to hold out: single ones, or all of some users or films."""
    rng = np.random.default_rng(seed)
    if split == "pairs":
        out = rng.random(among.size) < share
    else:
        side, count = (
            (ratings.rows, len(ratings.users))
            if split == "new users"
            else (
                ratings.columns,
                len(ratings.films),
            )
        )
        out = (rng.random(count) < share)[side[among]]
    return among[~out], among[out]


def error(predict: Callable[[Set], np.ndarray], held_out: Set) -> float:
    """Root mean square error of predictions, cut to 1 … 5 stars."""
    return float(np.sqrt(np.mean((np.clip(predict(held_out), 1, 5) - held_out.ratings) ** 2)))


def standardised(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; rare indicators keep a variance below."""
    return (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 0.1)


def directions(ratings: Ratings) -> int:
    """As many partial least squares directions as there can be."""
    return min(ratings.users.shape[1], ratings.films.shape[1])


def with_identity(features: np.ndarray, weight: float) -> np.ndarray:
    """Features and one column per row, which tells every row from all others."""
    return np.concatenate([features, weight * np.eye(len(features), dtype=features.dtype)], axis=1)


def product(ratings: Ratings, train: Set, options: Comparison, width: float, penalty: float, identity: float) -> Any:
    """The Mercer machine: a Gaussian on users times a Gaussian on films."""
    users, films = standardised(ratings.users), standardised(ratings.films)
    if identity:
        users, films = with_identity(users, identity), with_identity(films, identity)
    # in units of the features, whatever their number
    kernels = Gaussian(width * users.shape[1] ** 0.5), Gaussian(width * films.shape[1] ** 0.5)
    return fitted(kernels, users, films, train, options, span="product", regularization=penalty)


def sections(ratings: Ratings, train: Set, options: Comparison, width: float, penalty: float) -> Any:
    """The asymmetric machine: sections of one Gaussian between users and films in partial least squares coordinates."""
    users, films = standardised(ratings.users), standardised(ratings.films)
    rank = directions(ratings)
    return fitted(Gaussian(width * rank**0.5), users, films, train, options, regularization=penalty, maps=rank)


def symmetrised(ratings: Ratings, train: Set, options: Comparison, width: float, penalty: float) -> Any:
    """The machine of the same kernel that cannot tell a user from a film: f(x, y) = f(y, x) on both together."""
    features = standardised(ratings.users), standardised(ratings.films)
    rank = directions(ratings)
    maps = kernel_machines.partial_least_squares(*features, train.matrix, train.mask, rank=rank)
    users, films = (np.asarray(to(jax.numpy.asarray(rows))) for to, rows in zip(maps, features, strict=True))
    both, n = np.concatenate([users, films]), len(users)
    rows, columns = train.rows, train.columns + n
    matrix, mask = np.zeros((len(both), len(both)), np.float32), np.zeros((len(both), len(both)), bool)
    for i, j in ((rows, columns), (columns, rows)):
        matrix[i, j], mask[i, j] = train.ratings, True
    joint = Set(rows, columns, train.ratings, matrix, mask)
    landmarks = {"landmarks": options.landmarks} if options.landmarks < len(both) else {}
    predict = fitted(Gaussian(width * rank**0.5), both, both, joint, options, regularization=2 * penalty, **landmarks)
    return lambda held_out: predict(held_out._replace(columns=held_out.columns + n))


def fitted(kernel: Any, x: np.ndarray, y: np.ndarray, train: Set, options: Comparison, **rest: Any) -> Any:
    """A machine of the ratings less their mean, as a function of what is to be predicted."""
    mean = train.ratings.mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # stopped early: a regularisation as good as another
        machine = kernel_machines.fit(
            kernel, x, y, train.matrix - mean, train.mask, max_steps=options.max_steps, **rest
        )
    values = mean + np.asarray(jax.jit(lambda m, x, y: m(x, y))(machine, x, y))
    return lambda held_out: values[held_out.rows, held_out.columns]


def factorisation(ratings: Ratings, train: Set, options: Comparison, factors: int) -> Any:
    """Means and a low-rank factorisation by stochastic gradients; with 0 factors means of users and films alone."""
    from surprise import SVD, Dataset, Reader

    reader = Reader(rating_scale=(1, 5))
    listed = [(int(i), int(j), float(z), None) for i, j, z in zip(*train[:3], strict=True)]
    method = SVD(n_factors=factors, random_state=0)
    method.fit(Dataset(reader).construct_trainset(listed))
    return lambda held_out: np.asarray(
        [method.predict(int(i), int(j)).est for i, j in zip(held_out.rows, held_out.columns, strict=True)]
    )


METHODS: dict[str, tuple[Any, dict[str, tuple[float, ...]]]] = {
    "means of users and films": (factorisation, {"factors": (0,)}),
    "factorisation (Surprise)": (factorisation, {"factors": (20, 100)}),
    "asymmetric machine, features": (sections, {"width": (0.02,), "penalty": (1e1, 1e2)}),
    "the same, symmetrised": (symmetrised, {"width": (0.02,), "penalty": (1e1, 1e2)}),
    "product machine, features": (product, {"width": (0.02,), "penalty": (1.0, 3.0), "identity": (0.0,)}),
    "product machine, features and identity": (
        product,
        {"width": (0.003, 0.01), "penalty": (0.3, 1.0), "identity": (3.0, 8.0)},
    ),
}
"""What is compared: a function of the data and its free numbers, and the numbers that it chooses from."""


def choices(free: dict[str, tuple[float, ...]]) -> Iterator[dict[str, float]]:
    """All combinations of the free numbers."""
    for values in itertools.product(*free.values()):
        yield dict(zip(free, values, strict=True))


def run(ratings: Ratings, options: Comparison, methods: Any = METHODS) -> dict[str, dict[str, list[float]]]:
    """Errors of every method on every split, one per seed; prints the tables."""
    errors: dict[str, dict[str, list[float]]] = {}
    for split in options.splits:
        errors[split] = {}
        print(f"| {split} | stars | chosen | s / fit |")
        print("|---|---|---|---|")
        for name, (method, free) in methods.items():
            found, seconds, chosen = [], [], {}
            for seed in options.seeds:
                kept, out = hold_out(ratings, split, 0.2, seed, np.arange(len(ratings.ratings)))
                train, test = choose(ratings, kept), choose(ratings, out)
                candidates = list(choices(free))
                chosen = candidates[0]
                if len(candidates) > 1:
                    inner, judged = (choose(ratings, n) for n in hold_out(ratings, split, 0.1, seed + 1000, kept))
                    scores = [error(method(ratings, inner, options, **numbers), judged) for numbers in candidates]
                    chosen = candidates[int(np.argmin(scores))]
                start = time.perf_counter()
                predict = method(ratings, train, options, **chosen)
                seconds.append(time.perf_counter() - start)
                found.append(error(predict, test))
            errors[split][name] = found
            numbers = ", ".join(f"{key} {value:g}" for key, value in chosen.items())  # for the last seed
            cells = [f"{np.mean(found):.4f} ± {np.std(found):.4f}", numbers, f"{np.median(seconds):.1f}"]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return errors


def main(options: Comparison = Comparison()) -> None:
    """Compares binary kernel machines with a factorisation on MovieLens-100k."""
    run(movielens(fetch("movielens", options.cache)), options)


command_line = options_of(main, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(command_line, sys.argv[1:]))
