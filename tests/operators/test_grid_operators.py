"""What every operator on grids promises: one set of weights, any resolution, one way to call it."""

import copy
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, operators, testing

SIZES = {
    "fano": {"width": 8, "heads": 2, "layers": 2, "feedforward": 8, "patches": 2, "modes": 3, "reference": 16},
    "vitno": {
        "width": 8,
        "heads": 2,
        "layers": 2,
        "feedforward": 8,
        "patches": 2,
        "modes": 3,
        "reference": 16,
        "smoothing_modes": 4,
    },
    "fno": {"width": 8, "layers": 2, "modes": 4, "projection": 8, "reference": 16},
}
NAMES = sorted(SIZES)
every_operator = pytest.mark.parametrize("name", NAMES)


def config(name, **options):
    return operators.CONFIGS[name](**({"in_channels": 1, "out_channels": 2, "dim": 2} | SIZES[name] | options))


@functools.cache
def make(name, **options):
    return operators.build(config(name, **options), rngs=nnx.Rngs(0))


def double(operator):
    graphdef, state = nnx.split(operator)
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), state))


@jax.jit
def call(operator, values, domain):
    return operator(values, domain)


@functools.cache
def call_on(function):
    """The outputs of an operator for a function of the points of a domain."""
    return jax.jit(lambda operator, domain: operator(function(domain.points), domain))


def grid(side, dim=2, rule="midpoint"):
    return domains.box((side,) * dim, rule=rule)


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


def function(points):
    return jnp.sin(2 * points.sum(-1, keepdims=True)) + points[:, :1] ** 2


def block_means(values, side, coarse):
    """Averages over the nodes in each cell of a coarser grid."""
    block = side // coarse
    return values.reshape(coarse, block, coarse, block, -1).mean(axis=(1, 3))


@pytest.mark.sample(1)
@every_operator
def test_self_convergence_under_refinement(name, x64):
    """Random weights: cell averages converge like n⁻², the order of the midpoint rule in each patch.

    The transforms keep it: their coefficients and scores are midpoint sums of smooth functions on a patch.
    """
    operator = double(make(name))
    sides = [32, 64, 128, 256] if name == "fano" else [16, 32, 64, 128]  # patches start at twice as many nodes
    means = []
    for side in sides:
        means.append(block_means(np.asarray(call_on(function)(operator, grid(side))), side, 8))
    differences = [np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.pairwise(means)]
    scale = np.std(means[-1])
    assert scale > 1e-3
    assert differences[-1] < 0.02 * scale
    assert testing.observed_order(sides[-3:-1], differences[-2:]) == pytest.approx(2.0, abs=0.2)


@pytest.mark.sample(1)
@every_operator
def test_half_precision_rounds_values_but_not_the_geometry(name):
    """Values that bfloat16 carries exactly: the result is that of float32, though it merges these nodes."""
    operator = make(name, dim=1)
    domain = domains.interval(500, rule="midpoint")
    assert len(np.unique(np.asarray(domain.points).astype(jnp.bfloat16))) < 400
    values = np.ones((500, 1), np.float32)
    narrow, wide = call(operator, values.astype(jnp.bfloat16), domain), call(operator, values, domain)
    np.testing.assert_allclose(narrow, wide, rtol=1e-6, atol=1e-6)
    outputs = jax.eval_shape(call, make(name, dim=1, dtype="bfloat16"), values, domain)
    assert (narrow.dtype, outputs.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.thorough
@every_operator
def test_at_may_be_the_grid_of_the_input_or_its_equal(name):
    operator, values = make(name), ones(256, 1)
    expected = operator(values, grid(16))
    for at in (None, grid(16)):
        np.testing.assert_array_equal(operator(values, grid(16), at=at), expected)
    moved = domains.box((16, 16), upper=(1, 2), rule="midpoint")
    with pytest.raises(NotImplementedError, match="`at` is not the input's domain"):
        operator(values, grid(16), at=moved)
    same_shape_under_jit = jax.jit(lambda u, domain, at: operator(u, domain, at=at))
    with pytest.raises(NotImplementedError, match="pass the same object or None"):
        same_shape_under_jit(values, grid(16), grid(16))


@pytest.mark.sample(1)
@every_operator
@pytest.mark.parametrize("dim", [1, 3])
def test_other_dimensions(name, dim):
    operator = make(name, dim=dim, reference=8, modes=2, **({"smoothing_modes": 2} if name == "vitno" else {}))
    out = call_on(function)(operator, grid(8, dim))
    assert out.shape == (8**dim, 2)
    assert np.isfinite(out).all()


@pytest.mark.sample(1)
@every_operator
def test_batches_equal_single_functions(name):
    operator, domain = make(name), grid(16)
    values = np.random.default_rng(0).normal(size=(3, 256, 1))
    together = np.asarray(call(operator, values, domain))
    for i in range(3):
        np.testing.assert_allclose(together[i], call(operator, values[i], domain), rtol=1e-4, atol=1e-5)


@pytest.mark.sample(1)
@every_operator
def test_a_stack_of_grids(name):
    operator = make(name)
    grids = [domains.Grid((a, a)) for a in (grid(16).axes[0], grid(16).axes[0])]
    scaled = jax.tree.map(lambda leaf: jnp.asarray(np.float32(1.5) * np.asarray(leaf)), grids[1])
    stack = jax.tree.map(lambda a, b: jnp.asarray(np.stack([a, b])), grids[0], scaled)
    values = np.random.default_rng(0).normal(size=(2, 256, 1))
    together = np.asarray(call(operator, values, stack))
    for i, single in enumerate((grids[0], scaled)):
        np.testing.assert_allclose(together[i], call(operator, values[i], single), rtol=1e-4, atol=1e-5)


@pytest.mark.sample(1)
@every_operator
def test_rectangular_and_periodic_grids(name):
    operator = make(name)
    domain = domains.box((16, 32), upper=(1, 2), rule=("midpoint", "periodic"))
    assert call_on(function)(operator, domain).shape == (512, 2)


@pytest.mark.sample(1)
@every_operator
def test_gradients_are_finite_and_reach_every_parameter(name):
    operator, domain = make(name), grid(16)
    gradient = jax.jit(nnx.grad(lambda m, d: jnp.mean(m(function(d.points), d) ** 2)))(operator, domain)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@every_operator
def test_second_call_compiles_nothing(name):
    operator, domain = make(name), grid(16)
    call(operator, np.ones((256, 1)), domain)
    with testing.count_compilations() as compilations:
        call(operator, np.zeros((256, 1)), grid(16))
    assert compilations() == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["fano", "vitno"])
