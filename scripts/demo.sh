#!/usr/bin/env bash
# Trains a transformer neural operator on Darcy flow at 20² on the CPU, and evaluates it with the same parameters at 16²,
# 20², 32² and 40² and at 3000 scattered points. The times and errors to expect are in jaxop/experiments/configs/demo.py.
# Further arguments go to `jaxop train demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare scripts
JAX_PLATFORMS=cpu exec "$python" -m jaxop train demo "$@"
