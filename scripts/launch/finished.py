"""Tells by the exit status whether a run has taken all its steps: 0 if it has, 1 if it can go on.

python scripts/launch/finished.py runs/wide
"""

import sys
from collections.abc import Sequence

from jaxop import training


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    try:
        run = training.load_run(arguments[0])
    except FileNotFoundError:  # it has not begun
        return 1
    return 0 if run.checkpoints.latest == run.training.steps else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
