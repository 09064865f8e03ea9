"""Models that travel: how soon they answer, how large they are, and what many query points and many members cost."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.timing import seconds_of
from jaxop import data, domains, experiments, operators, training
from jaxop.operators.ready import READY

ABOUT = {
    "share": About(
        "Trained models: first answers, sizes, many query points, ensembles",
        "First table: a fresh process of Python loads a model that comes with jaxop and predicts one function on 64² "
        "nodes, with compilation and without a compilation cache; a program is the same operator as jaxop.operators."
        "export wrote it, run by JAX alone. Importing JAX is a part of all. Second table: jaxop predict --at writes "
        "the outputs of a small latent operator with a decoder at all query points, beside one call of the operator "
        "for all of them. Third table: an ensemble of FNOs on 24² nodes trained by one call of training.fit, beside "
        "one call after another with other seeds; both with compilation.",
    ),
}

MODEL = """
import jax, numpy as np
import jaxop
from jaxop import domains
model = jaxop.from_pretrained({name!r})
outputs = model(np.ones((64 * 64, 1), np.float32), domains.box((64, 64), rule="midpoint"))
jax.block_until_ready(outputs)
"""

PROGRAM = """
import jax, numpy as np, zipfile
import jax.export
program = jax.export.deserialize(bytearray(zipfile.ZipFile({name!r}).read("operator.bin")))
jax.block_until_ready(program.call(values=np.ones((1, 64 * 64, 1), np.float32)))
"""

AT_ONCE = """
import jax, numpy as np
import jaxop
from pathlib import Path
from jaxop import data
from jaxop.data.files.nodes import read_nodes
samples = data.read({inputs!r})
nodes = read_nodes(Path({at!r}))
model = jaxop.from_pretrained({model!r})
np.save({to!r}, model(samples[:].inputs, samples.domain, at=nodes))
"""


def main(repeats: int = 5, points: tuple[int, ...] = (10**5, 10**6, 10**7), members: int = 5, steps: int = 200) -> None:
    """Prints the tables.

    Args:
        repeats: processes of each row of the first table, and trainings of each row of the last.
        points: numbers of query points of the second table.
        members: operators of the ensemble.
        steps: of the trainings.
    """
    with tempfile.TemporaryDirectory() as folder:
        first_answers(Path(folder), repeats)
        query_points(Path(folder), points)
        ensembles(Path(folder), members, steps, repeats)


def first_answers(folder: Path, repeats: int) -> None:
    """Prints what a process takes that predicts once, for every model that comes with the package."""
    print_header("model", "process", "files", "seconds", "of CPU")
    grid = domains.box((64, 64), rule="midpoint")
    for name in operators.ready_models():
        program = folder / f"{name}.zip"
        operators.export(operators.from_pretrained(name), program, grid, symbolic=["batch"], platforms=["cpu"])
        saved = sum(file.stat().st_size for file in (READY / name).iterdir())
        codes = {"jaxop": (MODEL, name, saved), "program": (PROGRAM, str(program), program.stat().st_size)}
        for kind, (code, source, size) in codes.items():
            found = [_process([sys.executable, "-c", code.format(name=source)]) for _ in range(repeats)]
            wall, cpu = (statistics.median(times) for times in list(zip(*found, strict=True))[:2])
            print_row(name, kind, f"{size / 1e6:.2f} MB", f"{wall:.1f}", f"{cpu:.1f}")


def query_points(folder: Path, points: tuple[int, ...]) -> None:
    """Prints time and memory of predictions at many query points."""
    print_header("query points", "process", "seconds", "of CPU", "peak memory")
    config = operators.LatentNeuralOperatorConfig(1, 1, dim=2, width=32, heads=4, layers=2, decoder_layers=1)
    model = operators.LatentNeuralOperator(config, rngs=nnx.Rngs(0)).save(folder / "latent")
    inputs = folder / "u.npz"
    data.save(inputs, data.darcy(1, 32, seed=0))
    for count in points:
        at = folder / f"{count}.npz"
        np.savez(at, coordinates=np.random.default_rng(0).random((count, 2), np.float32))
        commands = {
            "jaxop predict --at": ["-m", "jaxop", "predict", model, inputs, "--at", at, "--to", folder / f"to-{count}"],
            "one call": ["-c", AT_ONCE.format(inputs=str(inputs), at=str(at), model=str(model), to=str(folder / "y"))],
        }
        for name, command in commands.items():
            wall, cpu, peak = _process([sys.executable, *map(str, command)])
            print_row(f"{count:,}", name, f"{wall:.1f}", f"{cpu:.1f}", f"{peak / 2**30:.2f} GB")


def ensembles(folder: Path, members: int, steps: int, repeats: int) -> None:
    """Prints the time of the training of an ensemble, as one program and one member after the other."""
    train = data.darcy_resolutions(64, (24,), seed=0, reference=48, coefficient="lognormal")[24]
    config = operators.FourierNeuralOperatorConfig(1, 1, width=16, layers=4, modes=8, reference=24)

    def fitted(seed: int, members: int) -> None:
        settings = training.TrainingConfig(steps=steps, batch_size=4, seed=seed, members=members)
        model = experiments.build(config, train, seed=seed)
        training.fit(model, train, {}, settings, run_dir=tempfile.mkdtemp(dir=folder), progress=False)

    def together() -> None:
        fitted(0, members)

    def one_by_one() -> None:
        for seed in range(members):
            fitted(seed, 1)

    ways = {"one program": together, "one after the other": one_by_one}
    rounds = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(repeats)]
    found = {name: [measured[name] for measured in rounds] for name in ways}
    print_header(f"{members} members, {steps} steps", "seconds", "ratio")
    base = statistics.median(found["one program"])
    for name, seconds in found.items():
        print_row(name, f"{statistics.median(seconds):.1f}", f"{statistics.median(seconds) / base:.2f}")


def _process(command: list[str]) -> tuple[float, float, int]:
    """Runs a command without a compilation cache; returns seconds, seconds of the CPU and the peak memory in bytes."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ChildProcessError(f"{' '.join(command)} failed")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
