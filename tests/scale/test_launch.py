"""The scripts of `scripts/launch`, with stand-ins for the programs of Slurm and Google Cloud.

The stand-ins start two processes on this machine, with the variables that the real ones set.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxop import training
from tests.scale.test_processes import free_port

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
LIMIT_S = 240
TNO = ["model:tno", "--model.width", "4", "--model.heads", "2", "--model.layers", "1", "--model.feedforward", "4"]
SHORT = ["--training.warmup-steps", "1", "--training.batch-size", "4"]

# two tasks, numbered as srun numbers them; the worst status is the status of all
TASKS = r"""#!/usr/bin/env bash
echo "$0 $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do
    SLURM_JOB_ID=17 SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[i]=$!
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
# the state of a slice is a file; it is taken away during its first command
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
    *"queued-resources describe"*) cat "$SLICE" 2>/dev/null || exit 1 ;;
    *"queued-resources create"*) echo ACTIVE > "$SLICE" ;;
    *"queued-resources delete"*) rm "$SLICE" ;;
    *"tpu-vm ssh"*)
        [[ $* == *"jaxop train"* || $* == *until_finished* ]] || exit 0
        if [[ ${TAKEN_AWAY:-} && ! -e $TAKEN_AWAY ]]; then touch "$TAKEN_AWAY"; echo SUSPENDED > "$SLICE"; exit 255; fi
        all="$*"
        cd "$HOME" && srun bash -c "${all##*--command=}" ;;
esac
"""


@pytest.fixture
def workplace(tmp_path):
    """A folder with data and a home with the checkout, and the environment with the stand-ins."""
    u = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=u, y=2 * u)
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": TASKS, "gcloud": GCLOUD, "scontrol": '#!/bin/sh\necho "$0 $*" >> "$CALLS"\n'}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "jaxop").symlink_to(ROOT)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PROGRAM": f"{sys.executable} -m jaxop",
        "CALLS": str(tmp_path / "calls"),
        "SLICE": str(tmp_path / "slice"),
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "PORT": str(free_port()),
        "PAUSE_S": "1",
        "POLL_S": "0.1",
    }
    return tmp_path, environment


def launched(workplace, script, *arguments, status=0, **environment):
    """What a script prints."""
    _, own = workplace
    command = ["bash", str(LAUNCH / script), *map(str, arguments)]
    run = subprocess.run(
        command, cwd=ROOT, env=own | environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert run.returncode == status, run.stdout + run.stderr
    return run.stdout + run.stderr


def options(folder, steps):
    return ["custom", "--data.train", folder / "a.npz", *TNO, "--training.steps", steps, *SHORT]


def assert_trained_by_two(folder, run, steps):
    """The record of every start has two processes and four devices, and every row and file is there once."""
    entries = json.loads((run / "versions.json").read_text())
    assert {(entry["processes"], entry["devices"]) for entry in entries} == {(2, 4)}
    assert {entry["mesh"]["data"] for entry in entries} == {4}
    rows = [row["step"] for row in training.read_metrics(run) if "loss" in row]
    assert rows == list(range(1, steps + 1))
    assert (run / "evaluation" / "test.csv").is_file()
    assert list((run / "figures").glob("*.png"))


@pytest.mark.fit
def test_two_processes_on_one_machine(workplace):
    folder, _ = workplace
    output = launched(workplace, "local.sh", 2, "train", *options(folder, 2), "--run-dir", folder / "run")
    assert output.count("4 of 4 (cpu, 2 processes), 1 samples of each batch on a device") == 1
    assert_trained_by_two(folder, folder / "run", 2)
    table = (folder / "run" / "evaluation" / "test.json").read_text()
    launched(workplace, "local.sh", 2, "evaluate", folder / "run", "--name", "again")
    alone = {"JAX_NUM_CPU_DEVICES": "1"}
    launched(workplace, "local.sh", 1, "evaluate", folder / "run", "--name", "alone", **alone)
    tables = [json.loads(table)["sets"][0]["rel_l2"]]
    tables += [
        json.loads((folder / "run" / "evaluation" / f"{name}.json").read_text())["sets"][0]["rel_l2"]
        for name in ("again", "alone")
    ]
    np.testing.assert_allclose(tables, tables[0], rtol=1e-5)
    inputs = [folder / "run", folder / "a.npz"]
    output = launched(workplace, "local.sh", 2, "predict", *inputs, "--to", folder / "two")
    assert output.count("1/1") == 1
    launched(workplace, "local.sh", 1, "predict", *inputs, "--to", folder / "one", **alone)
    both, single = (np.load(folder / name / "a.npz")["y"] for name in ("two", "one"))
    np.testing.assert_allclose(both, single, rtol=1e-5, atol=1e-6)
    wrong = launched(workplace, "local.sh", 2, "resume", folder / "run", "--training.seed", "9", status=2)
    assert "training.seed: 0 -> 9" in wrong


@pytest.mark.fit
def test_a_job_of_slurm_is_queued_again_until_it_is_finished(workplace):
    folder, environment = workplace
    run, steps = folder / "run", 40
    arguments = [str(LAUNCH / "slurm.sbatch"), str(run), *map(str, options(folder, steps))]
    job = subprocess.Popen(
        ["bash", *arguments], cwd=ROOT, env=environment | {"SLURM_JOB_ID": "17"}, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT_S
    while not any("loss" in row for row in training.read_metrics(run)) and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((run / "writer.lock").read_text().split()[0])
    os.kill(pid, signal.SIGTERM)  # as --signal does
    assert job.wait(LIMIT_S) == 0
    calls = (folder / "calls").read_text()
    step = training.load_run(run).checkpoints.latest
    if step < steps:
        assert "scontrol requeue 17" in calls
        launched(workplace, "slurm.sbatch", run, *options(folder, steps), SLURM_JOB_ID="17")
    assert_trained_by_two(folder, run, steps)
    assert (folder / "calls").read_text().count("requeue") == int(step < steps)


@pytest.mark.fit
def test_a_preemptible_slice_is_made_again_until_the_run_is_finished(workplace):
    folder, _ = workplace
    cloud = {"TPU": "t", "ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v", "SETUP": "true"}
    taken = {"TAKEN_AWAY": str(folder / "taken")}
    launched(workplace, "preemptible_slice.sh", folder / "run", *options(folder, 2), **cloud, **taken)
    calls = (folder / "calls").read_text()
    assert calls.count("queued-resources create t --zone=z --node-id=t --accelerator-type=v5litepod-16") == 2
    assert calls.count("queued-resources delete") == 2
    assert "tpu-vm ssh t --zone=z --worker=all --command=cd jaxop && scripts/launch/until_finished.sh" in calls
    assert_trained_by_two(folder, folder / "run", 2)


@pytest.mark.fit
def test_a_run_is_resumed_until_it_is_finished_and_wrong_inputs_are_not_tried_again(workplace):
    folder, _ = workplace
    launched(workplace, "until_finished.sh", folder / "run", *options(folder, 2), "--training.stepps", "3", status=2)
    launched(workplace, "until_finished.sh", folder / "run", *options(folder, 2))
    assert training.load_run(folder / "run").checkpoints.latest == 2
