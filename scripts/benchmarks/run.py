"""Measures jaxop against the usual alternatives: medians, and ratios within one run.

    python scripts/benchmarks/run.py                  # all tables, about 25 minutes on two cores
    python scripts/benchmarks/run.py attention        # one of them
    python scripts/benchmarks/run.py attention --write
    python scripts/benchmarks/run.py attention --help

Prints Markdown tables; with --write the table of a section also goes to SECTION.md beside this file. Every row is
measured in fresh processes that alternate where allocator settings matter; PyTorch rows need
``pip install 'jaxop[benchmark]'`` and are left out without it.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies.commands import Command, run_command

from jaxop.experiments.terminal import print_anywhere

SECTIONS = {
    "attention": Command("benchmarks.attention", "integral_attention against jax.nn.dot_product_attention"),
    "large": Command("benchmarks.large", "one head on 65 536 nodes"),
    "kernels": Command("benchmarks.kernels", "attention with every kernel against softmax's"),
    "patches": Command("benchmarks.patches", "FANO's attention as the nodes per patch grow"),
    "steps": Command("benchmarks.steps", "training steps of the operators against PyTorch"),
    "fourier": Command("benchmarks.fourier", "Fourier integral attention against jnp, PyTorch and KeOps"),
    "transformers": Command("benchmarks.text_and_images", "training steps with the Fourier kernel and with softmax"),
    "momentum": Command("benchmarks.momentum", "training steps with every momentum block"),
    "flows": Command("benchmarks.flows", "the accelerated linear flow for a growing number of particles"),
    "machines": Command("benchmarks.machines", "binary kernel machines against scikit-learn, and large ones"),
    "schwarz": Command("benchmarks.schwarz", "two-level Schwarz operators against global low rank"),
    "two-level": Command("benchmarks.two_level", "layers of Schwarz attention against global attention"),
    "latent": Command("benchmarks.latent", "layers of latent attention against jnp and PyTorch, up to 10⁶ nodes"),
    "latent-grid": Command("benchmarks.latent_grid", "averages on a latent grid against sums over all pairs"),
    "own-nodes": Command("benchmarks.own_nodes", "training steps on samples of 10⁴ nodes of their own"),
    "share": Command("benchmarks.share", "trained models: first answers, sizes, many query points, ensembles"),
    "scale": Command("benchmarks.scale", "training steps on several devices and, ahead of time, on slices of TPUs"),
}
"""The tables."""

MEASUREMENTS = {
    "step": Command("benchmarks.steps", "one measurement of steps, as JSON", "step"),
    "momentum-steps": Command("benchmarks.momentum", "the measurements of momentum, as JSON", "steps"),
    "latent-layer": Command("benchmarks.latent", "one measurement of latent, as JSON", "layer"),
    "scale-devices": Command("benchmarks.scale", "an operator on fake devices, as JSON", "devices"),
    "scale-plan": Command("benchmarks.scale", "the plan of a step for a topology, as JSON", "plan"),
}
"""Measurements that the tables make in processes of their own."""


def command_line(arguments: Sequence[str]) -> None:
    """Makes the table that the first argument names; without a name all tables, each in a process of its own."""
    if not set(arguments) <= {"--write"}:
        run_command(SECTIONS | MEASUREMENTS, __doc__, arguments, Path(__file__))
    else:
        for section in SECTIONS:
            subprocess.run([sys.executable, __file__, section, *arguments], check=True)


if __name__ == "__main__":
    print_anywhere()
    command_line(sys.argv[1:])
