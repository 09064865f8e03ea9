"""Work of a program on one device: operations of its jaxpr, and the bytes that its compiled form moves and sends.

XLA's own analysis counts the body of a loop once. Here it counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn

_PASSES = {jax.lax.Precision.HIGHEST: 6, jax.lax.Precision.HIGH: 3}
"""Products of bfloat16 numbers that a TPU takes for one product of float32 numbers."""

_MOVES = """
    broadcast_in_dim reshape transpose squeeze expand_dims slice dynamic_slice dynamic_update_slice concatenate pad
    gather scatter rev copy copy_p convert_element_type bitcast_convert_type iota stop_gradient split select_n
    optimization_barrier axis_index reshard sharding_constraint pvary device_put empty
"""
"""Names of the operations that move numbers and do not compute."""


@dataclasses.dataclass(frozen=True)
class Operations:
    """Floating-point operations.

    Attributes:
        all: additions, multiplications and functions of numbers.
        products: operations of matrix products, as bfloat16 operations of a matrix unit: a product that asks for the
            precision of float32 counts several times.
    """

    all: float = 0.0
    products: float = 0.0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(self.all + other.all, self.products + other.products)

    def times(self, count: float) -> "Operations":
        """Returns the operations of ``count`` runs."""
        return Operations(count * self.all, count * self.products)


def operations(jaxpr: Jaxpr) -> Operations:
    """Returns the operations of a program; inside `jax.shard_map`, those of one device.

    A loop with an unknown number of turns counts as one turn, and a conditional as its longest branch.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxop.training._program import operations
        >>> operations(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4))).jaxpr).all
        48.0
    """
    return functools.reduce(Operations.__add__, map(_operations_of, jaxpr.eqns), Operations())


def _operations_of(equation: JaxprEqn) -> Operations:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        count = 2.0 * _size(equation.outvars) * math.prod(shape[axis] for axis in contracted)
        precision = params["precision"]
        first = precision[0] if isinstance(precision, tuple) else precision
        return Operations(count, count * _PASSES.get(first, 1))
    if name == "fft":
        length = math.prod(params["fft_lengths"])
        count = 5.0 * max(_size(equation.invars), _size(equation.outvars)) * math.log2(max(length, 2))
        return Operations(count)
    if name == "cond":
        branches = [operations(branch.jaxpr) for branch in params["branches"]]
        return max(branches, key=lambda branch: branch.all)
    inner = [operations(jaxpr) for jaxpr in inner_programs(params)]
    if inner:
        turns = params["length"] if name == "scan" else 1
        if name == "pallas_call":
            turns = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
        return functools.reduce(Operations.__add__, inner).times(turns)
    if name in _MOVES.split() or not any(map(_is_inexact, equation.outvars)):
        return Operations()
    is_reduction = name.startswith(("reduce_", "cum", "arg"))
    return Operations(float(_size(equation.invars if is_reduction else equation.outvars)))


def inner_programs(params: Mapping[str, Any]) -> Iterable[Jaxpr]:
    """Returns the programs inside an equation."""
    for value in jax.tree.leaves(dict(params), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _is_inexact(variable: Any) -> bool:
    return hasattr(variable.aval, "dtype") and jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _size(variables: Iterable[Any]) -> int:
    return sum(math.prod(_shape(variable)) for variable in variables)


@dataclasses.dataclass(frozen=True)
class Message:
    """A message between devices.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute" or
            "collective-broadcast".
        size: bytes of its result on one device.
        devices: number of devices that take part.
        count: how often it is sent in one run of the program.
    """

    kind: str
    size: int
    devices: int
    count: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all, by the algorithms of a ring."""
        others = (self.devices - 1) / self.devices
        factors = {"all-reduce": 2 * others, "all-gather": others, "all-to-all": others}
        return self.count * self.size * (factors | {"reduce-scatter": self.devices - 1.0}).get(self.kind, 1.0)


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>\S+) = (?P<result>.+?) (?P<kind>[a-z][a-z0-9-]*)\((?P<rest>.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_FREE = """
    parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id while conditional call
    async-start async-update async-done copy-done opt-barrier domain
"""
"""Kinds of instructions that do not move bytes themselves."""


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    kind: str
    operands: tuple[str, ...]
    rest: str

    @property
    def called(self) -> list[str]:
        found = [one or several for one, several in _CALLED.findall(self.rest)]
        return [name.strip().lstrip("%") for names in found for name in names.split(",")]


class Program:
    """A compiled program, read from its text.

    Args:
        text: ``jax.jit(function).lower(...).compile().as_text()``.
        devices: devices that it runs on.

    Attributes:
        messages: the messages between devices.
        bytes_moved: bytes that are read from and written to the memory of a device, about: every operation reads its
            operands and writes its results, except for what stays in the registers and on-chip memory of a TPU.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxop.training._program import Program
        >>> Program(jax.jit(jnp.sin).lower(jnp.ones(8)).compile().as_text(), 1).bytes_moved
        64
    """

    def __init__(self, text: str, devices: int):
        self._computations, entry = _read(text)
        self._devices = devices
        found: dict[tuple[str, int, int], int] = {}
        self.bytes_moved = self._count(entry, 1, found)
        self.messages = tuple(Message(*message, count) for message, count in found.items())

    def _count(self, name: str, turns: int, found: dict[tuple[str, int, int], int]) -> int:
        """Returns the bytes that a computation moves in some runs, and adds its messages to those found."""
        computation, moved = self._computations[name], 0
        for instruction in computation.values():
            kind = instruction.kind.removesuffix("-start")
            if kind in _KINDS.split("|"):
                message = kind, self._message_size(instruction, computation), self._group(instruction.rest)
                found[message] = found.get(message, 0) + turns
            if instruction.kind == "while":
                (body,) = instruction.called
                moved += self._count(body, turns * self._turns(instruction), found)
            elif instruction.kind in ("call", "conditional", "async-start"):
                moved += sum(self._count(called, turns, found) for called in instruction.called)
            if instruction.kind not in _FREE.split() and not instruction.kind.endswith("-done"):
                moved += turns * self._moved(instruction, computation)
        return moved

    def _turns(self, loop: _Instruction) -> int:
        """Returns the number of turns of a loop, 1 if it is unknown."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.-]+)", loop.rest)
        instructions = [] if condition is None else list(self._computations[condition[1]].values())
        bounds = [i for i in instructions if i.kind == "constant" and i.result.startswith(("s32[]", "u32[]"))]
        bound = re.match(r"(\d+)\)", bounds[0].rest) if len(bounds) == 1 else None
        return 1 if bound is None else int(bound[1])

    def _moved(self, instruction: _Instruction, computation: Mapping[str, _Instruction]) -> int:
        operands = [computation[name].result for name in instruction.operands if name in computation]
        if "AllocateBuffer" in instruction.rest:
            return 0
        if instruction.kind == "dynamic-slice":
            return 2 * _bytes(instruction.result)
        if instruction.kind.endswith("-start"):  # the result is (destination, source, state)
            kind, shape, layout = _ARRAY.findall(instruction.result)[0]
            read = min(_bytes(f"{kind}[{shape}]"), sum(map(_bytes, operands)))
            return read + _bytes(f"{kind}[{shape}]{layout}")
        if instruction.kind == "dynamic-update-slice":
            return 2 * _bytes(operands[1])
        if instruction.kind == "fusion":
            return self._moved_by_fusion(instruction, operands)
        return _bytes(instruction.result) + sum(map(_bytes, operands))

    def _moved_by_fusion(self, fusion: _Instruction, operands: list[str]) -> int:
        """Returns the bytes of a fusion, which reads only slices of what it slices and writes only what it updates."""
        inner = self._computations[fusion.called[0]]
        parameters = {i.name: int(i.rest.split(")")[0]) for i in inner.values() if i.kind == "parameter"}
        aliases = dict(parameters)
        for instruction in inner.values():  # in the order of their definition
            if instruction.kind == "bitcast" and instruction.operands[0] in aliases:
                aliases[instruction.name] = aliases[instruction.operands[0]]
        read, updates, written = dict.fromkeys(range(len(operands)), 0), 0, _bytes(fusion.result)
        for instruction in inner.values():
            if instruction.kind in ("parameter", "bitcast"):
                continue
            for place, name in enumerate(instruction.operands):
                number = aliases.get(name)
                if number is None or number >= len(operands):
                    continue
                size = _bytes(operands[number])
                if instruction.kind == "dynamic-slice" and place == 0:
                    size = min(size, _bytes(instruction.result))
                elif instruction.kind == "dynamic-update-slice" and place == 0:
                    size = 0
                    updates += _bytes(inner[instruction.operands[1]].result) if _in_memory(operands[number]) else 0
                    written -= _bytes(operands[number])
                read[number] = max(read[number], size)
        return sum(read.values()) + max(written, 0) + updates

    def _message_size(self, instruction: _Instruction, computation: Mapping[str, _Instruction]) -> int:
        arrays = [_bytes(f"{kind}[{shape}]") for kind, shape, _ in _ARRAY.findall(instruction.result)]
        if not instruction.kind.endswith("-start") or instruction.kind.startswith("all-reduce"):
            return sum(arrays)
        count = len([name for name in instruction.operands if name in computation])
        return sum(arrays[count : 2 * count])  # the result of a start is (operands, results, state)

    def _group(self, rest: str) -> int:
        if first := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
            return len(first[1].split(","))
        shape = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
        return self._devices if shape is None else int(shape[1])


def _read(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Returns the computations of a program by name, each as its instructions by name, and the name of the first."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.-]+) \(", line)):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif match := _INSTRUCTION.match(line):
            inside, _, rest = match["rest"].partition(")")
            operands = tuple(re.findall(r"%([\w.-]+)", inside))
            whole = match["rest"] if match["kind"] in ("constant", "parameter") else rest
            name = match["name"]
            current[name] = _Instruction(name, match["result"], match["kind"], operands, whole)
    return computations, entry


def _in_memory(array: str) -> bool:
    return not re.search(r"S\([1-9]\d*\)", array)


def _bytes(result: str) -> int:
    """Returns the bytes of the arrays of a result that are in the memory of the device."""
    total = 0
    for kind, shape, layout in _ARRAY.findall(result):
        if _in_memory(layout):
            digits = re.search(r"\d+", kind)
            bits = int(digits[0]) if digits else 8
            total += math.prod(map(int, filter(None, shape.split(",")))) * max(1, bits // 8)
    return total
