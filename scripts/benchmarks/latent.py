"""Layers of latent attention, value and gradient, against the published formulas in plain jnp and PyTorch."""

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import NOT_RUN, compile_call, run
from benchmarks.timing import measured_by, median_seconds, peak_memory
from jaxop import nn, operators, testing
from jaxop._validation import check_name

ABOUT = {
    "latent": About(
        "Layers of latent attention",
        "The value and the gradient, in the parameters and the input, of one layer of latent attention with 64 "
        "channels, 4 heads and 64 latents. jaxop's layer has quadrature weights, the others have none. The formulas in "
        "plain jnp are those of the published code, with whole matrices of scores. PyTorch calls its fused attention "
        "twice for FLARE, and writes Transolver for irregular nodes with einsum, as the published code does. Every "
        "figure is that of a process of its own, and the memory is the peak of the whole process. The ratios divide "
        "the time of jaxop by that of the other: below 1 jaxop is faster.",
        packages=("torch",),
    ),
}

WIDTH, HEADS, LATENTS = 64, 4, 64

PRESETS: dict[str, Callable[..., operators.LatentNeuralOperatorConfig]] = {
    "flare": operators.LatentNeuralOperatorConfig.flare,
    "transolver": operators.LatentNeuralOperatorConfig.transolver,
}
"""The layers, by the preset that has them."""

WAYS = ("jaxop", "jnp", "torch")


def main(
    nodes: tuple[int, ...] = (4096, 16384, 65536, 262144, 1048576), repeats: int = 5, baseline_nodes: int = 262144
) -> None:
    """Prints one row per layer and number of nodes, and the slope of jaxop's times.

    Args:
        nodes: numbers of nodes.
        repeats: measured calls.
        baseline_nodes: largest number of nodes of the other formulas, which need whole matrices of scores.
    """
    print_header("layer, nodes", "jaxop", "per node", "memory", "jnp", "ratio", "memory", "PyTorch", "ratio", "memory")
    slopes = []
    for name in PRESETS:
        times: dict[int, float] = {}
        for n in nodes:
            found = {way: measure(name, way, n, repeats) for way in WAYS if way == "jaxop" or n <= baseline_nodes}
            ours = times[n] = found["jaxop"]["seconds"]
            cells = [f"{1e3 * ours:.0f} ms", f"{1e6 * ours / n:.1f} µs", found["jaxop"]["memory"]]
            for way in WAYS[1:]:
                other = found.get(way)
                if not other:
                    cells += [NOT_RUN, "", ""]
                else:
                    cells += [f"{1e3 * other['seconds']:.0f} ms", f"{ours / other['seconds']:.2f}", other["memory"]]
            print_row(f"{name}, {n:,}", *cells)
        large = [n for n in nodes if n >= 16384]
        if len(large) > 1:
            slopes.append(f"{name} {-testing.observed_order(large, [times[n] for n in large]):.2f}")
    if slopes:
        print(f"\nslope of log time over log n from 16,384 nodes on: {', '.join(slopes)}")


def measure(name: str, way: str, nodes: int, repeats: int) -> dict[str, Any]:
    """Returns seconds and peak memory of a layer in a process of its own; nothing if PyTorch is not installed."""
    options = ("--name", name, "--nodes", str(nodes), "--repeats", str(repeats))
    if way != "torch":
        return measured_by("run.py", "latent-layer", *options, "--way", way)
    return measured_by("torch_latent.py", *options) if importlib.util.find_spec("torch") else {}


def layer(name: str, way: str = "jaxop", nodes: int = 4096, repeats: int = 5) -> None:
    """Prints one line of JSON with the median seconds of value and gradient of a layer, and the peak memory.

    Args:
        name: a key of `PRESETS`.
        way: "jaxop" or "jnp".
        nodes: number of nodes.
        repeats: measured calls.
    """
    check_name(name, "name", PRESETS)
    check_name(way, "way", WAYS[:2])
    attention = PRESETS[name](1, 1).attention.make(WIDTH, HEADS, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(attention)
    x = jax.random.normal(jax.random.key(1), (1, nodes, WIDTH))
    weights = jnp.full(nodes, 1 / nodes)

    def energy(state: nnx.State, x: jax.Array, weights: jax.Array) -> jax.Array:
        attention = nnx.merge(graphdef, state)
        y = attention(x, weights) if way == "jaxop" else published(name, attention, x)
        return jnp.sum(y**2)

    program = compile_call(jax.value_and_grad(energy, argnums=(0, 1)), state, x, weights)
    seconds = median_seconds(run(program, state, x, weights), repeats)
    print(json.dumps({"seconds": seconds, "memory": peak_memory()}))


def published(name: str, layer: nn.LatentAttention, x: jax.Array) -> jax.Array:
    """Returns the layer's output without weights, as the published code computes it."""
    key, value = (_heads(linear(x)) for linear in (layer.key, layer.value))
    latents = jnp.swapaxes(layer.latents[...], 0, 1)
    if name == "flare":
        scores = jnp.einsum("hgd,bhnd->bhgn", latents, key) * _scale(layer)
        z = jnp.einsum("bhgn,bhnd->bhgd", jax.nn.softmax(scores), value)
        y = jnp.einsum("bhgn,bhgd->bhnd", jax.nn.softmax(scores, axis=2), z)
    else:
        assert layer.tau is not None  # the preset has one
        assert layer.matrices is not None
        temperature = jnp.clip(layer.tau[...], 0.1, 5)[None, :, None, None]
        p = jax.nn.softmax(jnp.einsum("bhnd,hgd->bhng", key, latents) * _scale(layer) / temperature)
        z = jnp.einsum("bhng,bhnd->bhgd", p, value) / (jnp.sum(p, axis=2) + 1e-5)[..., None]
        q, k, v = jnp.einsum("bhgc,sce->sbhge", z, layer.matrices[...])
        mixed = jax.nn.softmax(jnp.einsum("bhgd,bhld->bhgl", q, k) / q.shape[-1] ** 0.5)
        y = jnp.einsum("bhng,bhgd->bhnd", p, jnp.einsum("bhgl,bhld->bhgd", mixed, v))
    return layer.output(jnp.moveaxis(y, 1, 2).reshape(x.shape))


def _scale(layer: nn.LatentAttention) -> float:
    """Returns the factor of the dot products of latents and keys."""
    return layer.factor / (WIDTH // HEADS) ** 0.5


def _heads(x: jax.Array) -> jax.Array:
    """(b, n, d) to (b, h, n, d/h)."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], HEADS, -1), 2, 1)
