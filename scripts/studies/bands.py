"""Error bars of an operator: how many new functions they hold, on four sets of nodes, and how wide they are.

    python scripts/studies/run.py bands                       # about 25 minutes on two cores
    python scripts/studies/run.py bands --steps 300 --pool 400 --members 2

A transformer neural operator learns Darcy flow with lognormal coefficients on a grid of 20² nodes. Its bands are
calibrated on this grid, for three levels, and tested on functions that it has never seen, on this grid, a coarser one,
a finer one, and scattered nodes. Prints a Markdown table.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist

import jax
import numpy as np
from flax import nnx

from jaxop import data, domains, experiments, operators, training
from jaxop._validation import check_share, check_size
from jaxop.experiments.comparison import check_options, new_run, run_settings, train_once
from jaxop.operators.calibrated import conformal_rank
from studies.results import About
from studies.table import print_header, print_row

ABOUT = {
    "bands": About(
        "Error bars of an operator on four sets of nodes",
        "A transformer neural operator learns Darcy flow with lognormal coefficients on 20² nodes. A pool of functions "
        "that it has not seen is split at random into one half that calibrates the bands, on 20² nodes, and one half "
        "that tests them, again and again. Cells are the share of test functions of which at least 1 − α of the domain "
        "is inside the band, in percent, mean ± standard deviation over the splits; it should be at least 1 − δ on the "
        "nodes of the calibration. The last column is the mean half-width over the mean absolute value of the truth. "
        "The local width is the same everywhere, or predicted by a second operator (trained by the pinball loss at the "
        "level 0.9), or the deviation of an ensemble around its mean, which is then the prediction. Conformal is the "
        "factor of jaxop.training.calibrate. UQNO is that of the script train_uqno_darcy.py of neuraloperator, with "
        "the same second operator: it takes smaller α and δ, by amounts that vanish as the nodes become many, and has "
        "no factor where this makes a negative number of nodes. Gaussian is an ensemble's own interval, with the "
        "two-sided quantile of 1 − α and without calibration. Every local width has 1 % of its mean added.",
        seeds="those of the command line, and fixed ones of the splits",
    ),
}

SIDE = 20
LEVELS = ((0.1, 0.1), (0.05, 0.05), (0.02, 0.02))
"""Pairs of α and δ."""

COEFFICIENT = "lognormal"
REFERENCE = 96
CONFIG = operators.TransformerNeuralOperatorConfig(
    1, 1, dim=2, width=64, heads=2, layers=4, feedforward=128, activation="gelu_tanh"
)
FLOOR = 0.01


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Settings of the trainings and of the splits.

    Attributes:
        steps: training steps of the operator, of each member of the ensemble, and of the second operator.
        train: functions that the operators are trained on.
        residuals: functions that the second operator is trained on.
        pool: functions for calibration and test, one half each.
        splits: of the pool.
        members: operators of the ensemble.
        seeds: of the parameters and of the order of the data.
        run_dir: where the runs are kept.
    """

    steps: int = 1200
    train: int = 800
    residuals: int = 400
    pool: int = 1000
    splits: int = 20
    members: int = 5
    seeds: tuple[int, ...] = (0,)
    run_dir: Path = Path("runs/bands")

    def __post_init__(self):
        check_options(self)
        check_size(self.members, "--members", 2)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions of the functions of the pool on one set of nodes.

    Attributes:
        residuals: |truth − prediction|, shape (functions, nodes).
        spread: the local width σ, of the same shape.
        weights: quadrature weights, shape (nodes,).
        size: mean of |truth|.
    """

    residuals: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    size: float

    def scores(self, alpha: float) -> np.ndarray:
        """Returns the factor that each function needs, `jaxop.training.band_score`."""
        zeros = np.zeros_like(self.residuals)[..., None]
        score = jax.jit(functools.partial(training.band_scores, alpha=alpha))
        domain = domains.from_nodes(np.arange(len(self.weights))[:, None], self.weights)
        return np.asarray(score(zeros, self.residuals[..., None], domain, spread=self.spread[..., None]))

    def width(self, functions: np.ndarray) -> float:
        """Returns the mean of σ over the domain and some functions, relative to the mean of |truth|."""
        return float(np.mean(self.spread[functions] @ self.weights) / self.weights.sum() / self.size)


def pools(options: Calibration) -> tuple[data.Samples, data.Samples, dict[str, data.Samples]]:
    """Returns the samples of the operator, those of the second operator, and the pool on four sets of nodes."""

    def made(samples: int, first: int, sides: tuple[int, ...] = (SIDE,)) -> dict[int, data.Samples]:
        return data.darcy_resolutions(samples, sides, seed=0, reference=REFERENCE, coefficient=COEFFICIENT, first=first)

    train = made(options.train, 0)[SIDE]
    residuals = made(options.residuals, options.train)[SIDE]
    common = {"samples": options.pool, "first": options.train + options.residuals}
    grids = made(**common, sides=(SIDE, 16, 32))
    points = np.random.default_rng(0).random((1000, 2), np.float32)
    scattered = data.darcy_on(
        domain=domains.from_points(points), seed=0, reference=REFERENCE, coefficient=COEFFICIENT, **common
    )
    return train, residuals, {f"{side}²": samples for side, samples in grids.items()} | {"1000 points": scattered}


def predicted(unit: nnx.Module, samples: data.Samples, *, batch_size: int = 20) -> Predicted:
    """Returns the predictions of a calibrated operator whose factor is 1, whose half-width therefore is σ."""
    graphdef, state = nnx.split(unit)

    @jax.jit
    def outputs(state: nnx.State, batch: data.Batch):
        prediction, spread = nnx.merge(graphdef, state)(batch.inputs, batch.domain)
        return abs(batch.targets - prediction)[..., 0], spread[..., 0]

    parts = [slice(i, i + batch_size) for i in range(0, len(samples), batch_size)]
    found = [jax.device_get(outputs(state, samples[part])) for part in parts]
    residuals, spread = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    weights = np.asarray(samples.domain.weights)
    size = float(np.mean(np.abs(samples.targets[:][..., 0]) @ weights) / weights.sum())
    return Predicted(residuals, spread, weights, size)


def uqno_ranks(alpha: float, delta: float, functions: int, nodes: int) -> tuple[int, int]:
    """Returns which node of a function and which function gives the factor of UQNO, counted from the largest.

    With b = √(−ln δ / 2n) and t = b + (α − b)/3 these are ⌈(α − t) n⌉ of n nodes and
    ⌈(N + 1)(δ − exp(−2 n t²))⌉ of N functions. Source: Ma et al., arXiv:2402.01960, and neuraloperator's script.
    """
    b = np.sqrt(-np.log(delta) / (2 * nodes))
    t = b + (alpha - b) / 3
    return int(np.ceil((alpha - t) * nodes)), int(np.ceil((functions + 1) * (delta - np.exp(-2 * nodes * t**2))))


def uqno_factor(ratios: np.ndarray, alpha: float, delta: float) -> float | None:
    """Returns the factor of UQNO for |truth − prediction|/σ at the nodes of functions; None where it has none."""
    node, function = uqno_ranks(alpha, delta, *ratios.shape)
    if node < 0 or not 0 <= function < len(ratios):
        return None
    return float(np.sort(np.sort(ratios, axis=1)[:, ::-1][:, node])[::-1][function])


Factor = Callable[[np.ndarray], float | None]
"""The factor of a band from the numbers of the functions that calibrate it."""


def recipes(name: str, on_grid: Predicted, alpha: float, delta: float) -> Iterator[tuple[str, Factor]]:
    """Yields the factors of a row, by the name of the recipe."""
    scores = on_grid.scores(alpha)
    yield "conformal", lambda chosen: training.conformal_factor(scores[chosen], delta=delta)
    if name.startswith("second"):
        ratios = on_grid.residuals / on_grid.spread
        yield "UQNO", lambda chosen: uqno_factor(ratios[chosen], alpha, delta)
    if name.startswith("ensemble"):
        yield "Gaussian", lambda chosen: NormalDist().inv_cdf(1 - alpha / 2)


def rows(name: str, sets: dict[str, Predicted], options: Calibration) -> None:
    """Prints the rows of a local width."""
    on_grid = next(iter(sets.values()))
    half = options.pool // 2
    for alpha, delta in LEVELS:
        scores = {label: one.scores(alpha) for label, one in sets.items()}
        for recipe, factor in recipes(name, on_grid, alpha, delta):
            covered, widths = [], []
            for split in range(options.splits):
                order = np.random.default_rng((1, split)).permutation(options.pool)
                q = factor(order[:half])
                if q is None:
                    break
                covered.append([np.mean(found[order[half:]] <= q) for found in scores.values()])
                widths.append(q * on_grid.width(order[half:]))
            cells = ["none"] * (len(sets) + 1)
            if covered:
                percent = 100 * np.asarray(covered)
                cells = [
                    f"{mean:.1f} ± {deviation:.1f}"
                    for mean, deviation in zip(percent.mean(0), percent.std(0, ddof=1), strict=True)
                ]
                cells.append(f"{100 * np.mean(widths):.2f} %")
            print_row(name, f"{alpha:g}, {delta:g}", recipe, f"{100 * (1 - delta):g}", *cells)


def main(options: Calibration = Calibration()) -> None:
    """Trains the operators and prints the table."""
    for alpha, delta in LEVELS:
        check_share(alpha, "alpha", zero=True)
        conformal_rank(options.pool // 2, delta, "--pool, of which one half calibrates")
    train, residuals, pool = pools(options)
    settings = training.TrainingConfig(batch_size=2, learning_rate=1.5e-3, loss="l2")
    settings = run_settings(settings, options.steps, options.seeds[0])
    made = functools.partial(new_run, options.run_dir, "bands", seed=options.seeds[0])

    def fitted(
        label: str, samples: data.Samples | data.RaggedSamples, loss: training.Loss | None = None, **changes: int
    ) -> nnx.Module:
        model = experiments.build(CONFIG, samples, seed=options.seeds[0])
        return train_once(model, samples, dataclasses.replace(settings, **changes), made(label), loss).model

    model = fitted("operator", train)
    second = fitted(
        "second", training.absolute_residuals(model, residuals), functools.partial(training.pinball_loss, level=0.9)
    )
    ensemble = fitted("ensemble", train, members=options.members)
    columns = [f"{name}, %" for name in pool]
    print_header("local width", "α, δ", "factor", "1 − δ, %", *columns, "half-width")
    numbers = {"alpha": 0.1, "delta": 0.1, "count": options.pool, "factor": 1.0, "floor": FLOOR}
    for name, operator, spread in (
        ("one", model, None),
        ("second operator", model, second),
        (f"ensemble of {options.members}", ensemble, None),
    ):
        unit = operators.Calibrated.of(operator, spread, **numbers)
        unit.eval()
        rows(name, {label: predicted(unit, samples) for label, samples in pool.items()}, options)
