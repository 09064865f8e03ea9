"""One training step of the operators against plain PyTorch, with the default and a tuned allocator."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import scratch_bytes
from benchmarks.timing import allocators, measured_by, median_seconds_in_turns
from benchmarks.training_step import TrainingStep
from jaxop import data, domains, operators, training
from jaxop._validation import check_name

ABOUT = {
    "steps": About(
        "Training steps of the operators against PyTorch",
        "One training step of each operator is compared with plain PyTorch code of the same model: batch 4, 32 "
        "channels, 8 heads and 6 layers, for the TNO batch 64 and 128 channels. Each time is measured in a fresh "
        "process, under the default settings of glibc's allocator and under tuned ones. The ratio divides the time of "
        "jaxop with exact GELU by that of PyTorch: below 1 jaxop is faster. PyTorch's TNO calls its fused attention, "
        "which has no quadrature weights; the last rows compare with attention by einsum. Scratch is the temporary "
        "memory of the step of jaxop.",
        packages=("torch",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of one operator.

    Attributes:
        model: short name of the operator.
        side: nodes along each side of the grid (ViTNO, FANO).
        patch: nodes along each side of a patch (ViTNO, FANO).
        modes: Fourier modes along each axis (ViTNO, FANO).
        nodes: nodes of the interval (TNO).
        width: channels.
        batch: functions in a batch.
        repeats: measured steps.
    """

    model: str
    side: int = 64
    patch: int = 16
    modes: int = 8
    nodes: int = 200
    width: int = 32
    batch: int = 4
    repeats: int = 7

    @property
    def options(self) -> list[str]:
        """The step as the command line of `step` and of torch_operators.py."""
        return [text for name, value in vars(self).items() for text in (f"--{name}", str(value))]


@dataclasses.dataclass(frozen=True)
class Contest:
    """A step, and how PyTorch's TNO writes attention: "fused" or "einsum"."""

    step: Step
    attention: str = "fused"


TNO = Step("tno", nodes=200, width=128, batch=64)
CONTESTS = {
    "FANO 64², patch 16, 8 modes": Contest(Step("fano", side=64, patch=16, modes=8)),
    "ViTNO 64², patch 16, 8 modes": Contest(Step("vitno", side=64, patch=16, modes=8)),
    "FANO 128², patch 32, 9 modes": Contest(Step("fano", side=128, patch=32, modes=9)),
    "ViTNO 128², patch 32, 9 modes": Contest(Step("vitno", side=128, patch=32, modes=9)),
    "TNO 200 nodes, d = 128, batch 64": Contest(TNO),
    "TNO, PyTorch with einsum attention": Contest(TNO, attention="einsum"),
}
"""The rows of the table."""


def main(rows: tuple[str, ...] = tuple(CONTESTS), repeats: int = 7) -> None:
    """Prints the table; every step is measured in a process of its own.

    Args:
        rows: which ones, by their names.
        repeats: measured steps.
    """
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        print("\n(torch is not installed: its columns are left out)")
    print_header("step", "allocator", "jaxop, GELU", "jaxop, tanh GELU", "PyTorch", "ratio", "scratch")
    for name in rows:
        check_name(name, "rows", CONTESTS)
        contest = CONTESTS[name]
        options = dataclasses.replace(contest.step, repeats=repeats).options
        for allocator, environment in allocators().items():
            exact = measured_by("run.py", "step", *options, environment=environment)
            tanh = measured_by("run.py", "step", *options, "--activation", "gelu_tanh", environment=environment)
            cells = ["", ""]
            if has_torch:
                theirs = measured_by(
                    "torch_operators.py", *options, "--attention", contest.attention, environment=environment
                )
                cells = [f"{theirs['seconds']:.3f} s", f"{exact['seconds'] / theirs['seconds']:.2f}"]
            scratch = f"{exact['scratch'] / 2**20:.0f} MB"
            print_row(name, allocator, f"{exact['seconds']:.3f} s", f"{tanh['seconds']:.3f} s", *cells, scratch)


def step(options: Step, activation: str = "gelu", accumulate: int | None = None) -> None:
    """Prints one line of JSON with the median seconds and the scratch of a compiled training step.

    Args:
        options: the step.
        activation: "gelu" or "gelu_tanh".
        accumulate: micro-batches; None takes one for every 4 functions of a TNO, and one for a grid.
    """
    if options.model == "tno":
        config = operators.TransformerNeuralOperatorConfig(1, 1, width=options.width, activation=activation)
        domain, micro_batches = domains.interval(options.nodes), options.batch // 4
    else:
        config = operators.CONFIGS[options.model](
            1,
            1,
            width=options.width,
            patches=options.side // options.patch,
            modes=options.modes,
            reference=options.side,
            activation=activation,
        )
        domain, micro_batches = domains.box((options.side,) * 2, rule="midpoint"), 1
    settings = training.TrainingConfig(batch_size=options.batch, accumulate=accumulate or micro_batches)
    inputs, targets = jax.random.normal(jax.random.key(0), (2, options.batch, domain.size, 1))
    batch = data.Batch(inputs, targets, domain, None, None, jnp.arange(options.batch))
    one = TrainingStep(operators.build(config, rngs=nnx.Rngs(0)), batch, settings)
    seconds = median_seconds_in_turns({"step": one}, options.repeats)["step"]
    print(json.dumps({"seconds": seconds, "scratch": scratch_bytes(one.program)}))
