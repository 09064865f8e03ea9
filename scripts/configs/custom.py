"""Your own arrays with any operator: x and y of shape (samples, *grid) or (samples, *grid, channels).

Source: the files given by --data.train, --data.valid and --data.test; see jaxop.data.read.
Hardware: any. Time: depends on the files; --training.time-limit-s bounds it.
Expected: depends on the files.
Command: python scripts/train.py custom --data.train a.npz --data.operator fano
"""

import tyro
from experiment import Experiment
from problems import FileData

from jaxop.training import TrainingConfig

CONFIG = Experiment(
    data=FileData(train=tyro.MISSING),
    model=tyro.MISSING,
    training=TrainingConfig(steps=2000, batch_size=8, warmup_steps=20),
)
