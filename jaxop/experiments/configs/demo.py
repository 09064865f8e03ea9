"""Darcy flow with attention in minutes: trained at 20², evaluated on four grids and 3000 scattered points.

Source:
Hardware: 2 CPU cores. Time:
Expected:
Command: bash scripts/demo.sh
"""

from jaxop.experiments import DarcyData, Experiment
from jaxop.operators import TransformerNeuralOperatorConfig
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=DarcyData(
        samples=800,
        valid_samples=32,
        test_samples=32,
        resolution=20,
        grids=(16, 20, 32, 40, "points=3000"),
        reference=80,
        coefficient="lognormal",
    ),
    model=TransformerNeuralOperatorConfig(
        in_channels=1,
        out_channels=1,
        dim=2,
        width=64,
        heads=2,
        layers=4,
        feedforward=128,
        activation="gelu_tanh",
    ),
    training=TrainingConfig(
        steps=800,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=50,
        loss="l2",
        eval_every=200,
        checkpoint_every=400,
    ),
)
