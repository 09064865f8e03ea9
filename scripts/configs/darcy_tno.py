"""Darcy flow with the transformer neural operator, trained at 32² and evaluated at 16², 32² and 64².

Source: Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486, on the nodes themselves, with their weights.
Hardware: 2 CPU cores. Time: about an hour after the data (a few minutes, once).
Expected: relative L2 at 16², 32², 64²: not yet measured at full length.
Command: python scripts/train.py darcy_tno
"""

from experiment import Experiment
from problems import DarcyData

from jaxop.operators import TransformerNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=DarcyData(resolution=32, grids=(16, 32, 64)),
    model=TransformerNeuralOperatorConfig(
        in_channels=1,
        out_channels=1,
        dim=2,
        width=64,
        heads=8,
        layers=4,
        feedforward=128,
    ),
    training=TrainingConfig(
        steps=10_000,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=200,
        weight_decay=1e-4,
        loss="h1",
        eval_every=500,
        checkpoint_every=500,
    ),
)
