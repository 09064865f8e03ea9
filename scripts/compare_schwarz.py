"""Two-level Schwarz attention as an operator that solves elliptic equations: learn f ↦ u, or (a, f) ↦ u.

    python scripts/compare_schwarz.py all           # every table below
    python scripts/compare_schwarz.py rank          # error against rank; also overlap, subdomains, decay
    python scripts/compare_schwarz.py ablation      # local only, coarse only, both; from A, from data, symmetric
    python scripts/compare_schwarz.py training      # Adam on 4096 samples against the fit, at equal parameters and time
    python scripts/compare_schwarz.py transfer      # factors that are functions, on finer grids
    python scripts/compare_schwarz.py cg            # conjugate gradients as the number of subdomains grows
    python scripts/compare_schwarz.py poisson       # −Δu = f on the square, fits at 63², 127² and 255² interior nodes
    python scripts/compare_schwarz.py plane-cg      # conjugate gradients there
    python scripts/compare_schwarz.py coefficient   # −∇·(a∇u) = f on the square, networks that see a and f

The operator is that of Köhler and Rheinbach (arXiv:2606.18525); the experiment is our reconstruction: −u″ = f on (0, 1)
with u = 0 at the ends, n = 255 interior nodes, f = Σ_k c_k sin(kπx), c_k ~ N(0, k^(−2s)), k ≤ K. Errors are
‖(M − A⁻¹)F‖ / ‖A⁻¹F‖ in the Frobenius norm, F a factor of the covariance of f. "bound": no operator of the same rank,
N·r + r0, can do better (Eckart and Young). "global": the best that QKᵀ of no fewer parameters can do at all.
Parameters count both Q and K.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
import tyro

from jaxop import domains, nn, operators, schwarz, training
from jaxop.data import Samples, gaussian_field, solve_darcy
from jaxop.experiments import build
from jaxop.experiments.comparison import Contender, compare, options_of
from jaxop.experiments.terminal import run_command


@dataclasses.dataclass(frozen=True)
class Study:
    """The setting that one table varies.

    Attributes:
        nodes: n, interior nodes.
        subdomains: N.
        overlap: nodes added on each side of a core.
        rank: r of every subdomain; the coarse rank is full.
        decay: s of the variances k^(−2s).
        modes: K; None: n.
        steps: most Gauss–Newton steps of a fit.
        seeds: of samples, random factors and networks.
    """

    nodes: int = 255
    subdomains: int = 8
    overlap: int = 8
    rank: int = 2
    decay: float = 1.0
    modes: int | None = None
    steps: int = 30
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self):
        if self.modes is not None and not 1 <= self.modes <= self.nodes:
            raise ValueError(f"--modes must lie between 1 and the {self.nodes} nodes, got {self.modes}.")
        if not math.isfinite(self.decay):
            raise ValueError(f"--decay must be finite, got {self.decay}.")
        if not self.seeds:
            raise ValueError("--seeds must name at least one seed, got none.")

    def with_band(self) -> "Study":
        """The modes that were asked for, or as many as leave others out."""
        return dataclasses.replace(self, modes=self.modes or min(64, self.nodes // 2))

    def decompose(self, **options: Any) -> schwarz.Decomposition:
        return schwarz.decompose(
            domains.interval(self.nodes, rule="interior"), self.subdomains, self.overlap, **options
        )

    @property
    def matrix(self) -> scipy.sparse.csr_array:
        """A, second differences."""
        return second_differences(self.nodes)

    def covariance(self, *, first: int = 1, last: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """F and A⁻¹F for the modes from ``first`` to ``last``."""
        k = np.arange(first, (last or self.modes or self.nodes) + 1)
        x = np.arange(1, self.nodes + 1) / (self.nodes + 1)
        inputs = np.sin(np.pi * np.outer(x, k)) * k**-self.decay
        return inputs, self.solve(inputs)

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        return np.linalg.solve(np.asarray(self.matrix.todense()), inputs)


def second_differences(n: int) -> scipy.sparse.csr_array:
    """−u″ on n interior nodes of the unit interval."""
    off = scipy.sparse.eye_array(n, k=1) + scipy.sparse.eye_array(n, k=-1)
    return scipy.sparse.csr_array(2 * scipy.sparse.eye_array(n) - off) * (n + 1) ** 2


HEADER = "parameters | error | bound | error / bound | global | global / error | seconds |"


def cells(dec: schwarz.Decomposition, fit: schwarz.Fit, seconds: float, data: Any) -> str:
    """The columns of `HEADER`."""
    count = schwarz.count_parameters(dec, fit.factors)
    inputs, targets = data
    best = schwarz.low_rank_errors(inputs, targets, np.asarray(dec.domain.weights))
    glob, error = best[min(math.ceil(count / (2 * dec.domain.size)), best.size - 1)], fit.errors[-1]
    to_bound = f"{error / fit.bound:.2f}" if fit.bound > 1e-12 else "bound is 0"
    return f"{count} | {error:.2e} | {fit.bound:.2e} | {to_bound} | {glob:.2e} | {glob / error:.3g} | {seconds:.1f} |"


def fitted(study: Study, dec: schwarz.Decomposition, data: Any, **options: Any) -> tuple[schwarz.Fit, float]:
    """A fit that starts at the Galerkin blocks of A."""
    begin = time.perf_counter()
    options = {"initial": schwarz.galerkin_factors(dec, study.matrix, study.rank), "rank": study.rank} | options
    fit = schwarz.fit(dec, *data, steps=study.steps, **options)
    return fit, time.perf_counter() - begin


def sweep(study: Study, name: str, values: Sequence[Any]) -> None:
    """One row per value of a field."""
    print(f"\n| {name} | {HEADER}\n" + "|---" * 8 + "|")
    for value in values:
        here = dataclasses.replace(study, **{name: value})
        dec, data = here.decompose(), here.covariance()
        print(f"| {value} | {cells(dec, *fitted(here, dec, data), data)}", flush=True)


def decay(study: Study) -> None:
    """Every spectrum of right-hand sides."""
    print(f"\n| s | K | {HEADER}\n" + "|---" * 9 + "|")
    dec = study.decompose()
    for modes in (16, 64, study.nodes):
        for power in (0.0, 1.0, 2.0):
            here = dataclasses.replace(study, decay=power, modes=modes)
            data = here.covariance()
            print(f"| {power:g} | {modes} | {cells(dec, *fitted(here, dec, data), data)}", flush=True)


def ablation(study: Study) -> None:
    """Both levels against each of them, and other ways to start and to tie the factors."""
    dec, data = study.decompose(), study.covariance()
    print(f"\n| form | {HEADER}\n" + "|---" * 8 + "|")
    rows: dict[str, dict[str, Any]] = {
        "two levels": {},
        "two levels, from data alone": {"initial": None},
        "two levels, K = Q": {"symmetric": True},
        "local only": {"coarse_rank": 0, "initial": None},
        "coarse only": {"rank": 0, "initial": None},
    }
    for label, options in rows.items():
        fit, seconds = fitted(study, dec, data, **options)
        print(f"| {label} | {cells(dec, fit, seconds, data)}", flush=True)
    galerkin = schwarz.galerkin_factors(dec, study.matrix, study.rank)
    error = schwarz.operator_error(dec, galerkin, *data)
    count = sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(galerkin))
    print(f"| Galerkin blocks, truncated | {count} | {error:.2e} | | | | | |")
    print("\n| two levels | asymmetry | smallest eigenvalue | largest |\n|---|---|---|---|")
    for label, options in (("free", {}), ("K = Q", {"symmetric": True})):
        report = schwarz.symmetry_report(dec, fitted(study, dec, data, **options)[0].factors)
        print(
            f"| {label} | {report.asymmetry:.1e} | {report.smallest_eigenvalue:.1e} | {report.largest_eigenvalue:.3f} |"
        )


def descent(study: Study, seconds: float) -> None:
    """Adam from random factors, two levels and global, against the fit from the same samples, with a little noise."""
    study = study.with_band()
    if study.modes == study.nodes:
        raise ValueError(f"--modes must be below the {study.nodes} nodes here: some are left out of the band.")
    if not seconds > 0:
        raise ValueError(f"--seconds must be positive, got {seconds}.")
    results: dict[str, tuple[int, list[Any]]] = {}
    for seed in study.seeds:
        for label, size, numbers in trainings(study, seconds, seed):
            results.setdefault(label, (size, []))[1].append(numbers)
    print(
        f"\n| 4096 samples, {len(study.seeds)} seeds | parameters | test | out of band | seconds |\n" + "|---" * 5 + "|"
    )
    for label, (size, numbers) in results.items():
        (test, beyond, spent), spread = np.mean(numbers, axis=0), np.std(numbers, axis=0)
        row = [f"{test:.2e} ± {spread[0]:.0e}", f"{beyond:.2e} ± {spread[1]:.0e}", f"{spent:.1f}"]
        print(f"| {label} | {size} | " + " | ".join(row) + " |", flush=True)


def trainings(study: Study, seconds: float, seed: int) -> Iterator[tuple[str, int, tuple[float, float, float]]]:
    """Name, number of parameters, errors in and out of band, and seconds of every way to train."""
    dec, rng = study.decompose(), np.random.default_rng(seed)
    inputs, targets = study.covariance()
    coefficients = rng.normal(size=(2, inputs.shape[1], 4096))
    train, test = ((inputs @ c, targets @ c) for c in (coefficients[0], coefficients[1, :, :512]))
    beyond = study.covariance(first=inputs.shape[1] + 1, last=study.nodes)
    weights = dec.domain.weights
    factors = schwarz.random_factors(jax.random.key(seed), dec, study.rank)
    count = schwarz.count_parameters(dec, factors)
    rank = math.ceil(count / (2 * study.nodes))
    keys = jax.random.split(jax.random.key(seed + 1))
    flat = [rank**-0.25 * jax.random.normal(key, (study.nodes, rank), weights.dtype) for key in keys]

    def two_levels(parameters: Any, v: jax.Array) -> jax.Array:
        return schwarz.apply(v, dec, parameters)

    def one_level(parameters: Any, v: jax.Array) -> jax.Array:
        return schwarz.low_rank_apply(v, weights, *parameters)

    def error(operator: Any, parameters: Any, pair: Any) -> float:
        out = np.asarray(operator(parameters, jnp.asarray(pair[0])))
        return float(np.linalg.norm(out - pair[1]) / np.linalg.norm(pair[1]))

    begin = time.perf_counter()
    fit, _ = fitted(study, dec, train, noise=1e-4)
    rows = [("two levels, fit from A", two_levels, fit.factors, time.perf_counter() - begin)]
    begin = time.perf_counter()
    alone, _ = fitted(study, dec, train, initial=None, noise=1e-4)
    rows += [("two levels, fit from data alone", two_levels, alone.factors, time.perf_counter() - begin)]
    begin = time.perf_counter()
    best = schwarz.optimal_low_rank(*train, np.asarray(weights), rank)
    rows += [("global, optimum", one_level, best, time.perf_counter() - begin)]
    for label, operator, start in (("two levels, Adam", two_levels, factors), ("global, Adam", one_level, flat)):
        rows.append((label, operator, *adam(operator, start, train, seconds, seed)))
    for label, operator, found, spent in rows:
        size = count if operator is two_levels else 2 * study.nodes * rank
        yield label, size, (error(operator, found, test), error(operator, found, beyond), spent)


def adam(operator: Any, parameters: Any, train: Any, seconds: float, seed: int) -> tuple[Any, float]:
    """Descends on the relative error of batches of 256, of outputs scaled to size one, for a time."""
    inputs, targets = (jnp.asarray(side) for side in train)
    scale = 1 / jnp.sqrt(jnp.mean(targets**2))
    schedule = optax.exponential_decay(3e-2, 500, 0.9)
    optimizer = optax.adam(schedule)

    def loss(parameters: Any, batch: jax.Array) -> jax.Array:
        out = operator(parameters, inputs[:, batch])
        return jnp.mean((out - scale * targets[:, batch]) ** 2)

    @jax.jit
    def epoch(parameters: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        def advance(carry: Any, key: jax.Array) -> tuple[Any, None]:
            parameters, state = carry
            batch = jax.random.randint(key, (256,), 0, inputs.shape[1])
            updates, state = optimizer.update(jax.grad(loss)(parameters, batch), state)
            return (optax.apply_updates(parameters, updates), state), None

        return jax.lax.scan(advance, (parameters, state), jax.random.split(key, 100))[0]

    state, key = optimizer.init(parameters), jax.random.key(seed)
    jax.block_until_ready(epoch(parameters, state, key))  # compiles
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        key, one = jax.random.split(key)
        parameters, state = jax.block_until_ready(epoch(parameters, state, one))
    spent = time.perf_counter() - begin
    if isinstance(parameters, schwarz.Factors):
        queries = {name: getattr(parameters, name) / scale for name in ("coarse_query", "local_query")}
        return dataclasses.replace(parameters, **queries), spent
    return (parameters[0] / scale, parameters[1]), spent


def transfer(study: Study) -> None:
    """Fitted on the grid of the study, evaluated on finer ones with the same coefficients."""
    study = study.with_band()
    sizes = [study.nodes, 2 * study.nodes + 1, 4 * study.nodes + 3]
    print(
        "\n| Legendre degree, overlap | " + " | ".join(f"n = {n}" for n in sizes) + " | bound |\n|---|---|---|---|---|"
    )
    for degree, overlap, unity in ((5, 0, "multiplicity"), (9, 0, "multiplicity"), (9, study.overlap, "ramp")):
        features = functools.partial(schwarz.legendre_features, degree=degree)
        dec = dataclasses.replace(study, overlap=overlap).decompose(partition=unity)
        fit = schwarz.fit(dec, *study.covariance(), rank=study.rank, features=features, steps=study.steps)
        errors = []
        for nodes in sizes:
            there = dec.on(domains.interval(nodes, rule="interior"))
            data = dataclasses.replace(study, nodes=nodes).covariance()
            errors.append(schwarz.operator_error(there, schwarz.sample_factors(fit.factors, there, features), *data))
        row = " | ".join(f"{error:.2e}" for error in errors)
        print(f"| {degree}, {overlap} ({unity}) | {row} | {fit.bound:.2e} |", flush=True)


def iterations(matrix: Any, rhs: jax.Array, *form: Any) -> str:
    """Of conjugate gradients to a residual of 1e-8, preconditioned by a decomposition and its factors, if given."""
    inverse = schwarz.preconditioner(*form) if form else None
    result = schwarz.flexible_cg(matrix, rhs, preconditioner=inverse, tolerance=1e-8, max_iterations=5000)
    return str(int(result.iterations)) if result.residual <= 1e-8 else "stalled"


def cg(study: Study, core: int = 32) -> None:
    """Iterations to a residual of 1e-8 as subdomains of a fixed size grow in number."""
    labels = ("none", "global + shift", "one level", "two levels", "rank 4 + shift", "fitted, K = Q", "fitted, free")
    print(f"\n| N, {core} nodes each | " + " | ".join(labels) + " |\n" + "|---" * (1 + len(labels)) + "|")
    for subdomains in (8, 16, 32, 64, 128):
        here = dataclasses.replace(study, nodes=core * subdomains - 1, subdomains=subdomains, overlap=core // 4, rank=4)
        h = 1 / (here.nodes + 1)
        two, one, matrix = here.decompose(), here.decompose(coarse=None), here.matrix
        shift = (core * h / ((here.rank + 1) * np.pi)) ** 2  # the largest eigenvalue that a block leaves out
        start = schwarz.galerkin_factors(two, matrix, here.rank, shift=shift)
        forms: list[Any] = [
            (),
            best_global(here.nodes, math.ceil(schwarz.count_parameters(two, start) / (2 * here.nodes))),
            (one, schwarz.galerkin_factors(one, matrix, blocks="overlap")),
            (two, schwarz.galerkin_factors(two, matrix, blocks="overlap")),
            (two, start),
        ]
        if subdomains <= 16:  # beyond, the joint least squares take too many unknowns
            data = dataclasses.replace(here, decay=0.0).covariance()
            for symmetric in (True, False):
                fit = schwarz.fit(two, *data, rank=here.rank, initial=start, shift=shift, steps=5, symmetric=symmetric)
                forms.append((two, fit.factors))
        rhs = jax.random.normal(jax.random.key(study.seeds[0]), (here.nodes,))

        def apply(u: jax.Array, h: float = h) -> jax.Array:
            return (2 * u - jnp.pad(u[1:], (0, 1)) - jnp.pad(u[:-1], (1, 0))) / h**2

        counts = [iterations(apply, rhs, *form) for form in forms]
        counts += [""] * (len(labels) - len(counts))
        print(f"| {subdomains} | " + " | ".join(counts) + " |", flush=True)


def best_global(nodes: int, rank: int) -> tuple[schwarz.Decomposition, schwarz.Factors]:
    """The leading eigenfunctions of A⁻¹ and, times the identity, its next eigenvalue: one subdomain without a cut."""
    k, h = np.arange(1, rank + 2), 1 / (nodes + 1)
    values = (h / (2 * np.sin(np.pi * k * h / 2))) ** 2
    modes = np.sqrt(2) * np.sin(np.pi * h * np.outer(np.arange(1, nodes + 1), k[:-1]))
    whole = schwarz.decompose(domains.interval(nodes, rule="interior"), 1, 0, coarse=None)
    query = jnp.asarray((modes * np.sqrt(values[:-1] - values[-1]))[None])
    return whole, schwarz.Factors(local_query=query, shift=float(values[-1]))


def poisson(
    study: Study, sides: Sequence[int] = (63, 127, 255), core: int = 16, rank: int = 4, waves: int = 16
) -> None:
    """−Δu = f on the unit square, five-point differences, f of variance (k² + l²)^(−s), k, l ≤ 16."""
    print(f"\n| interior nodes, subdomains | Galerkin | {HEADER}\n" + "|---" * 9 + "|")
    for side in sides:
        dec = schwarz.decompose(domains.box((side, side), rule="interior"), (side + 1) // core, core // 4)
        h, k = 1 / (side + 1), np.arange(1, waves + 1)
        sines = np.sin(np.pi * h * np.outer(np.arange(1, side + 1), k))
        values = (2 - 2 * np.cos(np.pi * k * h)) / h**2
        inputs = np.einsum("ik,jl->ijkl", sines, sines) * (k[:, None] ** 2 + k**2) ** (-study.decay / 2)
        data = tuple(a.reshape(side**2, -1) for a in (inputs, inputs / (values[:, None] + values)))
        galerkin = schwarz.operator_error(dec, schwarz.galerkin_factors(dec, laplacian(side), rank), *data)
        begin = time.perf_counter()
        fit = schwarz.fit(dec, *data, rank=rank, steps=5)
        row = cells(dec, fit, time.perf_counter() - begin, data)
        print(f"| {side}², {(side + 1) // core}² | {galerkin:.2e} | {row}", flush=True)


def laplacian(side: int) -> scipy.sparse.csr_array:
    """Five-point differences on the interior nodes of the unit square."""
    line, eye = second_differences(side), scipy.sparse.eye_array(side)
    return scipy.sparse.csr_array(scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line))


def plane_cg(study: Study, sides: Sequence[int] = (31, 63, 127, 255), core: int = 8) -> None:
    """Iterations to a residual of 1e-8 on the square."""
    print("\n| interior nodes, subdomains | none | one level | two levels |\n|---|---|---|---|")
    for side in sides:
        square, count = domains.box((side, side), rule="interior"), (side + 1) // core
        matrix = laplacian(side)
        rhs = jax.random.normal(jax.random.key(study.seeds[0]), (side**2,))

        def apply(u: jax.Array, side: int = side) -> jax.Array:
            u = jnp.pad(u.reshape(side, side), 1)
            lower, upper = u[:-2, 1:-1] + u[1:-1, :-2], u[2:, 1:-1] + u[1:-1, 2:]
            return ((4 * u[1:-1, 1:-1] - lower - upper) * (side + 1) ** 2).ravel()

        counts = [iterations(apply, rhs)]
        for coarse in (None, "hat"):
            dec = schwarz.decompose(square, count, core // 4, coarse=coarse)
            counts.append(iterations(apply, rhs, dec, schwarz.galerkin_factors(dec, matrix, blocks="overlap")))
        print(f"| {side}², {count}² | " + " | ".join(counts) + " |", flush=True)


NETWORKS: dict[str, Any] = {
    "two levels": nn.SchwarzAttentionConfig(4),
    "local only": nn.SchwarzAttentionConfig(4, coarse=None),
    "global": None,
}
"""The attention of the networks that see the coefficient."""


def coefficient(study: Study, seconds: float) -> None:
    """−∇·(a∇u) = f, a log-normal, f Gaussian; trained at 32², tested there and at 96², all for the same time."""
    fine = {}
    for name, first, count in (("train", 0, 1000), ("test", 1000, 20)):
        a, f = (gaussian_field(count, 96, seed=seed, first=first) for seed in (0, 1))
        a = np.exp(2 * a)
        fine[name] = (np.stack([np.log(a), f], axis=-1), solve_darcy(a, f)[..., None])
    grids = {96: slice(None), 32: slice(1, None, 3)}

    def sample(name: str, side: int) -> Samples:
        inputs, targets = (
            array[:, grids[side], grids[side]].reshape(len(array), side**2, -1).astype(np.float32)
            for array in fine[name]
        )
        return Samples(inputs, targets, domains.box((side, side), rule="midpoint"))

    train, tests = sample("train", 32), {f"{side}²": sample("test", side) for side in (32, 96)}

    def network(label: str, seed: int) -> Any:
        config = operators.TransformerNeuralOperatorConfig(
            2, 1, dim=2, width=32, heads=4, layers=3, feedforward=64, schwarz=NETWORKS[label]
        )
        return build(config, train, seed=seed)

    compare(
        {label: Contender(functools.partial(network, label), train, tests) for label in NETWORKS},
        training.TrainingConfig(batch_size=4, learning_rate=2e-3, weight_decay=1e-2, loss="l2"),
        seconds=seconds,
        seeds=study.seeds,
        run_dir=Path("runs/compare_schwarz"),
        task="coefficient",
    )


TABLES: dict[str, Any] = {
    "rank": lambda study, _: sweep(study, "rank", (1, 2, 3, 4, 6)),
    "overlap": lambda study, _: sweep(study, "overlap", (0, 1, 2, 4, 8, 16)),
    "subdomains": lambda study, _: sweep(study, "subdomains", (2, 4, 8, 16)),
    "decay": lambda study, _: decay(study),
    "ablation": lambda study, _: ablation(study),
    "training": descent,
    "transfer": lambda study, _: transfer(study),
    "cg": lambda study, _: cg(study),
    "poisson": lambda study, _: poisson(study),
    "plane-cg": lambda study, _: plane_cg(study),
    "coefficient": coefficient,
}


def main(
    name: tyro.conf.Positional[
        Literal[
            "all",
            "rank",
            "overlap",
            "subdomains",
            "decay",
            "ablation",
            "training",
            "transfer",
            "cg",
            "poisson",
            "plane-cg",
            "coefficient",
        ]
    ],
    study: Study = Study(),
    seconds: float = 20.0,
) -> None:
    """Prints the table NAME, or all of them.

    A table varies or fixes what it is about, whatever the study says: "cg" and "plane-cg" all sizes, "rank" the rank.

    Args:
        name: the table.
        study: the setting.
        seconds: of training, for each model that Adam trains.
    """
    for table in TABLES if name == "all" else (name,):
        with jax.enable_x64(table != "coefficient"):
            TABLES[table](study, seconds)


command_line = options_of(main, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(command_line, sys.argv[1:]))
