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


def coefficient(study: Study, seconds: float) -> None:
    """−∇·(a∇u) = f, a log-normal, f Gaussian; trained at 32², tested there and at 96², all for the same time."""
    fine = {}
    for name, first, count in (("train", 0, 1000), ("test", 1000, 20)):
        a, f = (gaussian_field(count, 96, seed=seed, first=first) for seed in (0, 1))
        a = np.exp(2 * a)
        fine[name] = (np.stack([np.log(a), f], axis=-1), solve_darcy(a, f)[..., None])
    grids = {96: slice(None), 32: slice(1, None, 3)}

    def sample(name: str, side: int) -> Samples:
        inputs, targets = (
            array[:, grids[side], grids[side]].reshape(len(array), side**2, -1).astype(np.float32)
            for array in fine[name]
        )
        return Samples(inputs, targets, domains.box((side, side), rule="midpoint"))

    train, tests = sample("train", 32), {f"{side}²": sample("test", side) for side in (32, 96)}

    def network(label: str, seed: int) -> operators.Standardized:
        config = operators.TransformerNeuralOperatorConfig(
            2, 1, dim=2, width=32, heads=4, layers=3, feedforward=64, schwarz=NETWORKS[label]
        )
        return build(config, train, seed=seed)

    compare(
        {label: Contender(functools.partial(network, label), train, tests) for label in NETWORKS},
        training.TrainingConfig(batch_size=4, learning_rate=2e-3, weight_decay=1e-2, loss="l2"),
        seconds=seconds,
        seeds=study.seeds,
        run_dir=Path("runs/schwarz"),
        task="coefficient",
    )
