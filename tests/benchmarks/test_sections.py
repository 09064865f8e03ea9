"""Every table of the benchmarks at a size that takes seconds."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import (
    attention,
    flows,
    fourier,
    kernels,
    large,
    latent_grid,
    machines,
    own_nodes,
    patches,
    programs,
    run,
    schwarz,
    share,
    steps,
    timing,
    two_level,
)

from jaxop import domains, operators

pytestmark = pytest.mark.optax

SMALL = {
    "attention": lambda: attention.main(nodes=(16,), depths=(4,), repeats=1),
    "large": lambda: large.main(nodes=64, depth=4),
    "kernels": lambda: kernels.main(names=("Gaussian", "learned features"), nodes=16, depths=(4,), repeats=1),
    "patches": lambda: patches.main(sides=(16,), repeats=1),
    "fourier": lambda: fourier.main(nodes=(16,), depths=(4,), repeats=1),
    "flows": lambda: flows.main(particles=(100,), repeats=1),
    "machines": lambda: machines.main(
        points=8, listed_points=30, observed=300, landmarks=(8,), dense_points=12, repeats=1
    ),
    "schwarz": lambda: schwarz.main(powers=(4, 5), repeats=1),
    "latent-grid": lambda: latent_grid.main(nodes=(32, 48), heads=2, depth=4, sides=(2,), repeats=1),
    "own-nodes": lambda: own_nodes.main(nodes=64, subset=32, batch_size=2, repeats=1),
    "two-level": lambda: two_level.main(sides=(32, 48), repeats=1, global_nodes=0),
}
ROWS = {
    "large": 3,
    "kernels": 3,
    "fourier": 3,
    "machines": 5,
    "schwarz": 2,
    "two-level": 2,
    "latent-grid": 2,
    "own-nodes": 6,
}


@pytest.mark.study
@pytest.mark.parametrize("section", SMALL)
def test_small_tables(section, monkeypatch, capsys):
    monkeypatch.setattr(timing, "WARM_UP", 0)
    SMALL[section]()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + ROWS.get(section, 1)
    assert len({line.count("|") for line in table}) == 1  # as many cells in every row
    assert table[1].strip("|-") == ""


@pytest.mark.study
def test_three_tables_of_models_that_travel(capsys):
    share.main(repeats=1, points=(100,), members=2, steps=2)
    tables = [table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n")]
    assert [len(table) - 2 for table in tables] == [2 * len(operators.ready_models()), 2, 2]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


@pytest.mark.study
def test_a_step_on_nodes_and_on_patches_is_measured(capsys):
    for model in ("tno", "fano"):
        steps.step(steps.Step(model, side=32, patch=16, modes=2, nodes=8, width=8, batch=4, repeats=1))
        measured = json.loads(capsys.readouterr().out)
        assert measured["seconds"] > 0
        assert measured["scratch"] > 0


def test_the_obvious_code_computes_the_same():
    q, k, v = 0.3 * np.random.default_rng(0).normal(size=(3, 2, 8, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(fourier.attend(q, k, v), fourier.obvious(q, k, v), rtol=1e-4, atol=1e-5)
    matrix = np.moveaxis(fourier.matrix(q, k), 1, -1)
    np.testing.assert_allclose(matrix, fourier.obvious_matrix(q, k), rtol=1e-4)


def test_the_sums_over_all_pairs_compute_the_same_with_equal_weights():
    key, value = np.random.default_rng(0).normal(size=(2, 64, 2, 4)).astype(np.float32)
    ours, theirs = latent_grid.functions(jnp.full(64, 1 / 64), domains.box((4, 4), rule="midpoint"), 2)
    np.testing.assert_allclose(ours(key, key, value), theirs(key, key, value), atol=1e-4)


def test_the_gradient_of_a_program_is_with_respect_to_its_operands():
    q, k, v, c = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    gradient = programs.compile_gradient(lambda q, k, v: q * k * v, q, k, v, c)(q, k, v, c)
    for found, expected in zip(gradient, (k * v * c, q * v * c, q * k * c), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_every_section_is_listed_and_lists_its_options(capsys):
    for name in run.SECTIONS | run.MEASUREMENTS:
        with pytest.raises(SystemExit) as stop:
            run.command_line([name, "--help"])
        assert stop.value.code == 0
        assert "--" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run.command_line(["attenton"])
    assert stop.value.code == 2
    assert "'attenton'" in capsys.readouterr().err
