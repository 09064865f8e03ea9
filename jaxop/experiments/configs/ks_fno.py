"""Kuramoto–Sivashinsky chaos with the Fourier neural operator, the baseline, one step learnt and rolled out for 200.

Source: the setting of Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024): 50 trajectories of 51 times on 160
    nodes. Inputs have noise, without which rollouts of the learnt change can leave the attractor.
Hardware: 2 CPU cores. Time: one minute of training beside other programs.
Expected: nRMSE of 0.0098, 0.082 and 1.4 after 1, 10 and 100 steps, and a correlation above 0.8 until t = 3.8; 0.016
    after one step at 80 nodes and 0.0096 at 320. One seed, all 30 rollouts finite. Persistence has 0.131, 1.01 and
    1.38, until t = 0.51.
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
