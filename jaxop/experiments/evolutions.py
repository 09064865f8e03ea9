"""Data of an experiment in time: equations that are solved from random initial states, and kept on disk."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from jaxop import data
from jaxop.data import Trajectories
from jaxop.experiments.sets import TEST, VALID, SeriesSets, cached

Own = TypeVar("Own", bound="_Evolution")

Constant = float | tuple[float, float]
"""One number, or the ends of the range from which every trajectory draws its own, which the stepper then sees."""


@dataclasses.dataclass(frozen=True)
class _Evolution:
    """What all equations share.

    Attributes:
        samples: training trajectories.
        valid_samples: trajectories that choose the best checkpoint.
        test_samples: trajectories of the final evaluation.
        times: recorded times of the training trajectories, the initial one included.
        test_times: recorded times of the test trajectories. The rollouts of the final evaluation are as long.
        dt: time between recorded times, one step of the stepper.
        grids: further test sets: the nodes along each axis of another grid, or dt=STEP for every second, third, …
            recorded time.
        seed: seed of the initial states and of the constants that are drawn.
    """

    name: ClassVar[str]
    _generate: ClassVar[Callable[..., Trajectories]]

    samples: int = 50
    valid_samples: int = 5
    test_samples: int = 30
    times: int = 51
    test_times: int = 201
    dt: float = 0.1
    grids: tuple[int | str, ...] = ()
    seed: int = 0

    def load(self, cache: Path) -> SeriesSets:
        """See `jaxop.experiments.SeriesProblem`."""
        first = self.at([self._own], cache)  # bad grids are found before the training set is made
        test = first | self.at([str(grid) for grid in self.grids if str(grid) != self._own], cache)
        valid = self._made("valid", self.valid_samples, VALID, self.times, cache)
        return SeriesSets(self._made("train", self.samples, 0, self.times, cache), {"valid": valid}, test)

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, Trajectories]:
        """See `jaxop.experiments.SeriesProblem`."""
        changes = {grid: self._change(grid) for grid in grids}
        made = self._solved("test", self.test_samples, TEST, self.test_times, cache)
        return {self._label(grid): change(made) for grid, change in changes.items()}

    def lasting(self: Own, steps: int, history: int) -> Own:
        """See `jaxop.experiments.SeriesProblem`."""
        return dataclasses.replace(self, test_times=steps + history)

    @property
    def _own(self) -> str:
        """The name of the test set with the grid and the step of the training."""
        return f"dt={self.dt:g}"

    def _label(self, grid: str) -> str:
        return grid

    def _change(self, grid: str) -> Callable[[Trajectories], Trajectories]:
        """Returns the function that makes a test set from the solutions; ``grid`` is its name."""
        name, _, value = grid.partition("=")
        try:
            ratio = float(value) / self.dt if name == "dt" else 0.0
        except ValueError:
            ratio = 0.0
        stride = round(ratio) if np.isfinite(ratio) else 0
        if stride < 1 or abs(ratio - stride) > 1e-6 * ratio:
            raise ValueError(f"grids must be {self._kinds}dt=STEP with a multiple of dt={self.dt:g}, got {grid!r}.")
        return lambda made: self._on_own_grid(_every(made, stride))

    @property
    def _kinds(self) -> str:
        return ""

    def _on_own_grid(self, made: Trajectories) -> Trajectories:
        return made

    def _made(self, part: str, samples: int, first: int, times: int, cache: Path) -> Trajectories:
        return self._on_own_grid(self._solved(part, samples, first, times, cache))

    def _solved(self, part: str, samples: int, first: int, times: int, cache: Path) -> Trajectories:
        """Returns solutions from the cache, or solves the equation and keeps them there."""
        arguments = {"samples": samples, "first": first, "times": times, "dt": self.dt, "seed": self.seed}
        arguments |= self._arguments()
        path = cached(cache, f"{self.name}-{part}", arguments)
        if not path.is_file():
            data.save(path, self._generate(**arguments))
        return data.read_trajectories(path)

    def _arguments(self) -> Mapping[str, Any]:
        """Returns the arguments of the equation itself: the fields that it does not share with others."""
        shared = {field.name for kind in (_Evolution, _OnGrid) for field in dataclasses.fields(kind)}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in shared}


@dataclasses.dataclass(frozen=True)
class _OnGrid(_Evolution):
    """Equations on periodic grids.

    Attributes:
        nodes: nodes along each axis of the grid of the training.
        reference: nodes along each axis of the grid on which the equation is solved. Solutions are interpolated from it
            to all other grids, by their Fourier series. None means ``nodes``.
    """

    nodes: int = 160
    reference: int | None = None

    @property
    def _own(self) -> str:
        return str(self.nodes)

    @property
    def _kinds(self) -> str:
        return "numbers of nodes along an axis, or "

    def _label(self, grid: str) -> str:
        return f"{grid}{self._power}" if grid.isdecimal() else grid

    @property
    def _power(self) -> str:
        return ""

    def _change(self, grid: str) -> Callable[[Trajectories], Trajectories]:
        if not grid.isdecimal():
            return super()._change(grid)
        if int(grid) < 1:
            raise ValueError(f"grids must be {self._kinds}dt=STEP, got {grid!r}.")
        return lambda made: _on(made, int(grid))

    def _on_own_grid(self, made: Trajectories) -> Trajectories:
        return _on(made, self.nodes)

    def _arguments(self) -> Mapping[str, Any]:
        return {"nodes": self.reference or self.nodes, **super()._arguments()}


@dataclasses.dataclass(frozen=True)
class _OnPlane(_OnGrid):
    nodes: int = 64

    @property
    def _power(self) -> str:
        return "²"


@dataclasses.dataclass(frozen=True)
class AdvectionData(_OnGrid):
    """Advection u_t + c u_x = 0 on a circle, from random Fourier series; see `jaxop.data.advection`.

    Attributes:
        speed: c, one number, or a range from which every trajectory draws its own.
        length: of the circle.
        modes: waves of the initial states.
    """

    name: ClassVar[str] = "advection"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.advection)

    speed: Constant = 0.25
    length: float = 1.0
    modes: int = 5


@dataclasses.dataclass(frozen=True)
class BurgersData(_OnGrid):
    """Burgers equation u_t + b (u²/2)_x = ν u_xx on a circle, from random Fourier series; see `jaxop.data.burgers`.

    Attributes:
        viscosity: ν, one number, or a range from which every trajectory draws its own.
        convection: b, likewise.
        length: of the circle.
        modes: waves of the initial states.
        substeps: time steps of the solver in each dt.
    """

    name: ClassVar[str] = "burgers"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.burgers)

    viscosity: Constant = 3e-4
    convection: Constant = 0.125
    length: float = 1.0
    modes: int = 5
    substeps: int = 1


@dataclasses.dataclass(frozen=True)
class KuramotoSivashinskyData(_OnGrid):
    """Kuramoto–Sivashinsky equation on a circle, on its attractor; see `jaxop.data.kuramoto_sivashinsky`.

    Attributes:
        diffusion: coefficient a₂ of −u_xx, one number, or a range from which every trajectory draws its own.
        hyperdiffusion: coefficient a₄ of −u_xxxx, likewise.
        convection: coefficient b of −(u²/2)_x, likewise.
        length: of the circle.
        modes: waves of the states before the warm-up.
        warmup: number of times dt before the first recorded time.
        substeps: time steps of the solver in each dt.
    """

    name: ClassVar[str] = "kuramoto_sivashinsky"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.kuramoto_sivashinsky)

    diffusion: Constant = 1.44
    hyperdiffusion: Constant = 0.4
    convection: Constant = 3.6
    length: float = 60.0
    modes: int = 5
    warmup: int = 500
    substeps: int = 1


@dataclasses.dataclass(frozen=True)
class KortewegDeVriesData(_OnGrid):
    """Korteweg–de Vries equation on a circle: waves fall apart into solitons; see `jaxop.data.korteweg_de_vries`.

    Attributes:
        convection: coefficient b of −(u²/2)_x, one number, or a range from which every trajectory draws its own.
        dispersion: coefficient a₃ of −u_xxx, likewise.
        hyperdiffusion: coefficient a₄ of −u_xxxx, likewise.
        length: of the circle.
        modes: waves of the initial states.
        warmup: number of times dt before the first recorded time.
        substeps: time steps of the solver in each dt.
    """

    name: ClassVar[str] = "korteweg_de_vries"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.korteweg_de_vries)

    convection: Constant = 6.0
    dispersion: Constant = 1.0
    hyperdiffusion: Constant = 0.125
    length: float = 50.0
    modes: int = 5
    warmup: int = 0
    substeps: int = 10


@dataclasses.dataclass(frozen=True)
class GrayScottData(_OnPlane):
    """Gray–Scott reaction of two substances on a torus, from bumps near its middle; see `jaxop.data.gray_scott`.

    Attributes:
        feed: rate F, one number, or a range from which every trajectory draws its own.
        kill: rate k, likewise.
        diffusion_u: of the first substance, likewise.
        diffusion_v: of the second substance, likewise.
        length: of a side of the torus.
        warmup: number of times dt before the first recorded time.
        substeps: time steps of the solver in each dt.
    """

    name: ClassVar[str] = "gray_scott"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.gray_scott)

    dt: float = 10.0
    feed: Constant = 0.04
    kill: Constant = 0.06
    diffusion_u: Constant = 2e-5
    diffusion_v: Constant = 1e-5
    length: float = 1.0
    warmup: int = 0
    substeps: int = 10


@dataclasses.dataclass(frozen=True)
class KolmogorovData(_OnPlane):
    """Vorticity of Kolmogorov flow, two-dimensional turbulence on a torus; see `jaxop.data.kolmogorov_flow`.

    Attributes:
        viscosity: ν, one number, or a range from which every trajectory draws its own.
        forcing: strength of the force, likewise.
        drag: rate at which all motion decays, likewise.
        forced_mode: waves of the force along a side.
        modes: waves of the states before the warm-up.
        warmup: number of times dt before the first recorded time.
        substeps: time steps of the solver in each dt.
    """

    name: ClassVar[str] = "kolmogorov_flow"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.kolmogorov_flow)

    viscosity: Constant = 1e-2
    forcing: Constant = 1.0
    drag: Constant = 0.1
    forced_mode: int = 4
    modes: int = 5
    warmup: int = 500
    substeps: int = 20


@dataclasses.dataclass(frozen=True)
class NavierStokesData(_OnPlane):
    """Vorticity of forced Navier–Stokes flow on the unit torus, from random fields; see `jaxop.data.navier_stokes`.

    Attributes:
        viscosity: ν, one number, or a range from which every trajectory draws its own.
        forcing: strength of the force, likewise.
        variance: scale of the covariance of the initial vorticity.
        substeps: time steps of the solver in each dt.
    """

    name: ClassVar[str] = "navier_stokes"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.navier_stokes)

    test_times: int = 51
    dt: float = 1.0
    viscosity: Constant = 1e-3
    forcing: Constant = 0.1
    variance: float = 7**1.5
    substeps: int = 50


@dataclasses.dataclass(frozen=True)
class Lorenz96Data(_Evolution):
    """Lorenz-96: values around a circle of latitude, a toy of the weather; see `jaxop.data.lorenz96`.

    Attributes:
        grids: further test sets: dt=STEP for every second, third, … recorded time.
        variables: number of values, the nodes of the circle.
        forcing: strength of the force.
        warmup: number of times dt before the first recorded time.
    """

    name: ClassVar[str] = "lorenz96"
    _generate: ClassVar[Callable[..., Trajectories]] = staticmethod(data.lorenz96)

    dt: float = 0.05
    variables: int = 40
    forcing: float = 8.0
    warmup: int = 200


EVOLUTIONS: tuple[type, ...] = (
    AdvectionData,
    BurgersData,
    KuramotoSivashinskyData,
    KortewegDeVriesData,
    GrayScottData,
    KolmogorovData,
    NavierStokesData,
    Lorenz96Data,
)
"""The data settings of all equations."""


def _on(made: Trajectories, nodes: int) -> Trajectories:
    """Returns solutions on a grid with so many nodes along each axis."""
    domain: Any = made.domain
    return made if all(count == nodes for count in domain.shape) else data.resample(made, nodes)


def _every(made: Trajectories, stride: int) -> Trajectories:
    """Returns solutions at every r-th of their times, from the first on."""
    if made.steps <= stride:
        raise ValueError(
            f"a step of {stride} recorded times needs more than the {made.steps} of a test trajectory; raise "
            "test_times."
        )
    return made.between(None, None, stride)
