"""Kuramoto–Sivashinsky chaos with the transformer neural operator, one step learnt and rolled out for 200.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes. Inputs have noise, without which rollouts of the learnt change can leave the attractor.
Hardware: one GPU, or 2 CPU cores. Time: not yet measured on an idle machine.
Expected: not yet measured at full length; persistence has an nRMSE of 0.13 after one step.
Command: jaxop train ks_tno
"""

from jaxop.experiments import DynamicsExperiment, KuramotoSivashinskyData, OperatorSettings, Stepping
from jaxop.training import TrainingConfig

CONFIG = DynamicsExperiment(
    data=KuramotoSivashinskyData(grids=(80, 320)),
    model=OperatorSettings("tno", width=64, heads=4, layers=4, feedforward=128),
    training=TrainingConfig(
        steps=4000,
        batch_size=20,
        learning_rate=1e-3,
        warmup_steps=200,
        eval_every=500,
        checkpoint_every=500,
    ),
    stepping=Stepping(noise=0.01, valid_steps=4),
)
