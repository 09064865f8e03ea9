"""Pressure around airfoils: operators on meshes of their own, and the FNO on a box, at equal training time.

    python scripts/studies/run.py airfoils                                  # about two hours on two cores
    python scripts/studies/run.py airfoils --minutes 1 --operators flare "fno, box" --seeds 0

An operator maps the distance from the surface and the angle of attack to the pressure coefficient of potential flow, at
about 1000 nodes around each of 2168 airfoils. No airfoil of the test set is of a family of the training set. Prints a
Markdown table: relative L2 errors on the surface and in the field, on the meshes of the test set, and on the surface
for other draws of the nodes of the same airfoils.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from flax import nnx
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import KDTree

from jaxop import data, domains, experiments, operators, training
from jaxop._validation import check_name
from jaxop.experiments.comparison import (
    affordable_steps,
    check_options,
    mean_and_deviation,
    new_run,
    run_settings,
    train_once,
)
from jaxop.experiments.settings import parameters
from studies import airfoil_data, real_data
from studies.airfoil_data import PANELS, Airfoil, Nodes
from studies.results import About
from studies.table import print_header, print_row

ABOUT = {
    "airfoils": About(
        "Pressure around airfoils on meshes of their own",
        "Operators map the distance from the surface and the angle of attack to the pressure coefficient of potential "
        "flow around airfoils of the UIUC database. Every airfoil has a mesh of its own, with 160 nodes on the surface "
        "and 600 to 1100 in the field; no test airfoil is of a family of the training set. All are trained for the "
        "same time; compilation and evaluation are not counted. The FNO computes on a box of 64² nodes with the exact "
        "pressure there and, inside of the body, the nearest one of the surface, and its output is interpolated to the "
        "nodes; the first row is the error of interpolating the truth. Operators without weights count nodes. The "
        "columns are mean relative L2 errors, weighted by length on the surface and by area in the field; half, double "
        "and nose have half and twice as many nodes in the field, and most of them near the leading edge.",
    ),
}

Config = operators.OperatorConfig
Make = Callable[[data.RaggedSamples], Config]


def _latent(preset: str) -> Make:
    make = getattr(operators.LatentNeuralOperatorConfig, preset)
    return lambda train: make(train.in_channels, train.out_channels, train.dim, width=64, heads=4, layers=4)


OPERATORS: dict[str, Make] = {
    "tno": lambda train: operators.TransformerNeuralOperatorConfig(
        train.in_channels, train.out_channels, dim=train.dim, width=64, heads=4, layers=4
    ),
    "flare": _latent("flare"),
    "transolver": _latent("transolver"),
    "functional": _latent("functional"),
}
"""Operators on meshes by name."""

BOX = "fno, box"
SIDE = 64
EXTRAPOLATED = cast(float, None)  # which is what SciPy calls it, but not what its types say
SETS = {"test": 1.0, "half": 0.5, "double": 2.0, "nose": 1.0}
"""Draws of the nodes of the test airfoils, and their number relative to that of the training."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Equal-time training of operators on airfoils.

    Attributes:
        minutes: training time of each operator.
        operators: names of `OPERATORS`, each also with ", no weights", or "fno, box".
        seeds: of parameters and batches; one training each.
        train: airfoils for training.
        valid: airfoils that are kept for choosing settings, and not used here.
        test: airfoils for the table.
        batch_size: samples per step.
        learning_rate: peak learning rate of all.
        cache: where the outlines are kept.
        run_dir: where the runs are kept.
    """

    minutes: float = 5.0
    operators: tuple[str, ...] = (*OPERATORS, "flare, no weights", "transolver, no weights", BOX)
    seeds: tuple[int, ...] = (0, 1, 2)
    train: int = 1500
    valid: int = 300
    test: int = 368
    batch_size: int = 4
    learning_rate: float = 2e-3
    cache: Path = real_data.CACHE
    run_dir: Path = Path("runs/airfoils")

    def __post_init__(self):
        check_options(self)
        for name in self.operators:
            check_name(name, "operators", (*OPERATORS, *(f"{one}, no weights" for one in OPERATORS), BOX))


@dataclasses.dataclass(frozen=True)
class Meshes:
    """Airfoils with the nodes around each of them."""

    airfoils: Sequence[Airfoil]
    nodes: Sequence[Nodes]

    def samples(self, *, weighted: bool = True) -> data.RaggedSamples:
        """Returns the samples on triangle meshes, or on clouds of nodes that count equally."""
        pairs = []
        for one in self.nodes:
            mesh = domains.triangle_mesh(one.points.astype(np.float32), one.faces.astype(np.int32))
            if not weighted:
                equal = np.full(len(one.points), float(mesh.measure) / len(one.points), np.float32)
                mesh = domains.from_nodes(one.points.astype(np.float32), equal)
            pairs.append(data.Sample(one.inputs.astype(np.float32), one.targets.astype(np.float32), mesh))
        return data.RaggedSamples(pairs, max_buckets=3)

    def errors(self, predicted: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean relative errors on the surface and in the field of predictions at the nodes."""
        rows = []
        for airfoil, one, values in zip(self.airfoils, self.nodes, predicted, strict=True):
            weights = np.asarray(domains.triangle_mesh(one.points.astype(np.float32), one.faces).weights)
            parts = (slice(PANELS), airfoil.flow.lengths), (slice(None), weights)
            rows.append([relative(values[part], one.targets[part], weight) for part, weight in parts])
        return np.mean(rows, axis=0)

    def on_box(self) -> data.Samples:
        """Returns the fields of all airfoils on the grid of `box`; inside, the nearest pressure of the surface."""
        points = np.asarray(box().points, np.float64)
        inputs, targets = [], []
        for airfoil in self.airfoils:
            features = airfoil_data.features(airfoil, points)
            outside = features[:, 0] > 0
            _, nearest = KDTree(airfoil.flow.middles).query(points)
            pressure = airfoil.flow.surface_pressure[nearest]
            pressure[outside] = airfoil.flow.pressure(points[outside])
            inputs.append(np.column_stack([features, outside]))
            targets.append(pressure[:, None])
        return data.Samples(np.array(inputs, np.float32), np.array(targets, np.float32), box())

    def from_box(self, values: np.ndarray) -> list[np.ndarray]:
        """Returns fields on the box, interpolated to the nodes of every airfoil."""
        axes = [np.asarray(axis.nodes, np.float64) for axis in box().axes]
        fields = values.reshape(len(values), SIDE, SIDE, -1)
        return [
            RegularGridInterpolator(axes, field, bounds_error=False, fill_value=EXTRAPOLATED)(one.points)
            for field, one in zip(fields, self.nodes, strict=True)
        ]


