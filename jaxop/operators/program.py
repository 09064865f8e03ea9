"""Operators as compiled programs in one file, which plain JAX runs."""

import json
import math
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxop._platform import compiled_for
from jaxop._validation import check_name, check_type, float_dtype
from jaxop.domains import Decomposed, Domain, Grid, PointCloud
from jaxop.domains.domain import as_domain
from jaxop.domains.grid import Axis
from jaxop.domains.rules import PERIODIC
from jaxop.operators.config import OperatorConfig
from jaxop.operators.constraint import AroundConfig, innermost
from jaxop.operators.ensemble import EnsembleConfig
from jaxop.operators.folder import PROGRAM, write_files
from jaxop.operators.registry import model_of
from jaxop.operators.standardized import Standardized

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that `export` can make a program for."""

SYMBOLIC = ("batch", "nodes")
"""Sizes that `export` can leave open."""

ABOUT = "about.json"

Config = OperatorConfig | AroundConfig


def export(
    operator: nnx.Module,
    path: str | os.PathLike[str],
    domain: Domain | Decomposed | None = None,
    *,
    at: Domain | Decomposed | None = None,
    symbolic: Sequence[str] = SYMBOLIC,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Path:
    """Writes the operator as one file, a program with its weights that runs with JAX alone.

    The file is a zip archive of the program (``operator.bin``, as `jax.export` serialises it) and of a description of
    its arguments (``about.json``). Three lines run it, without jaxop, Flax and the code of the model::

        import jax, zipfile
        program = jax.export.deserialize(bytearray(zipfile.ZipFile("model.zip").read("operator.bin")))
        outputs = program.call(values=values, points=points, weights=weights)

    The arguments are arrays, passed by name. All are in JAX's default floating dtype here, float32 unless x64 is
    enabled, and so are the outputs, (b, k, c_out) or (b, n, c_out):

    * ``values``: the input functions, (b, n, c_in), in the units that the operator takes. Those of a `Standardized`
      are the units of its data, also for the outputs.
    * ``points`` (n, dim) and ``weights`` (n,): nodes and quadrature weights of the domain, if the nodes are symbolic.
    * ``at`` (k, dim): the nodes of the output, if the nodes are symbolic and the operator evaluates anywhere; with
      ``at_weights`` (k,), their quadrature weights, if a constraint fixes an integral of the output.
    * ``axis_0`` (n_0,), …: in place of these three, the nodes along each axis of a grid of equal weights, if the nodes
      are symbolic and the operator acts on grids. Then n = n_0 ⋯ n_{dim−1}, in row-major order.
    * ``initial`` (b, c0): the initial condition, if the operator has one.

    The program is the operator in evaluation mode. It computes the same as the operator up to rounding. A grid must
    have at least two nodes per mode of the operator along each axis.

    Args:
        operator: a neural operator, one with constraints (`ConservativeOperator` and its like) or an `Ensemble`, whose
            program computes the mean; bare or in a `Standardized`.
        path: a new file, whose name ends in ``.zip``.
        domain: the nodes that are part of the program; None if they are symbolic.
        at: the nodes of the output that are part of the program; None means ``domain``, or symbolic nodes.
        symbolic: the sizes that the program takes as they come. "batch": any number of functions; without it the
            program takes one function, and no argument has the axis b. "nodes": any domain, which is then an argument.
        platforms: names in `PLATFORMS`. The program runs on these and is refused on others.

    Returns:
        The path.

    Raises:
        TypeError: if ``operator`` is of another kind, or ``domain`` or ``at`` is not a domain.
        ValueError: if a name is unknown, ``path`` does not end in ``.zip``, ``domain`` is given for symbolic nodes or
            missing for others, or it stacks the domains of several samples, or the operator cannot run on it.
        NotImplementedError: if the nodes of this operator cannot be symbolic; the message has the reason and the
            remedy.
        FileExistsError: if something is at ``path`` already.
        ImportError: if flatbuffers is not installed.

    Cost: one trace of the operator for all platforms; the file has the size of the weights and about 20 kB. With
        symbolic nodes, attention between n nodes takes O(n²) memory per head and function, because chunks need a known
        number; attention through latents takes O(n). Pass ``domain`` for large n. On symbolic grids the Fourier
        matrices are computed at each call, O(n_j m) per axis.

    Example:
        >>> import tempfile, zipfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
        >>> operator = operators.build(config, rngs=nnx.Rngs(0))
        >>> path = operators.export(operator, tempfile.mkdtemp() + "/tno.zip", platforms=["cpu"])
        >>> program = jax.export.deserialize(bytearray(zipfile.ZipFile(path).read("operator.bin")))
        >>> domain = domains.interval(9)
        >>> program.call(values=jnp.ones((5, 9, 1)), points=domain.points, weights=domain.weights).shape
        (5, 9, 1)
    """
    config = getattr(operator, "config", None)
    if not isinstance(operator, nnx.Module) or not isinstance(config, OperatorConfig | AroundConfig):
        kind = type(operator if config is None else config).__name__.removesuffix("Config")
        raise TypeError(
            "operator must be a neural operator of operators.CONFIGS, one with constraints or an ensemble, bare or in "
            f"a Standardized, got {kind}; export the operator inside of it, model.operator, which has no error bars "
            "and makes no steps, or call jax.export.export yourself."
        )
    check_type(path, "path", (str, os.PathLike), "the name of a new file that ends in .zip")
    if Path(path).suffix != ".zip":
        raise ValueError(f"path must be a file name that ends in .zip, got {os.fspath(path)!r}.")
    symbolic, platforms = _names(symbolic, "symbolic", SYMBOLIC), _names(platforms, "platforms", PLATFORMS)
    if not platforms:
        raise ValueError(f"platforms must have at least one name of {', '.join(PLATFORMS)}, got none.")
    scope = jax.export.SymbolicScope(_least_sides(config) if "nodes" in symbolic else ())
    if "nodes" in symbolic:
        if domain is not None or at is not None:
            raise ValueError(
                "domain and at must be None if the nodes are symbolic, because the program takes any; pass "
                "symbolic=['batch'] to make them a part of it."
            )
        config.check_any_nodes()
        shapes, place = _any_nodes(config, scope)
    else:
        shapes, place = _on_domain(config, domain, at)
    shapes = {"values": (shapes.pop("n"), config.in_channels), **shapes}
    if channels := getattr(config, "initial_channels", 0):
        shapes["initial"] = (channels,)
    in_units = isinstance(operator, Standardized) or (isinstance(config, EnsembleConfig) and config.standardized)
    batch = jax.export.symbolic_shape("b", scope=scope) if "batch" in symbolic else ()
    arguments = {
        name: jax.ShapeDtypeStruct((*batch, *shape) if name in ("values", "initial") else shape, float_dtype())
        for name, shape in shapes.items()
    }
    exported = _traced(_caller(operator, place), arguments, config, symbolic, platforms)
    about = {
        "jaxop": metadata.version("jaxop"),
        "jax": metadata.version("jax"),
        "model": model_of(config).name,
        "units": "of the data" if in_units else "of the operator, as it was trained",
        "symbolic": symbolic,
        "platforms": platforms,
        "arguments": {name: _described(aval) for name, aval in arguments.items()},
        "outputs": _described(exported.out_avals[0]),
    }
    files = {PROGRAM: _serialised(exported), ABOUT: (json.dumps(about, indent=2) + "\n").encode()}
    return write_files(Path(path), files)


def _names(given: Sequence[str], argument: str, known: Sequence[str]) -> list[str]:
    """Returns names without repetition, in the order of the known ones."""
    for name in [given] if isinstance(given, str) else given:
        check_name(name, argument, known)
    return [name for name in known if name in given]


def _least_sides(config: Config) -> list[str]:
    """Returns the constraints with which a grid represents all modes of an operator."""
    config = innermost(config)
    modes = getattr(config, "modes", 1) if config.acts_on_grids else 1
    return [f"n_{axis} >= {2 * modes}" for axis in range(config.dim)] if config.acts_on_grids else []


Shapes = dict[str, Any]
Place = Callable[[dict[str, Array]], tuple[Domain | Decomposed, Domain | Decomposed | None]]
"""Returns the domain of the input and the one of the output from the arguments of the program."""


def _any_nodes(around: Config, scope: jax.export.SymbolicScope) -> tuple[Shapes, Place]:
    """Returns the shapes of the arguments of a program for any nodes, with their number n, and how it reads them."""
    config = innermost(around)
    if config.acts_on_grids:
        names = [f"axis_{axis}" for axis in range(config.dim)]
        sides = jax.export.symbolic_shape(", ".join(f"n_{axis}" for axis in range(config.dim)), scope=scope)

        def grid(given: dict[str, Array]) -> tuple[Grid, None]:
            axes = [given[name] for name in names]
            return Grid(
                tuple(Axis(nodes, jnp.broadcast_to(jnp.diff(nodes)[:1], nodes.shape), PERIODIC) for nodes in axes)
            ), None

        return {"n": math.prod(sides)} | {name: (side,) for name, side in zip(names, sides, strict=True)}, grid
    n, k = jax.export.symbolic_shape("n, k", scope=scope)
    shapes = {"n": n, "points": (n, config.dim), "weights": (n,)}
    if around.evaluates_anywhere:
        shapes["at"] = (k, config.dim)
        if isinstance(around, AroundConfig) and around.weighs_outputs:
            shapes["at_weights"] = (k,)

    def cloud(given: dict[str, Array]) -> tuple[PointCloud, PointCloud | None]:
        at = given.get("at")
        if at is not None:
            # unless they are given, the weights have no effect
            at = PointCloud(at, given.get("at_weights", jnp.ones(at.shape[0], at.dtype)))
        return PointCloud(given["points"], given["weights"]), at

    return shapes, cloud


def _on_domain(
    config: Config, domain: Domain | Decomposed | None, at: Domain | Decomposed | None
) -> tuple[Shapes, Place]:
    """Returns the number n of nodes of a known domain, and the domains as parts of a program."""
    if domain is None:
        raise ValueError(
            "domain must be given unless the nodes are symbolic; pass the domain of the values, or "
            "symbolic=['batch', 'nodes']."
        )
    for argument, where in (("domain", domain), ("at", at)):
        if where is not None and as_domain(where, argument).is_batched:
            raise ValueError(
                f"{argument} must be one domain, got a stack of one for each sample; with symbolic nodes, call the "
                "program once per sample."
            )
    prepared = config.prepare(domain)
    return {"n": domain.size}, lambda _: (prepared, at)


def _caller(operator: nnx.Module, place: Place) -> Callable[..., Array]:
    """Returns the operator in evaluation mode as a function of the arguments of the program."""
    graphdef, streams, rest = nnx.split(operator, nnx.RngState, ...)
    # on one device, however the weights are divided
    weights = jax.tree.map(jnp.asarray, jax.device_get(nnx.to_pure_dict(rest)))
    model = nnx.merge(graphdef, nnx.to_pure_dict(streams), weights)
    model.eval()

    def call(**given: Array) -> Array:
        domain, at = place(given)
        outputs = model(given["values"], domain, at=at, initial=given.get("initial"))  # pyright: ignore[reportCallIssue]
        return outputs.astype(float_dtype())

    return call


def _traced(
    call: Callable[..., Array],
    arguments: dict[str, jax.ShapeDtypeStruct],
    config: Config,
    symbolic: Sequence[str],
    platforms: Sequence[str],
) -> jax.export.Exported:
    """Returns the program for all platforms, which the platform of this host does not change."""
    name = "cpu" if "cpu" in platforms else "tpu" if "tpu" in platforms else "gpu"
    try:
        with compiled_for(name):
            return jax.export.export(jax.jit(call), platforms=platforms)(**arguments)
    except (jax.errors.InconclusiveDimensionOperation, jax.errors.JAXTypeError) as error:
        if not symbolic:
            raise
        remedy = "symbolic=['batch'] and a domain" if "nodes" in symbolic else "symbolic=[]"
        raise NotImplementedError(
            f"{type(config).__name__.removesuffix('Config')} cannot be traced with symbolic {' and '.join(symbolic)}, "
            f"because it needs the value of a size: {str(error).splitlines()[0]} Pass {remedy}."
        ) from error


def _described(aval: Any) -> dict[str, Any]:
    return {"shape": [size if isinstance(size, int) else str(size) for size in aval.shape], "dtype": str(aval.dtype)}


def _serialised(exported: jax.export.Exported) -> bytes:
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ImportError("exported programs need flatbuffers; install it with: pip install 'jaxop[share]'") from error
