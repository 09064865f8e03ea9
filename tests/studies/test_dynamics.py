"""The tables of dynamics: what their cells mean, and every table at a size that takes seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from studies.dynamics import operators, recipes, setting, speed, tables, transfer
from studies.dynamics.errors import cells

from jaxop import data, domains, dynamics
from jaxop.experiments import comparison

pytestmark = pytest.mark.optax
TINY = {"seeds": (0,), "samples": 3, "test_samples": 2, "steps": 4, "long_steps": 6, "batch_size": 2, "minutes": 0.05}


def waves(count=2, times=9, nodes=32, side=1.0):
    """Two waves that grow by a tenth in each step."""
    grid = domains.interval(nodes, upper=side, rule="periodic")
    phase = 2 * np.pi * np.asarray(grid.points) / side
    states = np.sin(phase) + 0.5 * np.sin(6 * phase)
    grown = 1.1 ** np.arange(times)[:, None, None] * states
    return data.Trajectories(np.stack([grown] * count).astype(np.float32), grid, 0.5 * np.arange(times))


def grow(states, domain, *, dt=None, offsets=None, parameters=None):
    return 1.1 * states[:, -1]


def first_wave(states, domain, *, dt=None, offsets=None, parameters=None):
    """Doubles the sixth wave in each step, by a projection on both waves."""
    x = 2 * jnp.pi * domain.points
    u = states[:, -1]
    first, sixth = (2 * jnp.mean(u * jnp.sin(k * x), axis=1, keepdims=True) * jnp.sin(k * x) for k in (1, 6))
    return first + 2 * sixth


def explode(states, domain, *, dt=None, offsets=None, parameters=None):
    return 1e15 * states[:, -1]


def test_a_long_run_counts_finite_steps_and_compares_amplitudes():
    truth = waves()
    known = recipes.long_run(None, truth, 8)
    assert known.finite == 8
    assert known.largest == pytest.approx(float(np.abs(np.asarray(truth.states)[:, 1:]).max()))
    same = recipes.long_run(grow, truth, 8)
    assert same.largest == pytest.approx(known.largest, rel=1e-5)
    assert same.ratio(known, (1, 8)) == pytest.approx(1, rel=1e-4)
    other = recipes.long_run(first_wave, truth, 8)
    growth = np.sum(1.1 ** (2 * np.arange(5, 9)))
    assert other.ratio(known, (1, 4)) == pytest.approx(np.sqrt(4 / growth), rel=1e-3)
    assert other.ratio(known, (5, 8)) == pytest.approx(np.sqrt(np.sum(4.0 ** np.arange(5, 9)) / growth), rel=1e-3)
    lost = recipes.long_run(explode, truth, 8)
    assert (lost.finite, lost.ratio(known, (1, 4))) == (2, np.inf)
    assert setting.spread([lost.ratio(known, (1, 4))]) == "∞"


def test_the_cells_of_errors_are_the_means_over_seeds():
    errors = [dynamics.evaluate(one, waves()) for one in (grow, first_wave)]
    step, near, mean, until = cells(errors[:1], 4)
    assert float(step) == pytest.approx(0, abs=1e-5)
    assert until == "> 4"
    curves = np.array([one.mean("nrmse") for one in errors])
    step, near, mean, until = cells(errors, 4)
    assert near == f"{curves[:, 3].mean():.3g} ± {curves[:, 3].std(ddof=1):.2g}"
    assert mean == f"{curves.mean():.3g} ± {curves.mean(axis=1).std(ddof=1):.2g}"
    assert until == "> 4"  # the first stepper never loses the truth
    *_, until = cells(errors[1:], 4)
    assert 0 < float(until) < 2
    assert cells(errors[:1], 4, "persistence")[0] == f"{1 - 1 / 1.1:.3g}"


def test_coordinates_are_those_of_the_unit_torus():
    made = waves(side=60.0)
    unit = setting.on_unit_torus(made)
    np.testing.assert_allclose(unit.domain.points, np.asarray(made.domain.points) / 60, rtol=1e-6)
    assert float(unit.domain.measure) == pytest.approx(1)
    torus = operators.embedded("tno, torus", unit)
    assert operators.embedded("tno", unit) is unit
    points = np.asarray(torus.domain.points)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1 / (2 * np.pi), rtol=1e-6)
    steps = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)  # there is no seam
    np.testing.assert_array_equal(torus.domain.weights, unit.domain.weights)
    np.testing.assert_array_equal(torus.states, made.states)


def test_every_second_time_is_kept():
    made = waves()
    part = made.between(None, None, 2)
    np.testing.assert_array_equal(part.times, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(part.states, np.asarray(made.states)[:, ::2])


@pytest.mark.parametrize(("dim", "expected"), [(1, 32_000), (2, 150_000)])
@pytest.mark.sample(1)
def test_operators_have_about_equal_numbers_of_parameters(dim, expected):
    grid = domains.box((160,) if dim == 1 else (64, 64), rule="periodic")
    series = data.Trajectories(np.zeros((1, 2, grid.size, 1), np.float32), grid, [0.0, 0.1])
    for name in operators.NAMES:
        if name in operators.NETWORKS:
            continue
        windows = operators.embedded(name, series).windows()
        statistics = windows.statistics()
        made = nnx.eval_shape(lambda name=name, w=windows, s=statistics: operators.stepper(name, w, s, 0))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))
        assert abs(count / expected - 1) < 0.1, name


def test_a_network_of_the_package_is_an_operator():
    pytest.importorskip("apebench")
    series = waves()
    windows = series.windows()
    made = operators.stepper("apebench conv", windows, windows.statistics(), 0)
    u = jnp.asarray(np.asarray(series.states)[:, :1])
    moved = jnp.roll(made(u, series.domain), 3, axis=1)  # convolutions on a circle commute with translations
    np.testing.assert_allclose(made(jnp.roll(u, 3, axis=2), series.domain), moved, rtol=1e-5, atol=1e-5)
    assert comparison.parameters(made) == 31_757


def test_settings_refuse_what_they_cannot_use():
    with pytest.raises(ValueError, match="operators='fna' is unknown: did you mean"):
        setting.Setting(operators=("fna",))
    with pytest.raises(ValueError, match="--minutes must be positive"):
        setting.Setting(minutes=0.0)
    assert setting.DEFAULT.chosen(("fno",)) == ("fno",)
    assert set(tables.TABLES) == {name.removeprefix("dynamics-") for name in tables.ABOUT}


def rows(table, tmp_path, monkeypatch, capsys, **changes):
    """The rows of a table at a tiny size, by their first cells."""
    pytest.importorskip("exponax")
    monkeypatch.setattr(comparison, "seconds_per_step", lambda *_: 1.0)
    tables.main(table, setting.Setting(cache=tmp_path / "cache", run_dir=tmp_path, **(TINY | changes)))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    header, *found = [
        [cell.strip() for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")] for line in lines
    ]
    assert header[0] == "1 seeds"
    assert all("nan" not in line for line in lines)
    return {name: dict(zip(header[1:], rest, strict=True)) for name, *rest in found}


@pytest.mark.study
def test_operators_are_compared(tmp_path, monkeypatch, capsys):
    found = rows("burgers", tmp_path, monkeypatch, capsys, operators=("fno",))
    assert list(found) == ["persistence", "fno"]
    assert found["fno"]["steps"] == "3"
    assert 0 < float(found["persistence"]["nRMSE after 1 step"]) < 1


@pytest.mark.study
def test_recipes_are_compared(tmp_path, monkeypatch, capsys):
    found = rows("recipes", tmp_path, monkeypatch, capsys)
    assert list(found)[:2] == ["truth", "persistence"]
    assert {"state", "delta, noise 0.01", "unroll 4, cut", "pushforward 4"} < set(found)
    assert found["curriculum 1, 2, 4, noise 0.01"]["finite steps"] == "6"


@pytest.mark.study
def test_steps_and_grids_are_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "STEPS", 8)
    monkeypatch.setattr(transfer, "TESTED", (1, 2, 4))
    found = rows("transfer", tmp_path, monkeypatch, capsys, operators=("fno",))
    assert list(found) == ["persistence", "fno, one Δt", "fno, drawn Δt"]
    persistence = found["persistence"]
    assert persistence["Δt = 0.05"] == persistence["Δt = 0.2"]  # at one time


@pytest.mark.study
def test_rollouts_are_compared_with_the_solver(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "ORDERS", (2,))
    monkeypatch.setattr(speed, "REPEATS", 1)
    found = rows("speed", tmp_path, monkeypatch, capsys, operators=("fno",))
    solver = next(name for name in found if name.startswith("solver"))
    error = "nRMSE after 10 steps"
    assert float(found[solver][error]) <= float(found["fno"][error])


@pytest.mark.study
def test_the_solver_converges_to_the_truth():
    exponax = pytest.importorskip("exponax")
    test = data.kuramoto_sivashinsky(2, times=11, substeps=speed.SUBSTEPS)
    errors = [speed._solve(exponax, speed.Solver(160, count, 2), test, 1.0).error for count in (10, 20, 80)]
    assert errors[0] > 2 * errors[1]
    assert errors[2] < 1e-4


@pytest.mark.study
def test_blocks_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("studies.dynamics.errors.LAYERS", (1,))
    monkeypatch.setattr("studies.dynamics.errors.BLOCKS", ("none", "Y"))
    assert list(rows("momentum", tmp_path, monkeypatch, capsys)) == ["persistence", "none, 1 layers", "Y, 1 layers"]


@pytest.mark.study
@pytest.mark.parametrize("table", ["kolmogorov", "long"])
def test_kolmogorov_flow_is_stepped(table, tmp_path, monkeypatch, capsys):
    found = rows(table, tmp_path, monkeypatch, capsys, operators=("fno",), nodes=32)
    assert list(found) == ["truth" if table == "long" else "persistence", "fno"]
