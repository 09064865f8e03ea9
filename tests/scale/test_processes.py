"""Two processes train like one, stop together, end together, and continue as one or two."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxop import training
from jaxop.data import batch_indices
from jaxop.experiments import ClusterConfig
from jaxop.training import processes

ROOT = Path(__file__).parents[2]
LIMIT_S = 120
GLOO = re.compile(r"\[Gloo\]|peer ranks|^[\d .]*$")  # two threads may write into one line


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, **environment):
    """Starts a program with the environment of a machine without an accelerator."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(started):
    """The exit status, the report or None, and the texts on stdout and stderr of each process."""
    found = []
    try:
        for process in started:
            output, errors = process.communicate(timeout=LIMIT_S)
            lines = [line for line in output.splitlines() if not GLOO.search(line)]
            report = json.loads(lines[-1]) if process.returncode == 0 else None
            found.append((process.returncode, report, lines[:-1] if report else lines, errors))
    finally:
        for process in started:
            process.kill()
    return found


def cases(count, directory, *, each=(), **case):
    """Runs a case on some processes; ``each`` holds what is particular to each."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for number in range(count):
        cluster = {"coordinator": address, "processes": count, "process_id": number}
        if count == 1 and "cluster" not in case:
            cluster = {}
        own = dict(each[number]) if each else {}
        cluster |= case.get("cluster", {}) | own.pop("cluster", {})
        whole = {"directory": str(directory), "devices": 4 // count, **case, **own, "cluster": cluster}
        started.append(start(["-m", "tests.scale.on_two_processes", json.dumps(whole)]))
    return finish(started)


def completed(found):
    for status, _, _, errors in found:
        assert status == 0, errors
    return [report for _, report, _, _ in found]


def slurm(*, tasks, task, port="1234"):
    """The variables that ``srun`` sets on one machine, as far as JAX reads them."""
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "JAX_COORDINATOR_PORT": port,
    }


def losses(directory):
    return {row["step"]: row["loss"] for row in training.read_metrics(directory) if "loss" in row}


def assert_own_rows(reports, first):
    """Every process has read its half of every batch, and nothing else."""
    for report in reports:
        half = slice(2 * report["process"], 2 * report["process"] + 2)
        batches = [batch_indices(22, 4, seed=3, step=t).tolist()[half] for t in range(first, first + 30)]
        assert report["asked"][1:] == batches[: len(report["asked"]) - 1]  # the first is read for its shapes


@pytest.mark.thorough
def test_a_run_on_two_processes_stops_together_and_moves_to_one_and_back(tmp_path):
    """Promises 2 and 4: SIGTERM to one of two, then one process, then two, with the result of one that never stops."""
    (alone,) = completed(cases(1, tmp_path / "alone"))
    directory = tmp_path / "moving"

    stopped = completed(cases(2, directory, pause=0.05, each=({}, {"fault": "SIGTERM", "at": 8})))
    assert [report["stopped"] for report in stopped] == ["terminated"] * 2
    assert stopped[0]["step"] == stopped[1]["step"] == training.load_run(directory).checkpoints.latest < 24
    assert stopped[0]["state"] == stopped[1]["state"]
    assert_own_rows(stopped, 0)

    (single,) = completed(cases(1, directory, resume=True, fault="SIGTERM", at=3))
    assert single["restored"] == stopped[0]["state"]
    assert single["stopped"] == "terminated"
    assert stopped[0]["step"] < single["step"] < 24

    found = cases(2, directory, resume=True, check=True)
    reports = completed(found)
    assert found[1][2] == []  # process 1 does not print
    assert {report["restored"] for report in reports} == {single["state"]}
    assert {report["devices"] for report in reports} == {4}
    assert_own_rows(reports, single["step"])
    assert [report["stopped"] for report in reports] == ["completed"] * 2
    assert reports[0]["errors"] == reports[1]["errors"]

    for moved, one in zip(reports[0]["params"], alone["params"], strict=True):
        np.testing.assert_allclose(moved, one, rtol=1e-5, atol=1e-5)
    assert reports[0]["errors"]["five/l2"] == pytest.approx(alone["errors"]["five/l2"], rel=1e-5)
    moving, whole = losses(directory), losses(tmp_path / "alone")
    assert list(moving) == list(whole) == list(range(1, 25))
    np.testing.assert_allclose(list(moving.values()), list(whole.values()), rtol=1e-5)
    entries = json.loads((directory / "versions.json").read_text())
    assert [(entry["processes"], entry["devices"]) for entry in entries] == [(2, 4), (1, 4), (2, 4)]


def test_a_coordinator_that_does_not_answer_is_named(unchecked):
    address = f"127.0.0.1:{free_port()}"
    config = ClusterConfig(address, processes=2, process_id=1, start_timeout_s=0.1)
    with pytest.raises(ConnectionError, match=rf"the coordinator {address} did not answer within 0 s .*process 0"):
        config.joined().__enter__()


@pytest.mark.thorough
def test_processes_that_do_not_come_are_missed():
    found = cases(1, "unused", cluster={"processes": 2, "process_id": 0, "start_timeout_s": 0.5})
    assert "not all 2 processes came to the coordinator 127.0.0.1:" in found[0][3]
    assert found[0][0] == 1


def test_a_port_in_use_is_named(unchecked):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"process 0 cannot open the port of the coordinator {address}"):
            ClusterConfig(address, processes=2, process_id=0).joined().__enter__()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinator": "a:1", "processes": 2}, "must be given together, but process_id is missing"),
        ({"process_id": 0}, "must be given together, but coordinator and processes are missing"),
        ({"coordinator": "a", "processes": 2, "process_id": 0}, r"must be HOST:PORT, such as node1:1234, got 'a'"),
        ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "must lie between 0 and 1 for 2 processes, got 2"),
        ({"silence_s": 0.0}, r"cluster\.silence_s must be positive and finite, got 0\.0"),
    ],
)
def test_settings_of_a_cluster_are_checked(fields, message, unchecked):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**fields)


def test_one_task_of_a_cluster_works_alone(monkeypatch):
    """A batch job with one task uses every GPU of its machine, as it would without a queue."""
    for name, value in slurm(tasks=1, task=0).items():
        monkeypatch.setenv(name, value)
    with ClusterConfig().joined():
        assert not jax.distributed.is_initialized()


def test_every_process_takes_part_with_equal_numbers_of_devices(unchecked):
    devices = [SimpleNamespace(process_index=process, id=number) for process in (0, 1) for number in range(3)]
    chosen = processes.evenly_chosen(devices, 4, processes=2)
    assert [(device.process_index, device.id) for device in chosen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for count in (3, 8):
        with pytest.raises(ValueError, match=rf"multiple of the 2 processes, .* devices are \[3, 3\], got {count}"):
            processes.evenly_chosen(devices, count, processes=2)


@pytest.mark.fit
def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path):
    """Promise 1: the resumed run ends with the bits of a run that was never stopped."""
    cluster = {"silence_s": 10.0}
    found = cases(2, tmp_path / "run", cluster=cluster, each=({}, {"fault": "SIGKILL", "at": 12}))
    assert found[1][0] == -signal.SIGKILL
    assert found[0][0] == 1
    expected = "error: process 1 of 2 failed, which ends process 0: it was killed or its machine is gone"
    assert expected in found[0][3] or "lost the connection to another process" in found[0][3]
    found = cases(2, tmp_path / "run", cluster=cluster, each=({}, {"fault": "save", "at": 10}))
    assert found[1][2] == [], "a run that exists is not overwritten"
    assert "already holds a run" in found[0][3]
    resumed = completed(cases(2, tmp_path / "run", resume=True))
    whole = completed(cases(2, tmp_path / "whole"))
    assert {report["state"] for report in resumed} == {report["state"] for report in whole}
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.fit
def test_a_process_that_is_missing_when_a_checkpoint_is_saved(tmp_path):
    """Nothing of the unfinished checkpoint counts, and the previous one is taken; damage is set aside for all."""
    directory = tmp_path / "run"
    found = cases(2, directory, cluster={"silence_s": 10.0}, each=({}, {"fault": "save", "at": 15}))
    assert found[1][0] == -signal.SIGKILL
    assert found[0][0] == 1
    assert "process 1 of 2 failed" in found[0][3]
    checkpoints = training.load_run(directory).checkpoints
    assert checkpoints.latest is not None
    assert checkpoints.latest < 15
    step = checkpoints.latest
    next((checkpoints.path(step) / "arrays").rglob("manifest.ocdbt")).unlink()
    resumed = cases(2, directory, resume=True)
    completed_reports = completed(resumed)
    assert all(report["step"] == 24 for report in completed_reports)
    assert list(directory.glob("checkpoints/*.damaged"))


@pytest.mark.fit
@pytest.mark.parametrize("process", [0, 1])
def test_an_error_of_one_process_ends_both_with_its_message(tmp_path, process):
    each = [{}, {}]
    each[process] = {"fault": "data", "at": 7}
    found = cases(2, tmp_path, each=each)
    assert "OSError: the disk of this process is gone" in found[process][3]
    assert f"process {process} of 2 failed, which ends process {1 - process}: the disk of" in found[1 - process][3]
    assert [status for status, *_ in found][1 - process] == 2


@pytest.mark.fit
def test_a_value_that_is_not_finite_is_named_by_both(tmp_path):
    """Promise 5. All raise the error, so that their program may train again."""
    found = cases(2, tmp_path / "run", each=({}, {"fault": "nan", "at": 7}))
    indices = batch_indices(22, 4, seed=3, step=7 - 1).tolist()
    for _, _, _, errors in found:
        assert f"step 7: the loss is nan and the gradient norm nan, on samples {indices}" in errors
        assert "first array that is not finite: batch.inputs" in errors
    assert training.load_run(tmp_path / "run").checkpoints.latest < 7
    assert [report["step"] for report in completed(found)] == [24] * 2


@pytest.mark.fit
def test_what_differs_between_processes_is_listed(tmp_path):
    other = {"training": {"seed": 4, "learning_rate": 0.5}, "identity": "others", "jax_version": "0.0.1"}
    found = cases(2, tmp_path / "run", each=({}, other))
    for status, _, _, errors in found:
        assert status != 0
        assert "settings.training.learning_rate: 0.01 on process 0, 0.5 on process 1" in errors
        assert "settings.training.seed: 3 on process 0, 4 on process 1" in errors
        assert 'settings.train.identity: "samples(22)" on process 0, "others" on process 1' in errors
        assert f'versions.jax: "{jax.__version__}" on process 0, "0.0.1" on process 1' in errors
        assert errors.count(" on process 1") == 4
    assert not (tmp_path / "run").exists()


@pytest.mark.fit
def test_nothing_to_resume_and_a_mesh_of_one_process_are_errors(tmp_path):
    """Promise 7, on every process; and a run on several processes needs all of them."""
    found = cases(2, tmp_path, each=({"mesh": None}, {"mesh": None}))
    for status, _, _, errors in found:
        assert status != 0
        assert "mesh must have devices of all 2 processes, got None with devices of process" in errors
    found = cases(2, tmp_path / "nothing", resume=True)
    for status, _, _, errors in found:
        assert status != 0
        assert "nothing to resume from" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.fit
def test_the_report_of_a_model_that_both_processes_share_has_its_pictures(tmp_path):
    """Process 0 cannot predict alone with such a model."""
    u = np.random.default_rng(0).normal(size=(10, 15)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=u, y=2 * u)
    run, address = tmp_path / "run", f"127.0.0.1:{free_port()}"
    options = ["--data.train", str(tmp_path / "a.npz"), "--run-dir", str(run)]
    options += ["--training.steps", "1", "--training.warmup-steps", "0", "--training.batch-size", "4"]
    options += ["--mesh.model", "2", "--mesh.domain", "2", "--cluster.coordinator", address, "--cluster.processes", "2"]
    small = ["model:tno", "--model.width", "128", "--model.heads", "2", "--model.layers", "1"]
    small += ["--model.feedforward", "512"]
    started = [
        start(
            ["-m", "jaxop", "train", "custom", *options, "--cluster.process-id", number, *small],
            JAX_NUM_CPU_DEVICES="2",
        )
        for number in "01"
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    (entry,) = json.loads((run / "versions.json").read_text())
    assert entry["mesh"] == {"data": 1, "model": 2, "domain": 2}
    assert (run / "figures" / "test-held-out.png").exists()
