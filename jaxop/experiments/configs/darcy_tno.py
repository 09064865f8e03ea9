"""Darcy flow with the transformer neural operator, trained at 32² and evaluated at 32² and 64².

Source: Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486, on the nodes with their weights.
Hardware: 2 CPU cores. Time: seven minutes, without generating the data.
Expected: relative L2 at 32² and 64² of 4.2 % (after 967 steps; 4.5 % at 128²).
Command: jaxop train darcy_tno
"""

from jaxop.experiments import DarcyData, Experiment
from jaxop.operators import TransformerNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=DarcyData(resolution=32, grids=(32, 64)),
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
        steps=1_000,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=50,
        weight_decay=1e-4,
        loss="l2",
        eval_every=500,
        checkpoint_every=500,
    ),
)
