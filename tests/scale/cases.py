"""What the tests of several devices have in common: small operators, their samples, and some steps of training."""

import dataclasses

import jax
import numpy as np
import optax
from flax import nnx

from jaxop import data, domains, operators, testing, training
from jaxop.data import Samples
from jaxop.training.losses import LOSS_FUNCTIONS, apply_loss
from jaxop.training.mesh import check_mesh, distribute, over_devices

# momentum without Adam's division: parameters whose gradient is zero up to rounding move by rounding only
SGD = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01, momentum=0.9))


def configs(*, width=4, feedforward=4, side=8):
    """A config of every operator, for functions on a square of side² nodes."""
    size, tokens = {"width": width, "layers": 1}, {"heads": 2, "feedforward": feedforward}
    patches = {"patches": 2, "modes": side // 4, "reference": side}
    return {
        "tno": operators.TransformerNeuralOperatorConfig(1, 1, dim=2, **size, **tokens),
        "vitno": operators.ViTNeuralOperatorConfig(1, 1, smoothing_modes=2, **size, **tokens, **patches),
        "fano": operators.FourierAttentionNeuralOperatorConfig(1, 1, **size, **tokens, **patches),
        "fno": operators.FourierNeuralOperatorConfig(1, 1, modes=2, reference=side, projection=4, **size),
        "flow": operators.FlowNeuralOperatorConfig(1, 1, dim=2, feedforward=feedforward, **size),
        "latent": operators.LatentNeuralOperatorConfig(1, 1, dim=2, **size, **tokens),
    }


def fields(domain, count=16):
    u = np.random.default_rng(0).normal(size=(count, domain.size, 1)).astype(np.float32)
    return Samples(u, np.cumsum(u, axis=1) / 8, domain)


def square(side):
    return domains.box((side, side), rule="midpoint")


def build(config):
    return operators.build(config, rngs=nnx.Rngs(0))


@dataclasses.dataclass(frozen=True)
class Trained:
    """Losses and norms of the gradients of some steps, the state after them, and the compiled step."""

    rows: np.ndarray
    state: training.TrainState
    step: jax.stages.Compiled

    @property
    def messages(self):
        return testing.collectives(self.step)


def trained(model, samples, devices, *, steps=20, accumulate=1):
    settings, devices = training.TrainingConfig(steps=steps, batch_size=8, accumulate=accumulate), check_mesh(devices)
    graphdef, state = training.init_state(model, SGD, settings, mesh=devices)
    batches = [distribute(samples[data.batch_indices(16, 8, seed=0, step=t)], devices) for t in range(steps)]
    step = training.make_step(graphdef, SGD, settings, mesh=devices).lower(state, batches[0]).compile()
    rows = []
    for batch in batches:
        state, metrics = step(state, batch)
        assert metrics["culprit"] == -1
        rows.append((metrics["loss"], metrics["grad_norm"]))
    return Trained(np.asarray(jax.device_get(rows)), state, step)


def slopes(config, samples, devices):
    """The mean loss of all samples and its derivatives in all parameters of a new operator."""
    devices = check_mesh(devices)
    graphdef, params, other = nnx.split(build(config), nnx.Param, ...)

    def of_batch(batch, params):
        def mean(params):
            losses, _ = apply_loss(LOSS_FUNCTIONS["l2"], nnx.merge(graphdef, params, other), batch)
            return losses.mean()

        return jax.value_and_grad(mean)(params)

    batch = distribute(samples[np.arange(len(samples))], devices)
    return jax.device_get(jax.jit(over_devices(of_batch, devices, mean=True))(batch, nnx.to_pure_dict(params)))


def assert_same_slopes(ours, theirs):
    """In double precision; where terms cancel, a derivative may be zero up to rounding."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.max(np.abs(b)) + 1e-15)


def assert_agree(ours, theirs):
    np.testing.assert_allclose(ours.rows[:, 0], theirs.rows[:, 0], rtol=1e-5)
    # later gradients differ by more than the losses
    np.testing.assert_allclose(ours.rows[0], theirs.rows[0], rtol=1e-5)
    pair = jax.device_get((ours.state.params, theirs.state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *pair)
