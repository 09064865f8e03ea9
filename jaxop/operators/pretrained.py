"""Loading of models from folders."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxop._config import from_dict
from jaxop._pytree import leaf_names
from jaxop._validation import closest
from jaxop.operators.folder import CONFIG, Saved, read_folder
from jaxop.operators.ready import located
from jaxop.operators.registry import build, find, models
from jaxop.operators.standardized import Standardized


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> nnx.Module:
    """Returns the model that ``model.save(path)`` wrote, or one that comes with the package, in evaluation mode.

    Neither the run nor its data are needed, and nothing in the folder is executed. Sizes and checksums of all files are
    compared. Configs of earlier versions are converted to this version.

    Args:
        path: the folder, or the zip file, or the name of one of `jaxop.operators.ready_models`.
        dtype: dtype of parameters and computation, such as "bfloat16". None takes those of the saved config.
        sharding: where the parameters go, such as a `jax.sharding.NamedSharding`. None is JAX's default device.

    Returns:
        A `Standardized` operator that acts in the units of the data if one was saved, otherwise the model itself.

    Raises:
        FileNotFoundError: if there is nothing, or a file is missing; the message names it.
        ValueError: if a file was changed or cut, is of a newer format, or if config and weights do not fit; the message
            names what differs.
        ImportError: if safetensors is not installed.

    Cost: two copies of the weights in host memory until they are on the device.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> import jaxop
        >>> config = jaxop.operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
        >>> operator = jaxop.operators.build(config, rngs=nnx.Rngs(0))
        >>> path = operator.save(tempfile.mkdtemp() + "/tno.zip")
        >>> jaxop.from_pretrained(path, dtype="bfloat16").config.param_dtype
        'bfloat16'
    """
    return load(read_folder(located(path)), dtype=dtype, sharding=sharding)


def load(saved: Saved, *, dtype: DTypeLike | None = None, sharding: jax.sharding.Sharding | None = None) -> nnx.Module:
    """Returns the model of a folder that was read; the arguments and errors are those of `from_pretrained`."""
    config = _config(saved, dtype)
    blank = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    blank.eval()
    graphdef, streams, rest = nnx.split(blank, nnx.RngState, ...)
    tree = nnx.to_pure_dict(rest)
    names, leaves = leaf_names(tree), jax.tree.leaves(tree)
    _compare(saved, dict(zip(names, leaves, strict=True)))
    arrays = [
        jax.device_put(saved.weights[name].astype(leaf.dtype), sharding)
        for name, leaf in zip(names, leaves, strict=True)
    ]
    if jax.tree.leaves(streams):
        streams = jax.jit(lambda: nnx.state(build(config, rngs=nnx.Rngs(0)), nnx.RngState))()
    weights = jax.tree.unflatten(jax.tree.structure(tree), arrays)
    model = nnx.merge(graphdef, nnx.to_pure_dict(streams), weights)
    return model if saved.statistics is None else Standardized(model, **saved.statistics)


def _config(saved: Saved, dtype: DTypeLike | None) -> Any:
    """Returns the config of a saved model, in other dtypes if need be."""
    name = saved.config["model"]
    model = find(name)
    if model is None:
        raise ValueError(
            f"{saved.path}/{CONFIG} names the model {name!r}, which is not registered: {closest(name, models())} "
            "Import the module that registers it first."
        )
    try:
        config = from_dict(model.config, saved.config["config"], name="config")
    except (TypeError, ValueError) as error:
        version = saved.config.get("jaxop")
        raise ValueError(f"{saved.path}/{CONFIG}, written by jaxop {version}: {error}") from error
    if dtype is None:
        return config
    name = jnp.dtype(dtype).name
    return config.in_dtypes(dtype=name, param_dtype=name)


def _compare(saved: Saved, expected: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises ``ValueError`` unless the weights are those of the config; the message has up to ten that differ."""
    faults = [f"{name} is missing" for name in expected if name not in saved.weights]
    faults += [f"{name} is not in the model" for name in saved.weights if name not in expected]
    for name in expected.keys() & saved.weights.keys():
        has, needs = saved.weights[name], expected[name]
        if has.shape != needs.shape or jnp.issubdtype(has.dtype, jnp.inexact) != jnp.issubdtype(
            needs.dtype, jnp.inexact
        ):
            faults.append(f"{name} is {has.dtype}{list(has.shape)}, expected {needs.dtype}{list(needs.shape)}")
    if faults:
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        listed = "\n  ".join(sorted(faults)[:10])
        raise ValueError(f"the weights of {saved.path} are not those of its config:\n  {listed}{more}")
