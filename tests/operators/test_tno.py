"""The transformer neural operator: any domain, any refinement, anywhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, operators, testing, training
from jaxop.operators import TransformerNeuralOperator, TransformerNeuralOperatorConfig
from jaxop.training.state import split_model


@functools.cache
def make(**options):
    options = {"in_channels": 1, "out_channels": 2, "width": 8, "heads": 2, "layers": 2, "feedforward": 8} | options
    return TransformerNeuralOperator(TransformerNeuralOperatorConfig(**options), rngs=nnx.Rngs(0))


def double(operator):
    """The same operator in float64."""
    graphdef, state = nnx.split(operator)
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), state))


call = jax.jit(lambda operator, values, domain, **options: operator(values, domain, **options))


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


def function(points):
    return jnp.sin(2 * points.sum(-1, keepdims=True)) + points[:, :1]


def test_the_first_argument_may_be_named():
    operator, domain = make(), domains.from_samples(jnp.asarray(np.linspace(0, 1, 5) ** 2, jnp.float32))
    expected = operator(ones(5, 1), domain)
    np.testing.assert_array_equal(operator(values=ones(5, 1), domain=domain), expected)


CASES = [
    pytest.param({}, id="post-norm"),
    pytest.param({"norm": "pre"}, id="pre-norm"),
    pytest.param({"initial_channels": 3}, id="initial-condition"),
    pytest.param({"decoder_layers": 1}, id="decoder"),
]


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", CASES)
@pytest.mark.thorough
def test_self_convergence_on_uneven_grids_has_the_order_of_the_rule(options, x64):
    """Random weights, nodes x = s² and s even: outputs at two fixed points converge like n⁻²."""
    initial = jnp.asarray(np.ones(3)) if "initial_channels" in options else None
    operator = double(make(**options))
    probe = domains.from_samples(jnp.asarray([0.25, 1.0]))

    @jax.jit
    def at_probe(nodes):
        domain = domains.from_samples(nodes)
        values = function(domain.points)
        if options.get("decoder_layers"):
            return operator(values, domain, at=probe)
        out = operator(values, domain, initial=initial)
        return out[jnp.asarray([(domain.size - 1) // 2, domain.size - 1])]

    sizes = [17, 33, 65, 129, 257]
    outputs = [np.asarray(at_probe(np.linspace(0.0, 1.0, n) ** 2)) for n in sizes]
    errors = [np.abs(o - outputs[-1]).max() for o in outputs[:-1]]
    # the first node's own embedding is a jump there, which its weight of n⁻² lets fade at the same order
    assert testing.observed_order([n - 1 for n in sizes[:-2]], errors[:-1]) == pytest.approx(2.0, abs=0.3)


def test_scattered_nodes_and_meshes():
    operator = make(dim=2)
    side = np.linspace(0, 1, 5, dtype=np.float32)
    vertices = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    corner = np.arange(20).reshape(4, 5)[:, :4].reshape(-1)
    faces = np.concatenate(
        [np.stack([corner, corner + 5, corner + 6], 1), np.stack([corner, corner + 6, corner + 1], 1)]
    )
    mesh, grid = domains.triangle_mesh(vertices, faces), domains.box((5, 5))
    cloud = domains.monte_carlo(np.random.default_rng(0).uniform(size=(25, 2)).astype(np.float32))
    evaluate = jax.jit(lambda operator, domain: operator(function(domain.points), domain))
    outputs = [evaluate(operator, domain) for domain in (mesh, grid, cloud)]
    assert all(o.shape == (25, 2) and np.isfinite(o).all() for o in outputs)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=0.05)  # both are quadratures of one operator


def test_batches_share_a_domain_or_stack_their_own():
    operator = make()
    times = [jnp.asarray(t) for t in ([0.0, 0.2, 0.3, 1.0], [0.0, 0.5, 0.9, 1.0])]
    each = [domains.from_samples(t) for t in times]
    values = np.random.default_rng(0).normal(size=(2, 4, 1))
    stacked, shared = (np.asarray(call(operator, values, domain)) for domain in (domains.stack(each), each[0]))
    for i in range(2):
        np.testing.assert_allclose(stacked[i], call(operator, values[i], each[i]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shared[i], call(operator, values[i], each[0]), rtol=1e-5, atol=1e-6)


def test_padded_nodes_change_nothing():
    operator, domain = make(), domains.from_samples(jnp.asarray([0.0, 0.2, 0.3, 1.0]))
    values = np.arange(4.0)[:, None]
    padded = np.asarray(call(operator, np.pad(values, [(0, 3), (0, 0)]), domains.pad(domain, 7)))
    np.testing.assert_allclose(padded[:4], call(operator, values, domain), rtol=1e-5, atol=1e-6)


def test_evaluates_anywhere_with_a_decoder():
    operator, domain = make(decoder_layers=1), domains.interval(9)
    values = np.random.default_rng(0).normal(size=(9, 1))
    at = domains.from_samples(jnp.asarray([0.1, 0.7, 0.71]))
    out = np.asarray(call(operator, values, domain, at=at))
    assert out.shape == (3, 2)
    alone = call(operator, values, domain, at=domains.monte_carlo(np.asarray(at.points)[1:2]))
    np.testing.assert_allclose(out[1:2], alone, rtol=1e-5, atol=1e-6)
    batch = np.asarray(call(operator, np.stack([values, -values]), domain, at=domains.stack([at, at])))
    np.testing.assert_allclose(batch[0], out, rtol=1e-5, atol=1e-6)


def test_initial_condition_reaches_every_node():
    operator, domain = make(initial_channels=3), domains.interval(6)
    values = np.ones((6, 1))
    a, b = (np.asarray(call(operator, values, domain, initial=np.full(3, s))) for s in (0.0, 1.0))
    assert (np.abs(a - b).max(axis=1) > 1e-4).all()


def test_bfloat16_inside_float32_parameters():
    operator, domain = make(dtype="bfloat16"), domains.interval(16)
    values = np.sin(3 * np.asarray(domain.points))
    out = call(operator, values, domain)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), call(make(), values, domain), atol=0.1)


def test_dropout_acts_in_training_mode_only():
    operator, domain = nnx.clone(make(dropout=0.5)), domains.interval(6)
    drawn = nnx.jit(lambda operator: operator(ones(6, 1), domain))
    operator.eval()
    np.testing.assert_array_equal(drawn(operator), drawn(operator))
    operator.train()
    assert np.abs(np.asarray(drawn(operator)) - np.asarray(drawn(operator))).max() > 1e-3


def test_second_call_compiles_nothing():
    operator, domain = make(), domains.interval(6)
    call(operator, np.ones((6, 1)), domain)
    with testing.count_compilations() as compilations:
        call(operator, np.zeros((6, 1)), domains.interval(6))
    assert compilations() == 0


@pytest.mark.parametrize(
    ("options", "call", "error", "message"),
    [
        (
            {},
            {"values": ones(5, 1)},
            ValueError,
            "values must have shape (n, c_in) = (6, 1), or (b, n, c_in), got (5, 1)",
        ),
        ({}, {"at": domains.interval(3)}, NotImplementedError, "`at` needs decoder layers"),
        ({}, {"initial": ones(3)}, ValueError, "this operator has initial_channels=0"),
        ({"initial_channels": 3}, {}, ValueError, "initial must have shape (3,) = [u0, y0, t0] per sample, got None"),
        ({"dim": 2}, {}, ValueError, "domain must have dim=2 space dimensions like the config, got 1"),
        (
            {},
            {"values": ones(3, 6, 1), "domain": domains.stack([domains.interval(6)] * 2)},
            ValueError,
            "domain stacks 2 domains for 3 samples",
        ),
    ],
)
def test_bad_input(options, call, error, message):
    arguments = {"values": ones(6, 1), "domain": domains.interval(6)} | call
    with pytest.raises(error, match=re.escape(message)):
        make(**options)(arguments.pop("values"), arguments.pop("domain"), **arguments)


@pytest.mark.usefixtures("unchecked")
def test_swapped_arguments_are_seen():
    with pytest.raises(TypeError, match="values must be an array of numbers, got Grid; are the arguments in order"):
        make()(domains.interval(6), ones(6, 1))
    with pytest.raises(TypeError, match="domain must be a Domain, got NoneType; build one"):
        make()(ones(6, 1), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"decoder_layers": -1}, "decoder_layers must be at least 0, got -1"),
        ({"initial_channels": -1}, "initial_channels must be at least 0, got -1"),
        ({"heads": 3}, "heads must divide the width 128, got 3"),
        ({"norm": "pots"}, "norm='pots' is unknown: did you mean 'post'"),
        ({"activation": "gelo"}, "activation='gelo' is unknown: did you mean 'gelu'"),
        ({"dropout": -0.1}, "dropout must be a rate in [0, 1), got -0.1"),
    ],
)
def test_bad_configs_are_refused_before_there_is_a_model(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformerNeuralOperatorConfig(1, 1, **options)


@pytest.mark.thorough
def test_half_precision_rounds_values_but_not_the_geometry():
    """Values that bfloat16 carries exactly: the result is that of float32, though it merges these nodes."""
    domain, values = domains.interval(500, rule="midpoint"), np.ones((500, 1), np.float32)
    for operator in (make(), make(decoder_layers=1)):
        narrow, wide = call(operator, values.astype(jnp.bfloat16), domain), call(operator, values, domain)
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, wide, rtol=1e-6, atol=1e-6)
    stored = nnx.eval_shape(lambda: make.__wrapped__(param_dtype="bfloat16"))
    assert jax.eval_shape(call, stored, values.astype(jnp.bfloat16), domain).dtype == jnp.bfloat16
    assert jax.eval_shape(call, stored, values, domain).dtype == jnp.float32


def test_at_may_be_the_domain_of_the_input_or_its_equal():
    operator, values = make(), ones(6, 1)
    domain = domains.interval(6)
    expected = operator(values, domain)
    for at in (None, domain, domains.interval(6)):
        np.testing.assert_array_equal(operator(values, domain, at=at), expected)
    with pytest.raises(NotImplementedError, match=r"`at` is not the input's.*train an operator with decoder_layers=1"):
        operator(values, domain, at=domains.interval(6, upper=2.0))


class Echo(nnx.Module):
    """Returns its input and the initial condition (or the input again) as its two channels, in a dtype."""

    config = TransformerNeuralOperatorConfig(1, 2, initial_channels=1)

    def __init__(self, dtype=None):
        self.dtype = dtype

    def __call__(self, values, domain, *, at=None, initial=None):
        other = values if initial is None else jnp.broadcast_to(initial[None], values.shape)
        return jnp.stack([values[:, 0], other[:, 0]], axis=-1).astype(self.dtype or values.dtype)


class TestStandardized:
    def standardized(self):
        return operators.Standardized(
            make(), input_mean=[3.0], input_std=[2.0], output_mean=[1.0, -1.0], output_std=[0.5, 10.0]
        )

    def test_is_the_operator_between_affine_maps(self):
        model, domain = self.standardized(), domains.interval(6)
        values = np.linspace(2.0, 5.0, 6)[:, None]
        inner = np.asarray(call(model.operator, (values - 3.0) / 2.0, domain))
        expected = inner * np.asarray([[0.5, 10.0]]) + np.asarray([[1.0, -1.0]])
        np.testing.assert_allclose(call(model, values, domain), expected, rtol=1e-6)

    def test_the_initial_condition_is_standardised_too(self):
        inner, domain, values = make(initial_channels=3), domains.interval(6), np.ones((6, 1))
        plain = {"input_mean": [0.0], "input_std": [1.0], "output_mean": [0.0, 0.0], "output_std": [1.0, 1.0]}
        model = operators.Standardized(inner, **plain, initial_mean=[1.0, 2.0, 0.0], initial_std=[2.0, 4.0, 1.0])
        out = call(model, values, domain, initial=np.asarray([3.0, 2.0, 0.5]))
        expected = call(inner, values, domain, initial=np.asarray([1.0, 0.0, 0.5]))
        np.testing.assert_allclose(out, expected, rtol=1e-6)

    def test_statistics_are_stored_but_not_trained(self):
        model = self.standardized()
        params = nnx.state(model, nnx.Param)
        assert "input_mean" not in params
        assert nnx.state(model, operators.Statistic)["output_std"][...].tolist() == [0.5, 10.0]

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_physical_units_are_in_float32_whatever_the_operator_computes_in(self, dtype):
        """Pressures of 101325 ± 300 Pa: beyond float16, and two numbers in bfloat16."""
        pressure = {"input_mean": [0.0], "input_std": [1.0], "output_mean": [101325.0] * 2, "output_std": [300.0] * 2}
        values = jnp.asarray(np.linspace(-1, 1, 32, dtype=np.float32)[:, None])
        out = operators.Standardized(Echo(dtype), **pressure)(values, domains.interval(32))
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out[:, :1], 101325 + 300 * np.asarray(values.astype(dtype), np.float64), rtol=1e-6)

    def test_half_precision_values_are_standardised_in_float32(self):
        """No number between 101.5 and 102 is a bfloat16, but 102 − 101.75 is."""
        known = {"input_mean": [101.75], "input_std": [0.5], "initial_mean": [101.75], "initial_std": [0.5]}
        model = operators.Standardized(Echo(), **known, output_mean=[0.0, 0.0], output_std=[1.0, 1.0])
        values = jnp.full((4, 1), 102.0, jnp.bfloat16)
        np.testing.assert_array_equal(model(values, domains.interval(4), initial=values[0]), 0.5)

    def test_statistics_have_the_precision_in_force(self, x64):
        """A deviation of 1e-2 on 5e6: float32 numbers lie 0.5 apart there. The operator may compute in float32."""
        mean, std, standardized = 5e6 + 0.3, 1e-2, np.linspace(-1, 1, 6)[:, None]
        statistics = {"input_mean": [mean], "input_std": [std], "output_mean": [mean] * 2, "output_std": [std] * 2}
        out = operators.Standardized(Echo(jnp.float32), **statistics)(
            jnp.asarray(mean + std * standardized), domains.interval(6)
        )
        assert out.dtype == jnp.float64
        np.testing.assert_allclose((out[:, :1] - mean) / std, standardized, atol=1e-6)

    def test_statistics_of_checkpoints_are_cast_to_the_precision_in_force(self, tmp_path):
        """Runs from before statistics had it are float32 under x64 as well; runs under x64 open without it."""

        def parts(model):
            _, params, other = split_model(model, train=False)
            return {"params": params, "other": other}

        checkpoints = training.Checkpoints(tmp_path)
        checkpoints.save(1, parts(self.standardized()))
        jax.config.update("jax_enable_x64", True)  # in Orbax's threads too
        try:
            wide = parts(self.standardized())
            restored = checkpoints.restore(wide, step=1)
            assert restored["other"]["output_std"].dtype == jnp.float64
            assert restored["other"]["output_std"].tolist() == [0.5, 10.0]
            checkpoints.save(2, wide)
        finally:
            jax.config.update("jax_enable_x64", False)
        restored = checkpoints.restore(parts(self.standardized()), step=2)
        assert restored["other"]["output_std"].dtype == jnp.float32
        assert restored["other"]["output_std"].tolist() == [0.5, 10.0]
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parts(make())["params"])
        with pytest.raises(ValueError, match=r"saved as float32\[2\], expected bfloat16\[2\]"):
            checkpoints.restore({"params": {"operator": half}}, step=2, parts=["params"])

    def test_statistics_must_match_the_channels(self):
        with pytest.raises(ValueError, match=r"output_std must have shape \(2,\), one entry per channel, got \(1,\)"):
            operators.Standardized(make(), input_mean=[3.0], input_std=[2.0], output_mean=[1.0, -1.0], output_std=[0.5])


@pytest.mark.usefixtures("unchecked")
def test_build_refuses_what_it_does_not_know():
    with pytest.raises(
        TypeError,
        match=r"config must be one of FourierAttentionNeuralOperatorConfig, .* TransformerNeuralOperatorConfig, "
        ".* got dict",
    ):
        operators.build({}, rngs=nnx.Rngs(0))
