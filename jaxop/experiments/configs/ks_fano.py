"""Kuramoto–Sivashinsky chaos with the Fourier attention neural operator, one step learnt and rolled out for 200.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes. Patches of 40 nodes attend to each other.
Hardware: 2 CPU cores. Time: 2 minutes for 1000 steps beside other programs.
Expected: after 1000 steps, one seed and 8 test trajectories, nRMSE of 0.034, 0.41 and 3.3 after 1, 10 and 100 steps,
    and a correlation above 0.8 until t = 1.5. Persistence has 0.127, 1.02 and 1.32, until t = 0.52. Not yet measured at
    full length.
Command: jaxop train ks_fano
"""

from jaxop.experiments import DynamicsExperiment, KuramotoSivashinskyData, OperatorSettings, Stepping
from jaxop.training import TrainingConfig

CONFIG = DynamicsExperiment(
    data=KuramotoSivashinskyData(grids=(80, 320)),
    model=OperatorSettings("fano", width=32, heads=4, layers=4, feedforward=64, patches=4, modes=12),
    training=TrainingConfig(
        steps=4000,
        batch_size=20,
        learning_rate=2e-3,
        warmup_steps=200,
        eval_every=500,
        checkpoint_every=500,
    ),
    stepping=Stepping(noise=0.01, valid_steps=4),
)
