"""Trains an operator and evaluates it on other grids: `jaxop train`, and `jaxop resume` if the first argument says so.

python scripts/train.py darcy_fano --training.steps 500 --model.width 64 --run-dir runs/wide
python scripts/train.py custom --data.train a.npz --data.operator fano
python scripts/train.py darcy_fano --help
python scripts/train.py resume runs/wide
"""

import sys
from collections.abc import Sequence

from jaxop.experiments import cli


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    return cli.main(arguments if arguments[:1] == ["resume"] else ["train", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
