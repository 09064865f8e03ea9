"""Burgers equation with the Fourier neural operator: shocks form and merge, trained at 160 nodes.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes, solved on 640 here, so that all grids sample one solution.
Hardware: 2 CPU cores. Time: not yet measured on an idle machine.
Expected: not yet measured.
Command: jaxop train burgers_fno
"""

from jaxop.experiments import BurgersData, DynamicsExperiment, OperatorSettings, Stepping
from jaxop.training import TrainingConfig

CONFIG = DynamicsExperiment(
    data=BurgersData(reference=640, substeps=4, grids=(80, 320)),
    model=OperatorSettings("fno", width=32, layers=4, modes=24),
    training=TrainingConfig(
        steps=2000,
        batch_size=20,
        learning_rate=2e-3,
        warmup_steps=100,
        eval_every=500,
        checkpoint_every=500,
    ),
    stepping=Stepping(steps=4, noise=0.003),
)
