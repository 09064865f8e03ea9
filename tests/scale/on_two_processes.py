"""Trains the tests' small operator as one of several processes: ``python -m tests.scale.on_two_processes '{...}'``.

The argument is a `Case` as JSON. The last line of the output is a report in JSON.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxop import domains, operators, testing, training
from jaxop.data import Samples
from jaxop.experiments import ClusterConfig
from tests.training.cases import CONFIG, leaves, samples, stacked_samples, tiny

BATCH = dataclasses.replace(CONFIG, accumulate=1, ema_decay=0.0, weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process does.

    Attributes:
        directory: the run directory.
        cluster: fields of its `ClusterConfig`.
        devices: number of its devices.
        mesh: number of devices in the mesh; None leaves the mesh out.
        resume: see `training.fit`.
        training: other fields of the config.
        at: step at which the fault happens.
        fault: "SIGTERM", "SIGKILL" or "SIGINT" to itself, "data" for an error of the source, "rest" for a long rest in
            the source, "save" for SIGKILL in the middle of saving, "nan" for a bad sample.
        pause: seconds that every batch takes to read.
        identity: identity of the training samples.
        jax_version: the version that this process claims; "" leaves the true one.
        check: whether to compare evaluations by all processes with evaluations by this one alone.
    """

    directory: str
    cluster: dict
    devices: int = 2
    mesh: int | None = 4
    resume: bool = False
    training: dict = dataclasses.field(default_factory=dict)
    at: int = 0
    fault: str = ""
    pause: float = 0.0
    check: bool = False
    identity: str = "samples(22)"
    jax_version: str = ""


class Source:
    """Samples that note who asks for which, and that fail when they are told to."""

    def __init__(self, case: Case):
        self.case, self.samples, self.asked = case, samples(22), []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, indices):
        self.asked.append(indices.tolist())
        time.sleep(self.case.pause)
        batch = self.samples[indices]
        if self.case.at and len(self.asked) > self.case.at:  # the first batch is read for its shapes
            match self.case.fault:
                case "data":
                    raise OSError("the disk of this process is gone")
                case "rest":
                    time.sleep(1000)
                case "nan":
                    batch = dataclasses.replace(batch, inputs=batch.inputs.at[-1].set(np.nan))
                case "SIGTERM" | "SIGKILL" | "SIGINT" as name:
                    if len(self.asked) == self.case.at + 1:
                        os.kill(os.getpid(), getattr(signal, name))
        return batch

    def identity(self):
        return self.case.identity


def digest(state) -> str:
    """The bits of a state, which every process has on its own devices."""
    local = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, state)
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves(local).values())).hexdigest()


def check_evaluation(model, mesh):
    """Errors, predictions and means on the mesh are those of this process alone, on sets of any size."""

    def loss(model, batch):
        return jnp.mean((model(batch.inputs, batch.domain) - batch.targets) ** 2, axis=(1, 2))

    vote = training.processes.Vote(mesh, 3)
    assert testing.collectives(vote.program.lower(vote.ballots[0]).compile()) == {"all-reduce": [4]}
    for test in (samples(7, seed=2), stacked_samples(6)):
        shared, alone = (training.evaluate(model, test, batch_size=4, mesh=m).l2 for m in (mesh, None))
        np.testing.assert_allclose(shared, alone, rtol=1e-5)
        shared, alone = (training.predict(model, test, batch_size=4, mesh=m) for m in (mesh, None))
        np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-6)
    options = {"batch_size": 4, "argument": "test", "labelled": False, "loss": loss}
    shared, alone = (training.evaluation.mean_errors(model, samples(7), mesh=m, **options) for m in (mesh, None))
    np.testing.assert_allclose(shared["loss"], alone["loss"], rtol=1e-5)
    check_shared_nodes()


def check_shared_nodes():
    """Errors in L2 and H1 and predictions on nodes that the devices of both processes share are those of one device."""
    config = operators.TransformerNeuralOperatorConfig(1, 1, width=4, layers=1, heads=2, feedforward=4)
    model = operators.build(config, rngs=nnx.Rngs(0))
    u = np.random.default_rng(0).normal(size=(3, 13, 1)).astype(np.float32)
    test, mesh = Samples(u, np.cumsum(u, axis=1), domains.interval(13)), training.MeshConfig(1, domain=4).make(2)
    shared, alone = (training.evaluate(model, test, batch_size=2, mesh=m) for m in (mesh, None))
    np.testing.assert_allclose(shared.l2, alone.l2, rtol=1e-5)
    np.testing.assert_allclose(shared.h1, alone.h1, rtol=1e-5)
    shared, alone = (training.predict(model, test, batch_size=2, mesh=m) for m in (mesh, None))
    np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-6)


def main(case: Case) -> dict:
    config = dataclasses.replace(BATCH, **case.training)
    mesh = None if case.mesh is None else training.MeshConfig(data=case.mesh).make(config.batch_size)
    # momentum without Adam's division, which magnifies rounding where a gradient is zero
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01, momentum=0.9))
    report = {"process": jax.process_index(), "devices": len(jax.devices())}
    if case.resume:
        _, like = training.init_state(tiny(rate=0.0), optimizer, config)
        checkpoints = training.Checkpoints(f"{case.directory}/checkpoints")
        like = training.mesh.replicate(like, training.mesh.check_mesh(mesh))
        report["restored"] = digest(checkpoints.restore_latest(like)[1])
    if case.fault == "save":
        save = training.checkpoint.orbax.save

        def killed(path, leaves):
            if f"{case.at:08d}" in path:
                os.kill(os.getpid(), signal.SIGKILL)
            save(path, leaves)

        training.checkpoint.orbax.save = killed
    if case.jax_version:
        versions = training.loop.versions
        training.loop.versions = lambda: versions() | {"jax": case.jax_version}
    source = Source(case)
    result = training.fit(
        tiny(rate=0.0),
        source,
        {"five": samples(5, seed=1)},
        config,
        run_dir=case.directory,
        optimizer=optimizer,
        mesh=mesh,
        resume=case.resume,
        progress=jax.process_index() == 1,  # which must not print anything
    )
    if case.check:
        check_evaluation(result.model, mesh)
    return report | {
        "stopped": result.stopped,
        "step": int(result.state.step),
        "state": digest(result.state),
        "errors": result.errors,
        "asked": source.asked,
        "params": [leaf.tolist() for leaf in jax.tree.leaves(jax.device_get(result.state.params))],
    }


if __name__ == "__main__":
    given = Case(**json.loads(sys.argv[1]))
    jax.config.update("jax_num_cpu_devices", given.devices)
    with ClusterConfig(**given.cluster).joined():
        try:
            report = main(given)
        except FloatingPointError as error:  # on all processes, so that the program may go on
            print(error, file=sys.stderr)
            report = main(dataclasses.replace(given, directory=f"{given.directory}-again", fault=""))
    print(json.dumps(report))
