#!/usr/bin/env bash
# Runs one command of jaxop in N processes on this machine, for example to try several processes before paying for them:
#
#     JAX_NUM_CPU_DEVICES=2 JAX_PLATFORMS=cpu scripts/launch/local.sh 2 train darcy_fano --run-dir runs/pair
#
# One process alone uses all devices of a machine: without this script, `jaxop train NAME` does.
# $PORT is a free port (by default a random one), $PYTHON the interpreter. With GPUs, LOCAL_DEVICES=1 gives each process
# the GPU of its own number.
set -euo pipefail
count=${1:?usage: local.sh N COMMAND [options]}
shift
command=(${PYTHON:-python3} -m jaxop)
address=127.0.0.1:${PORT:-$((20000 + RANDOM % 10000))}
processes=()
for ((i = 0; i < count; i++)); do
    own=(--cluster.coordinator "$address" --cluster.processes "$count" --cluster.process-id "$i")
    if [[ ${LOCAL_DEVICES:-} ]]; then own+=(--cluster.local-devices "$i"); fi
    "${command[@]}" "$@" "${own[@]}" &
    processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT # every process saves, and this script waits for them
status=0
for process in "${processes[@]}"; do
    while true; do
        code=0
        wait "$process" || code=$?
        kill -0 "$process" 2>/dev/null || break # a signal ends `wait`, but not the process
    done
    ((code > status)) && status=$code
done
exit "$status"
