"""Your own time series with any operator: the step is learnt, and rolled out; states of shape (samples, times, *grid).

Source: the files given by --data.train, --data.valid and --data.test; see jaxop.data.read_trajectories.
Hardware: any. Time: depends on the files; --training.time-limit-s bounds it.
Expected: depends on the files; the table has persistence beside the operator.
Command: jaxop train series --data.train heat.npz model:fno --model.width 32
"""

from pathlib import Path

from jaxop.experiments import DynamicsExperiment, OperatorSettings, SeriesData, Stepping
from jaxop.training import TrainingConfig

CONFIG = DynamicsExperiment(
    data=SeriesData(train=Path()),
    model=OperatorSettings("fno"),
    training=TrainingConfig(steps=2000, batch_size=16, warmup_steps=20),
    stepping=Stepping(noise=0.01),
)
