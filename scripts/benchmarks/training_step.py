"""A compiled training step that a section measures."""

from typing import cast

import jax
from flax import nnx

from jaxop import training
from jaxop.data import Batch, ExampleBatch


class TrainingStep:
    """A compiled training step on one batch, which every call advances.

    Attributes:
        program: the compiled step.
    """

    def __init__(self, model: nnx.Module, batch: Batch | ExampleBatch, settings: training.TrainingConfig):
        optimizer = training.make_optimizer(settings)
        graphdef, self._state = training.init_state(model, optimizer, settings)
        step = cast(jax.stages.Wrapped, training.make_step(graphdef, optimizer, settings))
        self._batch = batch
        self.program = step.lower(self._state, batch).compile()

    def __call__(self) -> None:
        """Makes one step and waits for it."""
        self._state, metrics = self.program(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
