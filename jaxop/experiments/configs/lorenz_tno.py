"""Lorenz-63 with the transformer neural operator: from x(t) and the initial values to y(t).

Source: Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486: trained at dt = 0.01, evaluated from 0.005 to 0.02.
Hardware: one GPU, or 2 CPU cores for a short run. Time: a few hours on 2 CPU cores.
Expected: relative L2 at dt = 0.005 to 0.02 and on uneven times: not yet measured at full length.
Command: jaxop train lorenz_tno
"""

from jaxop.experiments import Experiment, LorenzData
from jaxop.operators import TransformerNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=LorenzData(),
    model=TransformerNeuralOperatorConfig(
        in_channels=1, out_channels=1, width=128, heads=8, layers=6, feedforward=128, initial_channels=3
    ),
    training=TrainingConfig(
        steps=1_000,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=50,
        eval_every=250,
        checkpoint_every=250,
    ),
)
