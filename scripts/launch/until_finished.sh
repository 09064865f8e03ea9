#!/usr/bin/env bash
# Trains until all steps are taken: starts a run, and resumes it whenever a process was lost.
#
#     scripts/launch/until_finished.sh runs/wide darcy_fano --training.steps 100000
#
# The first argument is the run directory, the rest are those of `jaxop train`. Options in $OPTIONS are given to every
# start. With several processes every machine runs this script; the pause between two starts ($PAUSE_S, 75 s) is longer
# than the time after which the others notice a lost process. Wrong inputs (exit status 2) are not tried again. SIGTERM
# lets the run save, and ends the script. $ATTEMPTS is the largest number of starts.
set -euo pipefail
run=${1:?usage: until_finished.sh RUN NAME [options]}
shift
python=${PYTHON:-python3}
ended= child=
trap 'ended=1; [[ $child ]] && kill -TERM "$child" 2>/dev/null || true' TERM INT
for ((attempt = 1; attempt <= ${ATTEMPTS:-100}; attempt++)); do
    if [[ -e $run/config.json ]]; then
        command=(resume "$run")
    else
        command=(train "$@" --run-dir "$run")
    fi
    # shellcheck disable=SC2086 # several options
    "$python" -m jaxop "${command[@]}" ${OPTIONS:-} &
    child=$!
    while true; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break # a signal ends `wait`, but not the process
    done
    if [[ $ended || $status == 2 ]]; then exit "$status"; fi
    if "$python" scripts/launch/finished.py "$run"; then exit 0; fi
    echo "attempt $attempt ended with status $status; $run goes on in ${PAUSE_S:-75} s" >&2
    child=
    sleep "${PAUSE_S:-75}" & # a signal ends `wait` at once
    wait $! || true
    if [[ $ended ]]; then exit 1; fi
done
echo "$run is not finished after $((attempt - 1)) attempts" >&2
exit 1
