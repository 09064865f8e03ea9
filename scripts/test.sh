#!/usr/bin/env bash
# Runs the tests in the environment .venv, which is made if need be. Arguments go to pytest: scripts/test.sh -m study
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare dev
unset PYTHONDONTWRITEBYTECODE # dozens of processes import the package
exec "$python" -m pytest -n 2 --dist=worksteal "$@"
