#!/usr/bin/env bash
# Runs the tests in the environment .venv, which is made if need be. Arguments go to pytest: scripts/test.sh -m study
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare dev
# Small programs take longer to compile than to run: without LLVM's optimisations the suite takes two thirds of the time.
# XLA_FLAGS= brings them back.
export XLA_FLAGS=${XLA_FLAGS---xla_backend_optimization_level=0}
exec "$python" -m pytest -n 2 --dist=worksteal "$@"
