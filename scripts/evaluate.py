"""Evaluates a trained run on files or on other grids: `jaxop evaluate`.

python scripts/evaluate.py runs/mine --data b.npz c.h5
python scripts/evaluate.py runs/darcy_fano --grids 32 64 96 128
"""

import sys
from collections.abc import Sequence

from jaxop.experiments import cli


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    return cli.main(["evaluate", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