def box() -> domains.Grid:
    """Returns the grid of the FNO."""
    lower, upper = airfoil_data.BOX.tolist()
    return domains.box((SIDE, SIDE), lower=lower, upper=upper, rule="midpoint")


def relative(values: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Returns the relative L2 error of values at nodes with these weights."""
    return float(np.sqrt(weights @ (values - truth) ** 2 / (weights @ truth**2)).item())


def load(options: Comparison) -> tuple[Meshes, dict[str, Meshes]]:
    """Returns the airfoils of the training set, and those of the test set with every draw of their nodes."""
    found = list(airfoil_data.airfoils(airfoil_data.outlines(real_data.fetch("airfoils", options.cache)), seed=0))
    sizes = options.train, options.valid, options.test
    if sum(sizes) > len(found):
        raise ValueError(f"--train, --valid and --test must add up to at most {len(found)} airfoils, got {sum(sizes)}.")
    train, _, test = airfoil_data.split([one.name for one in found], sizes)

    def draw(numbers: Sequence[int], scale: float, nose: float, stream: int) -> Meshes:
        chosen, drawn = [found[i] for i in numbers], []
        for i, airfoil in zip(numbers, chosen, strict=True):
            rng = np.random.default_rng((stream, i))
            drawn.append(airfoil_data.nodes(airfoil, int(scale * rng.integers(600, 1101)), rng, nose=nose))
        return Meshes(chosen, drawn)

    tests = {name: draw(test, scale, 4.0 * (name == "nose"), 1 + i) for i, (name, scale) in enumerate(SETS.items())}
    return draw(train, 1.0, 0.0, 0), tests


def main(options: Comparison = Comparison()) -> None:
    """Trains and tests one operator after the other."""
    train, tests = load(options)
    settings = training.TrainingConfig(
        batch_size=options.batch_size, learning_rate=options.learning_rate, loss="l2", weight_decay=1e-4
    )
    entrants = {name: entrant(name, train) for name in options.operators}
    untrained = {name: (functools.partial(one.make, 0), one.train) for name, one in entrants.items()}
    steps = affordable_steps(untrained, settings, 60 * options.minutes)
    columns = ("surface", "field", *(f"surface, {name}" for name in tuple(SETS)[1:]))
    print_header(f"{len(options.seeds)} seeds", "parameters", "steps", "seconds", *columns)
    if BOX in options.operators:
        truth = errors_of(tests, lambda meshes: meshes.from_box(meshes.on_box().targets[:]))
        print_row("truth, interpolated from the box", "", "", "", *(f"{error:.4f}" for error in truth))
    for name, one in entrants.items():
        print_row(name, *contest(name, one, steps[name], tests, options, settings))


@dataclasses.dataclass(frozen=True)
class Entrant:
    """An operator of the table, its training samples, and its predictions at the nodes of meshes."""

    config: Config
    train: data.Samples | data.RaggedSamples
    predict: Callable[[nnx.Module, Meshes, int], Sequence[np.ndarray]]

    def make(self, seed: int) -> nnx.Module:
        """Returns the untrained operator of a seed."""
        return experiments.build(self.config, self.train, seed=seed)


def entrant(name: str, train: Meshes) -> Entrant:
    """Returns the operator of this name, with its samples."""
    if name == BOX:
        samples = train.on_box()
        channels = {"in_channels": samples.in_channels, "out_channels": samples.out_channels}
        config = operators.CONFIGS["fno"].for_data(samples.domain, **channels, width=32)

        def interpolated(model: nnx.Module, meshes: Meshes, batch_size: int) -> Sequence[np.ndarray]:
            return meshes.from_box(training.predict(model, meshes.on_box(), batch_size=batch_size))

        return Entrant(config, samples, interpolated)
    weighted = not name.endswith(", no weights")
    samples = train.samples(weighted=weighted)
    return Entrant(
        OPERATORS[name.removesuffix(", no weights")](samples),
        samples,
        lambda model, meshes, b: training.predict(model, meshes.samples(weighted=weighted), batch_size=b),
    )


def contest(
    name: str,
    one: Entrant,
    steps: int,
    tests: dict[str, Meshes],
    options: Comparison,
    settings: training.TrainingConfig,
) -> list[str]:
    """Trains an operator with every seed; returns the cells of its row."""
    rows, spent, count = [], [], 0
    for seed in options.seeds:
        model = one.make(seed)
        count = parameters(model)
        directory = new_run(options.run_dir, "airfoils", name, seed)
        result = train_once(model, one.train, run_settings(settings, steps, seed), directory)
        spent.append(result.seconds)
        rows.append(errors_of(tests, lambda meshes, model=result.model: one.predict(model, meshes, options.batch_size)))
    cells = [f"{count:,}", str(steps), f"{np.mean(spent):.0f}"]
    return cells + [mean_and_deviation(column) for column in np.array(rows).T]


def errors_of(tests: dict[str, Meshes], predict: Callable[[Meshes], Sequence[np.ndarray]]) -> list[float]:
    """Returns the errors of the columns of the table."""
    found = {name: meshes.errors(predict(meshes)) for name, meshes in tests.items()}
    return [*found["test"], *(found[name][0] for name in tuple(SETS)[1:])]
