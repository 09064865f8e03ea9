"""Kernels as functions of their arguments only, for compiled programs that are used again after a call."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxop
from jaxop._pytree import register
from jaxop._varying import varying_like
from jaxop.attention.operands import Operands, cast_kernel
from jaxop.kernels import ExpDotProduct, FunctionKernel, Kernel, LearnedFeatures, PerHead
from jaxop.kernels.per_head import one_head


def is_closed(kernel: Kernel | PerHead) -> bool:
    """Returns whether a kernel depends only on its structure and its leaves, which are numbers or arrays.

    Kernels of this library do, unless they call functions of the user. Such functions may close over (traced) arrays
    and over values that change from call to call.
    """
    library = __name__.partition(".")[0]

    def is_open(part: object) -> bool:
        return isinstance(part, FunctionKernel | LearnedFeatures) or (
            isinstance(part, Kernel) and type(part).__module__.partition(".")[0] != library
        )

    leaves = jax.tree.leaves(kernel, is_leaf=is_open)
    return all(isinstance(leaf, int | float | jax.Array | np.ndarray | np.generic) for leaf in leaves)


def close(operands: Operands, shapes: Sequence[tuple[int, int]]) -> Operands:
    """Returns the same operands with a kernel that `is_closed`, for tiles that vary over the same devices.

    Args:
        operands: operands with any kernel.
        shapes: shapes of the queries and the keys of a tile.
    """
    if is_closed(operands.kernel):
        return varying_like(operands)
    kernel, dtype = operands.kernel, operands.dtype
    is_per_head = isinstance(kernel, PerHead)
    rest = dataclasses.replace(operands, kernel=ExpDotProduct())  # everything except the kernel
    leaves, structure = jax.tree.flatten(cast_kernel(one_head(kernel), dtype))
    is_array = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    arrays = [jnp.asarray(leaf) for leaf, here in zip(leaves, is_array, strict=True) if here]
    others = [leaf for leaf, here in zip(leaves, is_array, strict=True) if not here]

    def evaluate(arrays: list[Array], query: Array, key: Array) -> Array:
        sources = iter(others), iter(arrays)
        return jax.tree.unflatten(structure, [next(sources[here]) for here in is_array]).tile(query, key)

    def trace(*varying: Sequence[Array]) -> jax.extend.core.ClosedJaxpr:
        of_head = [jnp.zeros(a.shape[1:] if is_per_head else a.shape, a.dtype) for a in arrays]
        nodes = [jnp.zeros(shape, dtype) for shape in shapes]
        return jax.make_jaxpr(evaluate)(*varying_like((of_head, *nodes), arrays, rest, *varying))

    closed = trace()
    if varying_like(closed.consts) is not closed.consts:
        closed = trace(closed.consts)  # arguments that vary over devices like the arrays that functions close over
    constants = [jnp.asarray(c) for c in closed.consts]
    arrays, rest = varying_like((arrays, rest), constants)
    if is_per_head:
        constants = [jnp.broadcast_to(c[None], (operands.heads, *c.shape)) for c in constants]
    text = closed.jaxpr.pretty_print(use_color=False, custom_pp_eqn_rules=False)
    program = _Program(closed.jaxpr, text, (structure, *others), _is_written_out(closed.jaxpr))
    tiles = _Closed(arrays, constants, program, kernel.sign)
    return dataclasses.replace(rest, kernel=PerHead(tiles) if is_per_head else tiles)


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """Program of the tile of a kernel. Two programs are equal if they are the same computation of the same functions.

    Attributes:
        jaxpr: maps (constants, leaves, query, key) to the tile.
        text: the jaxpr in full, with every number.
        source: the structure of the kernel, with its functions and those leaves that are not arrays.
        is_written_out: whether the text determines the program. If not, the program is equal only to itself, and every
            eager call compiles it.
    """

    jaxpr: jax.extend.core.Jaxpr
    text: str
    source: tuple[object, ...]
    is_written_out: bool

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        if self is other or not (isinstance(other, _Program) and self.is_written_out and other.is_written_out):
            return self is other
        return self.text == other.text and self.source == other.source


_RULES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")
_PACKAGES = tuple(str(Path(module.__file__ or "").parent) for module in (jax, jaxop))


def _is_written_out(jaxpr: jax.extend.core.Jaxpr) -> bool:
    """Returns whether the text of a jaxpr determines its values and derivatives.

    The text does not show derivatives that `jax.custom_jvp` or `jax.custom_vjp` define, or the code of a callback.
    Those of JAX and of this library do not change.
    """
    for equation in jaxpr.eqns:
        if any("callback" in name for name in (equation.primitive.name, *equation.params)):
            return False
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if not hasattr(inner, "eqns"):
                continue
            if equation.primitive.name in _RULES and not str(inner.debug_info.func_filename).startswith(_PACKAGES):
                return False
            if not _is_written_out(inner):
                return False
    return True


@functools.partial(register, static=("program", "sign"))
@dataclasses.dataclass(frozen=True)
class _Closed(Kernel):
    """A kernel given by the program of its tiles."""

    leaves: list[Array]
    constants: list[Array]
    program: _Program
    sign: str

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        raise NotImplementedError

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        closed = jax.extend.core.ClosedJaxpr(self.program.jaxpr, self.constants)
        return jax.extend.core.jaxpr_as_fun(closed)(*self.leaves, query, key)[0]
