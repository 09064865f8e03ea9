"""Kuramoto–Sivashinsky chaos with the transformer neural operator, two steps learnt and rolled out for 200.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes, on a circle of length 1, with the constants that give the same states as their length of 60. The operator has
    no translations built in and sees the coordinates, which the longer circle would make large beside the states. It
    sees two states, and compares nodes by a Gaussian kernel. With one state, the softmax kernel and the length of 60 it
    was not better than persistence after 400 steps.
Hardware: one GPU, or 2 CPU cores for a short run. Time: seven minutes for 400 steps on 2 CPU cores beside many other
    programs.
Expected: after 378 of 800 steps, one seed and 8 test trajectories, nRMSE of 0.027, 0.81 and 1.6 after 1, 10 and 100
    steps at 160 and at 80 nodes, and a correlation above 0.8 until t = 0.79. Persistence has 0.126, 1.02 and 1.33,
    until t = 0.51. Not yet measured at full length.
Command: jaxop train ks_tno
"""

from jaxop.experiments import DynamicsExperiment, KuramotoSivashinskyData, OperatorSettings, Stepping
from jaxop.nn import GaussianConfig, IntegralAttentionConfig
from jaxop.training import TrainingConfig

_LENGTH = 60  # of the circle in APEBench

CONFIG = DynamicsExperiment(
    data=KuramotoSivashinskyData(
        length=1.0,
        diffusion=1.44 / _LENGTH**2,
        hyperdiffusion=0.4 / _LENGTH**4,
        convection=3.6 / _LENGTH,
        grids=(80, 320),
    ),
    model=OperatorSettings(
        "tno",
        width=64,
        heads=4,
        layers=4,
        feedforward=128,
        norm="pre",
        attention=IntegralAttentionConfig(kernel=GaussianConfig()),
    ),
    training=TrainingConfig(
        steps=4000,
        batch_size=20,
        learning_rate=2e-3,
        warmup_steps=200,
        eval_every=500,
        checkpoint_every=500,
    ),
    stepping=Stepping(history=2, steps=2, noise=0.003, valid_steps=4),
)
