"""Darcy flow with the vision transformer neural operator, trained at 64² and evaluated at 32², 64² and 128².

Source: Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486, at a smaller size, with 4 modes in a
    patch, which patches of the 32² grid still represent.
Hardware: 2 CPU cores. Time: six minutes, without generating the data.
Expected: relative L2 at 32², 64², 128² of 4.3, 4.2, 5.0 % (after 2261 steps).
Command: jaxop train darcy_vitno
"""

from jaxop.experiments import DarcyData, Experiment
from jaxop.operators import ViTNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=DarcyData(),
    model=ViTNeuralOperatorConfig(
        in_channels=1,
        out_channels=1,
        width=32,
        heads=8,
        layers=6,
        feedforward=128,
        patches=4,
        modes=4,
        smoothing_modes=16,
        reference=64,
    ),
    training=TrainingConfig(
        steps=2_500,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=125,
        weight_decay=1e-4,
        loss="l2",
        eval_every=500,
        checkpoint_every=500,
    ),
)
