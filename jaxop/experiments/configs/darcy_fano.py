"""Darcy flow with the Fourier attention neural operator, trained at 64² and evaluated at 32², 64² and 128².

Source: Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486, at a smaller size, with 2 × 2 patches. Patches of the
    32² grid still represent the 8 modes.
Hardware: 2 CPU cores. Time: six minutes, without generating the data.
Expected: relative L2 at 32², 64², 128² of 2.5, 2.2, 2.2 % (after 2869 steps).
Command: jaxop train darcy_fano
"""

from jaxop.experiments import DarcyData, Experiment
from jaxop.operators import FourierAttentionNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=DarcyData(),
    model=FourierAttentionNeuralOperatorConfig(
        in_channels=1,
        out_channels=1,
        width=32,
        heads=8,
        layers=6,
        feedforward=128,
        patches=2,
        modes=8,
        reference=64,
    ),
    training=TrainingConfig(
        steps=3_000,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=150,
        weight_decay=1e-4,
        loss="l2",
        eval_every=500,
        checkpoint_every=500,
    ),
)
