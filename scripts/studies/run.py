"""Runs a study and prints its tables in Markdown.

    python scripts/studies/run.py kernels mnist --seeds 0 1
    python scripts/studies/run.py schwarz rank
    python scripts/studies/run.py schwarz rank --write
    python scripts/studies/run.py schwarz --help

With --write the tables of a study also go to STUDY.md or STUDY-NAME.md beside this file. With --traceback an error
shows where it came from.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxop.experiments import terminal
from studies.commands import Command, run_command

STUDIES = {
    "darcy": Command("studies.darcy", "neural operators on Darcy flow, at equal training time"),
    "kernels": Command("studies.kernels", "attention kernels on texts and images"),
    "momentum-text": Command("studies.momentum_text", "tokens with a velocity, on texts"),
    "momentum-operators": Command("studies.momentum_operators", "nodes with a velocity, in operators"),
    "machines": Command("studies.machines", "binary kernel machines on ratings of films"),
    "schwarz": Command("studies.schwarz.tables", "two-level Schwarz attention on elliptic equations"),
    "dynamics": Command("studies.dynamics.tables", "steppers of equations that move, and their rollouts"),
    "bands": Command("studies.bands", "error bars of an operator, on four sets of nodes"),
    "airfoils": Command("studies.airfoils", "pressure around airfoils, on meshes of their own"),
    "climate": Command("studies.climate", "real winds and temperatures, month by month"),
    "theory": Command("studies.theory", "orders and rates that theory predicts"),
    "fetch": Command("studies.real_data", "only fetches the data of the studies"),
}


def command_line(arguments: Sequence[str]) -> None:
    """Runs the study that the first argument names."""
    terminal.tune_allocator()
    run_command(STUDIES, __doc__, arguments, Path(__file__))


if __name__ == "__main__":
    sys.exit(terminal.run_command(command_line, sys.argv[1:]))
