"""The command line: ``python -m jaxop``."""

import sys

from jaxop.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
