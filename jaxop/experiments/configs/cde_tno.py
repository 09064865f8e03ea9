"""A controlled differential equation with the TNO, trained on uneven times that differ for every path.

Source: Calvello, Kovachki, Levine, Stuart, arXiv:2406.06486, with uneven times for training.
Hardware: one GPU, or 2 CPU cores for a short run. Time: a few hours on 2 CPU cores.
Expected: relative L2 at dt = 0.005 to 0.02 and on uneven times: not yet measured at full length.
Command: jaxop train cde_tno
"""

from jaxop.experiments import ControlledOdeData, Experiment
from jaxop.operators import TransformerNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=ControlledOdeData(
        sampling="nodes=200", grids=("dt=0.005", "dt=0.01", "dt=0.02", "nodes=100", "nodes=200", "nodes=400")
    ),
    model=TransformerNeuralOperatorConfig(in_channels=1, out_channels=1, width=128, heads=8, layers=6, feedforward=128),
    training=TrainingConfig(
        steps=1_000,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=50,
        eval_every=250,
        checkpoint_every=250,
    ),
)
