"""Darcy flow with the Fourier neural operator, the baseline, trained at 64² and evaluated at 32², 64² and 128².

Source: Li et al., arXiv:2010.08895; settings of Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486.
Hardware: 2 CPU cores. Time: seven minutes, without generating the data.
Expected: relative L2 at 32², 64², 128² of 1.5, 1.1, 1.1 % (after 10957 steps).
Command: jaxop train darcy_fno
"""

from jaxop.experiments import DarcyData, Experiment
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
        steps=11_000,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=550,
        weight_decay=1e-4,
        loss="l2",
        eval_every=500,
        checkpoint_every=500,
    ),
)
