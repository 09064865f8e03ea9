#!/usr/bin/env bash
# Runs one command of jaxop on all machines of a TPU slice, where JAX finds the processes by itself:
#
#     TPU=my-slice ZONE=us-west4-a scripts/launch/tpu_slice.sh train darcy_fano --run-dir "$RUNS/wide"
#
# Every machine has a checkout in ~/jaxop with jaxop[scripts] and jax[tpu] installed. $RUNS is a folder of a
# file system that all of them share. $PROGRAM replaces `python3 -m jaxop`.
set -euo pipefail
printf -v arguments '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd jaxop && ${PROGRAM:-python3 -m jaxop} $arguments"
