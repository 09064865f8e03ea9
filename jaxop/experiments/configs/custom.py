"""Your own arrays with any operator: x and y of shape (samples, *grid) or (samples, *grid, channels).

Source: the files given by --data.train, --data.valid and --data.test; see jaxop.data.read.
Hardware: any. Time: depends on the files; --training.time-limit-s bounds it.
Expected: depends on the files.
Command: jaxop train custom --data.train a.npz model:fano --model.width 32
"""

from pathlib import Path

from jaxop.experiments import Experiment, FileData, OperatorSettings
from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=FileData(train=Path()),
    model=OperatorSettings("fano"),
    training=TrainingConfig(steps=2000, batch_size=8, warmup_steps=20),
)
