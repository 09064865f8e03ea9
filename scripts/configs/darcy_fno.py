"""Darcy flow with the Fourier neural operator, the baseline, trained at 64² and evaluated at 32², 64² and 128².

Source: Li et al., arXiv:2010.08895; settings of Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486.
Hardware: 2 CPU cores. Time: about half an hour after the data (a few minutes, once).
Expected: relative L2 at 32², 64², 128²: not yet measured at full length.
Command: python scripts/train.py darcy_fno
"""

from experiment import Experiment
from problems import DarcyData

from jaxop.operators import FourierNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=DarcyData(),
    model=FourierNeuralOperatorConfig(
        in_channels=1,
        out_channels=1,
        width=32,
        layers=4,
        modes=12,
        reference=64,
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
