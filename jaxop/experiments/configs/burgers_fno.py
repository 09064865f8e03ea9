"""Burgers equation with the Fourier neural operator: shocks form and merge, trained at 160 nodes.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes, solved on 640 here, so that all grids sample one solution.
Hardware: 2 CPU cores. Time: nine minutes of training beside many other programs.
Expected: nRMSE of 0.0032, 0.013, 0.015 and 0.032 after 1, 10, 100 and 200 steps at 160 nodes, and 0.033 and 0.032 after
    200 at 80 and 320. One seed, 30 rollouts. Persistence has 0.114, 0.84, 3.9 and 6.9.
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
