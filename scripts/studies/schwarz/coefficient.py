"""−∇·(a∇u) = f on the square: networks that see a and f, at equal training time."""

import functools
from pathlib import Path

import numpy as np

from jaxop import domains, nn, operators, training
from jaxop.data import Samples, gaussian_field, solve_darcy
from jaxop.experiments import build
from jaxop.experiments.comparison import Contender, compare
from studies.schwarz.setting import Study

NETWORKS: dict[str, nn.SchwarzAttentionConfig | None] = {
    "two levels": nn.SchwarzAttentionConfig(4),
    "local only": nn.SchwarzAttentionConfig(4, coarse=None),
    "global": None,
}
"""The attention of the networks that see the coefficient."""


def coefficient(
    study: Study,
    seconds: float,
    *,
    side: int = 96,
    train_samples: int = 1000,
    test_samples: int = 20,
    run_dir: Path = Path("runs/schwarz"),
) -> dict[str, np.ndarray]:
    """Prints the table: a log-normal, f Gaussian; trained on every third node, tested there and on all.

    Args:
        study: the setting, for its seeds.
        seconds: of training, for each network.
        side: nodes along each side of the fine grid, a multiple of 3.
        train_samples: training samples.
        test_samples: test samples.
        run_dir: where the runs are kept.

    Returns:
        The errors by network, (seeds, grids).
    """
    grids = {side // 3: slice(1, None, 3), side: slice(None)}

    def samples(first: int, count: int) -> dict[str, Samples]:
        a, f = (gaussian_field(count, side, seed=seed, first=first) for seed in (0, 1))
        a = np.exp(2 * a)
        fine = np.stack([np.log(a), f], axis=-1), solve_darcy(a, f)[..., None]
        return {f"{n}²": on_grid(*(array[:, nodes, nodes] for array in fine)) for n, nodes in grids.items()}

    coarse = f"{side // 3}²"
    train, tests = samples(0, train_samples)[coarse], samples(train_samples, test_samples)

    def network(label: str, seed: int) -> operators.Standardized:
        config = operators.TransformerNeuralOperatorConfig(
            2, 1, dim=2, width=32, heads=4, layers=3, feedforward=64, schwarz=NETWORKS[label]
        )
        return build(config, train, seed=seed)

    return compare(
        {label: Contender(functools.partial(network, label), train, tests) for label in NETWORKS},
        training.TrainingConfig(batch_size=4, learning_rate=2e-3, weight_decay=1e-2, loss="l2"),
        seconds=seconds,
        seeds=study.seeds,
        run_dir=run_dir,
        task="coefficient",
    )


def on_grid(inputs: np.ndarray, targets: np.ndarray) -> Samples:
    """Functions on the midpoints of the unit square, (b, n, n, c)."""
    count, *sides = inputs.shape[:3]
    inputs, targets = (array.reshape(count, -1, array.shape[-1]).astype(np.float32) for array in (inputs, targets))
    return Samples(inputs, targets, domains.box(sides, rule="midpoint"))
