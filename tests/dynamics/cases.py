"""Small steppers around every operator, equations with exact solutions, and windows of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxop import data, domains, dynamics, nn, operators

SMALL = {"width": 4, "layers": 1}
TOKENS = SMALL | {"heads": 2, "feedforward": 4}
PATCHES = {"patches": 2, "modes": 2, "reference": 16}
PLANE = domains.monte_carlo(np.random.default_rng(0).random((24, 2), np.float32))
TRIANGLES = [[0, 1, 4], [0, 4, 3], [1, 2, 5], [1, 5, 4], [3, 4, 7], [3, 7, 6], [4, 5, 8], [4, 8, 7]]
SQUARE = np.stack(np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 3), indexing="ij"), -1).reshape(-1, 2)
MESH = domains.triangle_mesh(SQUARE.astype(np.float32), TRIANGLES)
RING = domains.interval(16, rule="periodic")

OPERATORS = {
    "fno": ("fno", RING, SMALL | {"modes": 4, "projection": 4}),
    "fano": ("fano", RING, TOKENS | PATCHES),
    "vitno": ("vitno", RING, TOKENS | PATCHES | {"smoothing_modes": 2}),
    "tno on a line": ("tno", domains.from_samples(np.linspace(0, 1, 12, dtype=np.float32) ** 2), TOKENS),
    "tno on scattered nodes": ("tno", PLANE, TOKENS),
    "tno on a mesh": ("tno", MESH, TOKENS),
    "schwarz tno": ("tno", PLANE, TOKENS | {"schwarz": nn.SchwarzAttentionConfig(subdomains=2)}),
    "latent": ("latent", PLANE, TOKENS | {"attention": nn.LatentAttentionConfig(latents=4)}),
    "latent_grid": ("latent_grid", PLANE, TOKENS | {"grid": 8}),
    "flow": ("flow", PLANE, SMALL | {"feedforward": 4}),
}
"""Operators by a name: their short name, a domain and their choices."""


def statistics(channels=1, parameters=0, *, dt=0.5):
    """Scales that a test tells apart."""
    steps = np.arange(channels)
    return data.StepStatistics(
        mean=jnp.asarray(1.0 + steps),
        std=jnp.asarray(2.0 + steps),
        increment=jnp.asarray(0.25 + steps / 8),
        dt=dt,
        parameter_mean=jnp.arange(parameters, dtype=float) + 1.0,
        parameter_std=jnp.arange(parameters, dtype=float) + 2.0,
    )


def config(name="fno", *, channels=1, history=1, parameters=0, varying_dt=False, uneven_history=False, **options):
    """The config of a small stepper, for the operator of a name in `OPERATORS`."""
    kind, domain, choices = OPERATORS[name]
    inputs = history * channels + (history - 1) * uneven_history + varying_dt + parameters
    made = operators.CONFIGS[kind].for_data(domain, in_channels=inputs, out_channels=channels, **choices)
    made = dataclasses.replace(made, **options.pop("operator", {}))
    return dynamics.StepperConfig(
        made,
        channels,
        history=history,
        parameters=parameters,
        varying_dt=varying_dt,
        uneven_history=uneven_history,
        **options,
    )


def stepper(name="fno", *, dt=0.5, seed=0, **options):
    known = config(name, **options)
    return dynamics.make_stepper(known, statistics(known.channels, known.parameters, dt=dt), rngs=nnx.Rngs(seed))


def domain_of(name):
    return OPERATORS[name][1]


def field(domain, *shape, seed=0, dtype=np.float32):
    """Random states of shape (*shape[:-1], n, c)."""
    *lead, channels = shape
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*lead, domain.size, channels)).astype(dtype))


def trajectories(count=6, steps=12, *, channels=1, parameters=0, uneven=False, seed=0, dtype=np.float32):
    """Travelling waves on a ring, with random phases."""
    rng = np.random.default_rng(seed)
    times = 0.5 * np.arange(steps)
    if uneven:
        times = times + 0.2 * rng.random(steps)
    phase = rng.random((count, 1, 1, channels))
    x = np.asarray(RING.points, np.float64)[None, None]
    states = np.sin(2 * np.pi * (x - 0.1 * times[None, :, None, None] + phase)) + 0.3 * phase
    names = tuple(f"p{i}" for i in range(parameters))
    constants = rng.random((count, parameters)) if parameters else None
    return data.Trajectories(states.astype(dtype), RING, times, parameters=constants, parameter_names=names)


class Heat(nnx.Module):
    """e^{tΔ} − 1 or e^{tΔ} on a ring of length 1, by FFT."""

    def __init__(self, output, time):
        self.output, self.time = output, time

    def __call__(self, values, domain, *, at=None, initial=None):
        waves = 2 * jnp.pi * jnp.fft.rfftfreq(domain.size, 1 / domain.size).astype(values.dtype)
        factor = (jnp.expm1 if self.output == "delta" else jnp.exp)(-self.time * waves**2)
        spectrum = jnp.fft.rfft(values, axis=1)
        return jnp.fft.irfft(spectrum * factor.astype(spectrum.dtype)[None, :, None], n=domain.size, axis=1)


def heat_stepper(output, *, time=1e-4):
    """A stepper around the exact solution operator, in units that differ from those of its operator."""
    two = jnp.full(1, 2.0)
    known = data.StepStatistics(jnp.zeros(1), two, two, time, jnp.zeros(0), jnp.zeros(0))
    made = dynamics.make_stepper(config(output=output), known, rngs=nnx.Rngs(0))
    made.operator = Heat(output, time)
    return made


def assert_same_bits(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
