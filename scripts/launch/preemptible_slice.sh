#!/usr/bin/env bash
# Trains on a preemptible (spot) TPU slice: makes it, starts the run on all its machines, and makes a new slice whenever
# this one was taken away. It runs on a machine that stays, until the run is finished.
#
#     TPU=my-slice ZONE=us-west4-a TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite \
#     SETUP='git clone URL jaxop && pip install "./jaxop[scripts]" "jax[tpu]"' \
#     scripts/launch/preemptible_slice.sh "$RUNS/wide" darcy_fano --training.steps 100000
#
# $RUNS is a folder of a file system that all machines share; $SETUP prepares a new machine, that folder included.
# $POLL_S seconds (30) lie between two looks at the state of the slice.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
slice() { gcloud compute tpus queued-resources "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
state() { slice describe --format='value(state.state)' 2>/dev/null || echo ABSENT; }

while true; do
    if [[ $(state) == ABSENT ]]; then
        slice create --node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
    fi
    while [[ $(state) =~ ^(ACCEPTED|PROVISIONING|CREATING|WAITING_FOR_RESOURCES)$ ]]; do sleep "${POLL_S:-30}"; done
    status=1
    if [[ $(state) == ACTIVE ]]; then
        status=0
        gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="[ -d jaxop ] || { $SETUP; }" &&
            PROGRAM=scripts/launch/until_finished.sh "$here/tpu_slice.sh" "$@" || status=$?
    fi
    if ((status == 0 || status == 2)); then break; fi # finished, or wrong inputs
    sleep "${POLL_S:-30}"
    if [[ $(state) != ACTIVE ]]; then # taken away
        slice delete --force --quiet || true
    fi
done
slice delete --force --quiet
exit "$status"
