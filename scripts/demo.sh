#!/usr/bin/env bash
# Trains the Fourier attention neural operator on Darcy flow at 64² on the CPU, and evaluates it at 32², 64², 96² and
# 128² with the same weights. On 2 cores, after set-up: a minute for the data and at most 280 s of training. Further
# arguments go to `jaxop train demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare scripts
JAX_PLATFORMS=cpu exec "$python" -m jaxop train demo "$@"
