"""Kuramoto–Sivashinsky chaos with the Fourier neural operator, the baseline, one step learnt and rolled out for 200.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes. Inputs have noise, without which rollouts of the learnt change can leave the attractor.
Hardware: 2 CPU cores. Time: not yet measured on an idle machine.
Expected: not yet measured.
Command: jaxop train ks_fno
"""

from jaxop.experiments import DynamicsExperiment, KuramotoSivashinskyData, OperatorSettings, Stepping
from jaxop.training import TrainingConfig

CONFIG = DynamicsExperiment(
    data=KuramotoSivashinskyData(grids=(80, 320)),
    model=OperatorSettings("fno", width=24, layers=4, modes=24),
    training=TrainingConfig(
        steps=2000,
        batch_size=20,
        learning_rate=2e-3,
        warmup_steps=100,
        eval_every=500,
        checkpoint_every=500,
    ),
    stepping=Stepping(noise=0.01, valid_steps=4),
)
