"""Kolmogorov flow, two-dimensional turbulence, with the Fourier attention neural operator on 64² nodes.

Source: the flow of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024), on 64² in place of 160² nodes and with
    fewer test trajectories.
Hardware: one GPU, or 2 CPU cores for a short run. Time: not yet measured on an idle machine, besides about four minutes
    on 2 CPU cores for the data, which are kept.
Expected: not yet measured.
Command: jaxop train kolmogorov_fano
"""

from jaxop.experiments import DynamicsExperiment, KolmogorovData, OperatorSettings, Stepping
from jaxop.training import TrainingConfig

CONFIG = DynamicsExperiment(
    data=KolmogorovData(valid_samples=2, test_samples=10, test_times=101),
    model=OperatorSettings("fano", width=32, heads=4, layers=4, feedforward=64, patches=2, modes=12),
    training=TrainingConfig(
        steps=4000,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=200,
        eval_every=500,
        checkpoint_every=500,
    ),
    stepping=Stepping(noise=0.01),
)
