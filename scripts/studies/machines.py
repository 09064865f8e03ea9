"""Binary kernel machines on real pairs: ratings of films by users, against a low-rank factorisation.

    python scripts/studies/run.py machines

MovieLens-100k, root mean square error in stars. One fifth of the ratings is held out: pairs of known users and films,
all ratings of new users, or all of new films, where a factorisation has nothing but means to offer. What is free in a
machine (the width of its kernel, λ, how much an identity weighs) is chosen by a further tenth. Features: age, gender
and occupation; year and genres. Data: see real_data.py. The factorisation is that of scikit-surprise, of the extra
"benchmark".
"""

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxop import kernel_machines
from jaxop._validation import check_name
from jaxop.experiments.comparison import check_options
from jaxop.kernels import Gaussian
from studies.real_data import CACHE, Ratings, fetch, movielens
from studies.results import About
from studies.table import print_header, print_row

ABOUT = {
    "machines": About(
        "Binary kernel machines on ratings of films",
        "MovieLens-100k has 10⁵ ratings of 1682 films by 943 users, with features of both. One fifth of the ratings is "
        "held out: single pairs, all ratings of new users, or all ratings of new films. The tables show the root mean "
        "square error in stars, mean ± standard deviation over the seeds: lower is better. The free numbers of a "
        "method are chosen on a further tenth of the ratings; the column shows the choice of the last seed. The "
        "methods are means of users and films, a low-rank factorisation, and binary kernel machines that see features, "
        "or features and identities.",
        packages=("scikit-surprise",),
    )
}

SPLITS = ("pairs", "new users", "new films")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Options of the comparison.

    Attributes:
        seeds: seeds of the choice of held-out ratings.
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
            check_name(name, "splits", SPLITS)


class Set(NamedTuple):
    """Some of the ratings, as a list and as a matrix with its mask."""

    rows: np.ndarray
    columns: np.ndarray
    ratings: np.ndarray
    matrix: np.ndarray
    mask: np.ndarray


Predictor = Callable[[Set], np.ndarray]
"""The predicted stars of some pairs."""


def choose(ratings: Ratings, chosen: np.ndarray) -> Set:
    """Returns the ratings with these numbers."""
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
        by_user = split == "new users"
        side, count = (ratings.rows, len(ratings.users)) if by_user else (ratings.columns, len(ratings.films))
        out = (rng.random(count) < share)[side[among]]
    return among[~out], among[out]


def error(predict: Predictor, held_out: Set) -> float:
    """Root mean square error of predictions, cut to 1 … 5 stars."""
    return float(np.sqrt(np.mean((np.clip(predict(held_out), 1, 5) - held_out.ratings) ** 2)))


def standardised(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; rare indicators keep a variance below."""
    return (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 0.1)


def directions(ratings: Ratings) -> int:
    """The largest possible number of partial least squares directions."""
    return min(ratings.users.shape[1], ratings.films.shape[1])


def with_identity(features: np.ndarray, weight: float) -> np.ndarray:
    """Features and one column per row, which tells every row from all others."""
    return np.concatenate([features, weight * np.eye(len(features), dtype=features.dtype)], axis=1)


def product(
    ratings: Ratings, train: Set, options: Comparison, width: float, penalty: float, identity: float
) -> Predictor:
    """The Mercer machine: a Gaussian on users times a Gaussian on films."""
    users, films = standardised(ratings.users), standardised(ratings.films)
    if identity:
        users, films = with_identity(users, identity), with_identity(films, identity)
    # in units of the features, for any number of them
    kernels = Gaussian(width * users.shape[1] ** 0.5), Gaussian(width * films.shape[1] ** 0.5)
    return fitted(kernels, users, films, train, options, span="product", regularization=penalty)


def sections(ratings: Ratings, train: Set, options: Comparison, width: float, penalty: float) -> Predictor:
    """The asymmetric machine: sections of one Gaussian between users and films in partial least squares coordinates."""
    users, films = standardised(ratings.users), standardised(ratings.films)
    rank = directions(ratings)
    return fitted(Gaussian(width * rank**0.5), users, films, train, options, regularization=penalty, maps=rank)


def symmetrised(ratings: Ratings, train: Set, options: Comparison, width: float, penalty: float) -> Predictor:
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
    landmarks = options.landmarks if options.landmarks < len(both) else None
    kernel = Gaussian(width * rank**0.5)
    predict = fitted(kernel, both, both, joint, options, regularization=2 * penalty, landmarks=landmarks)
    return lambda held_out: predict(held_out._replace(columns=held_out.columns + n))


def fitted(
    kernel: Gaussian | tuple[Gaussian, Gaussian],
    x: np.ndarray,
    y: np.ndarray,
    train: Set,
    options: Comparison,
    *,
    regularization: float,
    span: str = "sections",
    maps: int | None = None,
    landmarks: int | None = None,
) -> Predictor:
    """Fits a machine to the ratings less their mean; returns its predictions as a function of the pairs."""
    mean = train.ratings.mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # stopped early: a regularisation as good as another
        machine = kernel_machines.fit(
            kernel,
            x,
            y,
            train.matrix - mean,
            train.mask,
            span=span,
            regularization=regularization,
            maps=maps,
            landmarks=landmarks,
            max_steps=options.max_steps,
        )
    values = mean + np.asarray(jax.jit(lambda m, x, y: m(x, y))(machine, x, y))
    return lambda held_out: values[held_out.rows, held_out.columns]


def factorisation(ratings: Ratings, train: Set, options: Comparison, factors: int) -> Predictor:
    """Means and a low-rank factorisation by stochastic gradients; with 0 factors means of users and films alone."""
    try:
        from surprise import SVD, Dataset, Reader
    except ImportError as error:
        needed = "the factorisation needs scikit-surprise; install it with: pip install 'jaxop[benchmark]'"
        raise ImportError(needed) from error

    reader = Reader(rating_scale=(1, 5))
    listed = [(int(i), int(j), float(z), None) for i, j, z in zip(*train[:3], strict=True)]
    method = SVD(n_factors=factors, random_state=0)
    method.fit(Dataset(reader).construct_trainset(listed))
    return lambda held_out: np.asarray(
        [method.predict(int(i), int(j)).est for i, j in zip(held_out.rows, held_out.columns, strict=True)]
    )


Method = tuple[Callable[..., Predictor], dict[str, tuple[float, ...]]]
"""A function of the ratings, the training set, the options and its free numbers, and the values that they may have."""

METHODS: dict[str, Method] = {
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
"""The methods that are compared, by the names that they have in the table."""


def choices(free: dict[str, tuple[float, ...]]) -> Iterator[dict[str, float]]:
    """All combinations of the free numbers."""
    for values in itertools.product(*free.values()):
        yield dict(zip(free, values, strict=True))


Errors = dict[str, dict[str, list[float]]]
"""Root mean square errors by split and method, one per seed."""


def run(ratings: Ratings, options: Comparison, methods: Mapping[str, Method] = METHODS) -> Errors:
    """Prints the tables and returns the errors of every method on every split, one per seed."""
    errors: Errors = {}
    for split in options.splits:
        errors[split] = {}
        print_header(split, "stars", "chosen", "s / fit")
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
            print_row(name, f"{np.mean(found):.4f} ± {np.std(found):.4f}", numbers, f"{np.median(seconds):.1f}")
    return errors


def main(options: Comparison = Comparison()) -> None:
    """Compares binary kernel machines with a factorisation on MovieLens-100k."""
    run(movielens(fetch("movielens", options.cache)), options)