def test_dropout_acts_in_training_mode_only(name):
    operator, domain = nnx.clone(make(name, dropout=0.5)), grid(16)
    drawn = nnx.jit(lambda operator: operator(function(domain.points), domain))
    operator.eval()
    np.testing.assert_array_equal(drawn(operator), drawn(operator))
    operator.train()
    assert np.abs(np.asarray(drawn(operator)) - np.asarray(drawn(operator))).max() > 1e-3


@pytest.mark.sample(1)
@every_operator
def test_half_precision_inside_float32_parameters(name):
    operator, domain = make(name, dtype="bfloat16"), grid(16)
    out = np.asarray(call_on(lambda points: function(points).astype(jnp.bfloat16))(operator, domain), np.float32)
    reference = np.asarray(call_on(function)(make(name), domain))
    assert np.abs(out - reference).max() < 0.15 * np.abs(reference).max()


@pytest.mark.thorough
def test_smoothing_of_fano_is_optional_and_used():
    with_smoothing = make("fano", smoothing_modes=4)
    gradient = jax.jit(nnx.grad(lambda m, d: jnp.mean(m(function(d.points), d) ** 2)))(with_smoothing, grid(16))
    count = [
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (make("fano"), with_smoothing)
    ]
    assert count[1] > count[0]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@every_operator
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"values": ones(255, 1)}, ValueError, "values must have shape (n, c_in) = (256, 1)"),
        ({"domain": domains.box((16, 16))}, ValueError, "rule='midpoint'"),
        ({"domain": domains.monte_carlo(np.ones((256, 2), np.float32))}, TypeError, "needs a grid"),
        ({"domain": domains.interval(256, rule="midpoint")}, ValueError, "2 axes"),
        ({"at": domains.box((8, 8), rule="midpoint")}, NotImplementedError, "TransformerNeuralOperator"),
        ({"initial": ones(3)}, ValueError, "initial must be None"),
    ],
)
def test_bad_calls(name, call, error, message):
    arguments = {"values": ones(256, 1), "domain": grid(16)} | call
    with pytest.raises(error, match=re.escape(message)):
        make(name)(arguments.pop("values"), arguments.pop("domain"), **arguments)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fano", {"patches": 3}, "patches must divide reference = 16, got 3; valid numbers: [1, 2, 4, 8, 16]"),
        ("vitno", {"patches": 3}, "patches must divide reference = 16, got 3"),
        ("fano", {"modes": 5}, "take modes ≤ 4, or at least 10 nodes"),
        ("vitno", {"modes": 5}, "take modes ≤ 4, or at least 10 nodes"),
        ("fno", {"modes": 9}, "take modes ≤ 8, or at least 18 nodes"),
        ("fano", {"heads": 3}, "heads must divide the width 8, got 3"),
        ("fano", {"layers": 0}, "layers must be at least 1"),
        ("vitno", {"layers": 0}, "layers must be at least 1"),
        ("vitno", {"smoothing_modes": 9}, "take smoothing_modes ≤ 8, or at least 18 nodes"),
        ("vitno", {"dropout": 1.0}, "dropout must be a rate in [0, 1), got 1.0"),
        ("fano", {"norm": "pots"}, "norm='pots' is unknown: did you mean 'post'"),
        ("fano", {"activation": "gelo"}, "activation='gelo' is unknown: did you mean 'gelu'"),
        ("fno", {"activation": "gelo"}, "activation='gelo' is unknown: did you mean 'gelu'"),
        ("fno", {"reference": 0}, "reference must be at least 1, got 0"),
    ],
)
def test_bad_configs(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(name, **options)


@pytest.mark.parametrize(
    ("name", "size"), [("fno", "width"), ("fano", "modes"), ("vitno", "smoothing_modes"), ("fano", "patches")]
)
@pytest.mark.parametrize("value", [2.5, 4.0, True, "4"])
def test_sizes_are_integers(name, size, value):
    """Asked of the check itself, since the annotations of a config are checked before it in these tests."""
    other = copy.copy(config(name))
    object.__setattr__(other, size, value)
    with pytest.raises(TypeError, match=re.escape(f"{size} must be an integer of at least 1, got {value!r}")):
        other.__post_init__()


@pytest.mark.parametrize("name", ["fano", "vitno"])
def test_a_grid_that_the_patches_do_not_divide(name):
    with pytest.raises(ValueError, match=re.escape("patches[0] = 2 does not divide the 17 nodes of axis 0")):
        make(name)(ones(289, 1), grid(17))
