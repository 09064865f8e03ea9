"""The command line: ``python -m jaxop``."""

import sys

from jaxop.experiments.cli import main

sys.exit(main())
