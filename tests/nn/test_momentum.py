"""Layers whose tokens have a velocity: their definitions, their causal order, what they cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, flows, nn, operators, transformers
from jaxop.attention import integral_attention, linear_attention
from jaxop.kernels import DotProduct, ExpDotProduct, FourierIntegral, PerHead
from tests.jaxprs import exponentials
from tests.nn.tokens import B, D, N, arrays, attention, call

pytestmark = pytest.mark.sample(3)

BLOCKS = ["Y", "H0", "H1", "R2"]
blocks = pytest.mark.parametrize("block", BLOCKS)


@pytest.mark.parametrize(("block", "linear"), [*((b, False) for b in BLOCKS), ("H1", True), ("R2", True)])
@pytest.mark.sample(1)
def test_block_is_its_definition(block, linear):
    layer = nn.MomentumLayer(attention(kernel=DotProduct() if linear else None), D, 16, block=block, rngs=nnx.Rngs(1))
    mu, beta, gamma = 0.9, 0.9, 1.0

    def by_hand(layer, x, v):
        norm, norm_v = layer.attention_norm, layer.velocity_norm
        z = norm(x + mu * v) if block == "Y" else norm(x)
        force = layer.attention(z)
        if block == "R2":
            w = beta * v + gamma * force
            c = layer.attention.with_connection(z, w)[1]
            x, v = x + norm_v(w - c / 2), norm_v(w - c)
        else:
            c = layer.attention.with_connection(z, v)[1] if block == "H1" else 0
            v = norm_v(beta * v + gamma * force - c)
            x = x + v
        branch = layer.feedforward(layer.feedforward_norm(x + mu * v))
        v = norm_v(beta * v + gamma * branch)
        return x + v, v

    both = jax.jit(lambda layer, x, v: (layer(layer.start(x, v)), by_hand(layer, x, v)))
    state, (x, v) = both(layer, *arrays(2, B, N, D))
    np.testing.assert_allclose(state.velocity, v, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(state.position, x, rtol=2e-4, atol=2e-5)


@blocks
def test_one_softmax_per_block(block):
    layer = nn.MomentumLayer(attention(), D, 16, block=block, rngs=nnx.Rngs(0))
    x = jnp.asarray(arrays(B, N, D))
    assert exponentials((N, N), lambda x, v: layer(layer.start(x, v)).position, x, x) == 1


@pytest.mark.parametrize("method", flows.METHODS)
def test_softmaxes_per_integrator(method):
    layer = nn.FlowLayer(D, 16, method=method, rngs=nnx.Rngs(0))
    x = jnp.asarray(arrays(B, N, D))
    assert exponentials((N, N), lambda x, v: layer(layer.start(x, v)).position, x, x) == (4 if method == "tao" else 1)


def language_model(block, initial="learned", kernel=None, **options):
    attention = nn.IntegralAttentionConfig(kernel=kernel or nn.ExpDotProductConfig())
    momentum = nn.MomentumConfig(block=block, initial=initial)
    sizes = {"width": 16, "heads": 2, "layers": 2, "feedforward": 16}
    config = transformers.SequenceTransformerConfig(11, 12, attention=attention, momentum=momentum, **sizes, **options)
    return transformers.SequenceTransformer(config, rngs=nnx.Rngs(0))


@pytest.mark.sample(1)
@blocks
@pytest.mark.parametrize("initial", ["learned", "zero"])
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_later_tokens_change_no_bit_of_earlier_logits(block, initial, implementation):
    model = language_model(block, initial)
    for layer in model.layers:
        layer.attention.implementation = implementation
    tokens = np.arange(1, 9)[None]
    logits = np.asarray(call(model, tokens))
    for i in range(1, 8):
        changed = np.asarray(call(model, np.where(np.arange(8) == i, 9, tokens)))
        np.testing.assert_array_equal(changed[0, :i], logits[0, :i])
        assert (np.abs(changed - logits)[0, i:].max(axis=-1) > 1e-5).all()


@pytest.mark.parametrize(
    ("kernel", "block"),
    [
        *((nn.LinearConfig(), block) for block in ("none", *BLOCKS)),
        *((nn.FourierIntegralConfig(), block) for block in ("none", "Y", "H0")),
    ],
    ids=lambda p: getattr(p, "name", p),
)
@pytest.mark.sample(1)
def test_causal_order_of_other_attentions(kernel, block):
    model = language_model(block, kernel=kernel)
    tokens = np.arange(1, 9)[None]
    changed, logits = (np.asarray(call(model, t)) for t in (np.where(np.arange(8) == 5, 9, tokens), tokens))
    np.testing.assert_array_equal(changed[0, :5], logits[0, :5])


@pytest.mark.parametrize("method", [kind() for kind in flows.METHODS.values()], ids=lambda m: type(m).__name__)
@pytest.mark.sample(1)
def test_row_local_forces_are_causal_under_every_integrator(method):
    """Causal attention as the force on positions and velocities; a later particle moves no earlier one."""

    def rates(state, t):
        heads = lambda a: a[:, None]  # noqa: E731
        mean = integral_attention(*map(heads, (state.position,) * 3), is_causal=True)[:, 0]
        return (lambda y: y), mean - 0.1 * state.velocity

    @jax.jit
    def final(x):
        state = flows.start(method, x)
        for _ in range(3):
            state = flows.step(method, flows.System(rates), state, flows.Damping(logarithmic=3.0), 0.2)
        return state.position

    x = arrays(N, 4)
    later = np.where(np.arange(N)[:, None] == 5, 9.0, x)
    np.testing.assert_array_equal(np.asarray(final(later))[:5], np.asarray(final(x))[:5])


def test_force_through_later_rows_leaks():
    """The gradient of a causally masked energy: particle i feels every later j that attends to it."""

    def energy(x):
        return -0.5 * jnp.sum(jnp.tri(N) * jnp.exp(x @ x.T)) / N**2

    def row_local(x):
        rows = x[:, None]
        return integral_attention(rows, rows, rows, kernel=ExpDotProduct(1.0), is_causal=True)

    both = jax.jit(lambda x: (-jax.grad(energy)(x), row_local(x)))
    x = 0.3 * arrays(N, 4)
    later = np.where(np.arange(N)[:, None] == 5, 1.0, x)
    (force_later, local_later), (force, local) = (map(np.asarray, both(x)) for x in (later, x))
    assert np.abs(force_later - force)[:5].max() > 1e-3
    np.testing.assert_array_equal(local_later[:5], local[:5])


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("kind", "block"),
    [("tno", "Y"), ("flow", None), ("vitno", "H1"), ("fano", "R2")],
)
def test_operators_keep_their_order_of_convergence(kind, block, x64):
    """With random weights and velocities, on three grids: differences shrink by 4, as the midpoint rule's do."""
    options = {"width": 8, "layers": 1, "feedforward": 8, "param_dtype": "float64"}
    if kind != "flow":
        options |= {"heads": 2, "norm": "pre", "momentum": nn.MomentumConfig(block=block)}
    if kind in ("vitno", "fano"):
        options |= {"patches": 2, "modes": 2, "reference": 8}
    if kind == "vitno":
        options |= {"smoothing_modes": 4}
    config = operators.CONFIGS[kind](1, 1, **({"dim": 2} | options))
    operator = operators.build(config, rngs=nnx.Rngs(0))

    @jax.jit
    def moments(operator, domain):
        x = domain.points
        out = operator(jnp.sin(3 * x[:, :1]) * jnp.cos(2 * x[:, 1:]), domain)
        return domain.integrate(jnp.concatenate([out, out**2, out * jnp.sin(4 * x), out * x**2], axis=1))

    sides = (12, 24, 48) if kind in ("vitno", "fano") else (8, 16, 32)
    coarse, middle, fine = (np.asarray(moments(operator, domains.box((side, side), rule="midpoint"))) for side in sides)
    assert np.linalg.norm(fine - coarse) < 0.3 * np.linalg.norm(fine)
    ratio = np.linalg.norm(middle - coarse) / np.linalg.norm(fine - middle)
    assert 3 < ratio < 6, ratio


def test_weights_matter_in_a_flow_layer():
    layer = nn.FlowLayer(D, 16, rngs=nnx.Rngs(0))
    x, v = arrays(2, 1, N, D)
    weights = np.linspace(0.5, 1.5, N)
    split_x, split_v = (np.concatenate([a, a[:, :1]], axis=1) for a in (x, v))
    halves = np.concatenate([weights[:1] / 2, weights[1:], weights[:1] / 2])
    final = jax.jit(lambda layer, x, v, weights: layer(layer.start(x, v), weights).position)
    whole, split, equal = (
        np.asarray(final(layer, *a)) for a in ((x, v, weights), (split_x, split_v, halves), (x, v, None))
    )
    np.testing.assert_allclose(split[:, :N], whole, rtol=1e-4, atol=1e-5)
    assert np.abs(equal - whole).max() > 1e-3


def test_a_flow_layer_is_a_step_of_the_flow():
    """Its attention part is one step of the library's flow with A and B of the layer."""
    layer = nn.FlowLayer(D, 16, rngs=nnx.Rngs(0))
    score, mobility = (0.1 * arrays(D, D, seed=seed) for seed in (0, 1))
    layer.score[...] = jnp.asarray(np.asarray(layer.score[...]) + score)
    layer.mobility[...] = jnp.asarray(np.asarray(layer.mobility[...]) + mobility)
    outer = layer.feedforward.outer.kernel

    @jax.jit
    def outputs(layer, x, v):
        score, mobility = layer.matrices()
        system = flows.accelerated_softmax_flow(score=score, mobility=mobility)
        method, schedule = flows.KickDampDrift(), flows.Damping(jnp.asarray(3.0), jnp.asarray(0.1))
        expected = flows.step(method, system, flows.start(method, x[0], v[0]), schedule, 0.5)
        branch = layer.feedforward(layer.feedforward_norm(expected.position))
        return (
            mobility,
            layer(layer.start(x, v)),
            expected,
            (expected.position + 0.5 * branch, expected.velocity + branch),
        )

    x, v = arrays(2, 1, N, D)
    outer[...] = jnp.asarray(np.zeros(outer.shape))
    mobility, state, expected, _ = outputs(layer, x, v)
    assert np.linalg.eigvalsh(np.asarray(mobility)).min() > 0
    np.testing.assert_allclose(state.position[0], expected.position, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.velocity[0], expected.velocity, rtol=1e-4, atol=1e-5)
    outer[...] = jnp.asarray(arrays(*outer.shape, seed=2))
    _, state, _, (position, velocity) = outputs(layer, x, v)
    np.testing.assert_allclose(state.position[0], position, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.velocity[0], velocity, rtol=1e-3, atol=1e-4)


def test_both_copies_of_a_doubled_flow_see_the_network():
    """With the two copies started together and nearly no step, they stay together through FF."""
    layers = [nn.FlowLayer(D, 16, method="tao", rngs=nnx.Rngs(i)) for i in range(4)]
    state = layers[0].start(*map(jnp.asarray, arrays(2, 1, N, D)))
    for layer in layers:
        layer.position_step.raw[...] = layer.velocity_step.raw[...] = jnp.asarray(-9.0)
        state = call(layer, state)
    state = jax.tree.map(np.asarray, state)
    assert np.abs(state.position - state.history.position).max() < 1e-2
    assert np.abs(state.velocity - state.history.velocity).max() < 1e-2 * np.abs(state.velocity).max()


@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("block", ["H0", "R2", "flow"])
def test_half_precision(block, dtype):
    sizes = {"width": 8, "layers": 1, "feedforward": 8}
    if block == "flow":
        config = operators.FlowNeuralOperatorConfig(1, 1, **sizes)
    else:
        momentum = nn.MomentumConfig(block=block)
        config = operators.TransformerNeuralOperatorConfig(1, 1, heads=2, norm="pre", momentum=momentum, **sizes)
    half = operators.build(dataclasses.replace(config, dtype=dtype), rngs=nnx.Rngs(0))
    whole = operators.build(config, rngs=nnx.Rngs(0))

    @jax.jit
    def both(half, whole, domain):
        values = jnp.sin(3 * domain.points)
        return half(values.astype(dtype), domain), whole(values, domain)

    out, expected = both(half, whole, domains.interval(16))
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.15)


def test_linear_attention_scales_heads_one_by_one():
    scales = jnp.asarray([1.0, 3.0])
    layer = attention(kernel=PerHead(DotProduct(scales)))

    @jax.jit
    def both(layer, z):
        query, key, value = (a[0] for a in layer.project(z, z))
        expected = integral_attention(query, key, value, kernel=PerHead(DotProduct(scales)), normalize=False)
        return layer.mix(z)[0], expected

    out, expected = both(layer, arrays(1, N, D))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_later_overflow_does_not_leak():
    query = np.full((4, 1, 1), 10.0)
    key = np.asarray([0.0, 0.1, 0.2, 1e38])[:, None, None]
    attend = jax.jit(linear_attention, static_argnames="is_causal")
    out = np.asarray(attend(query, key, np.ones((4, 1, 1)), is_causal=True))
    np.testing.assert_allclose(out[:3, 0, 0], [0.0, 0.5, 1.0], rtol=1e-6)
    for unit in (1e37, 1e-37):
        np.testing.assert_allclose(attend(query, key[:3], key[:3], np.full(3, unit)), 10 * 0.05 / 3, rtol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("block", [*BLOCKS, "flow"])
def test_every_parameter_is_trained(block):
    sizes = {"width": 8, "layers": 2, "feedforward": 8}
    if block == "flow":
        model = operators.FlowNeuralOperator(operators.FlowNeuralOperatorConfig(1, 3, **sizes), rngs=nnx.Rngs(0))
        arguments = arrays(3, 16, 1), domains.interval(16)
    else:
        config = transformers.VisionTransformerConfig(
            8, 1, 3, heads=2, momentum=nn.MomentumConfig(block=block), **sizes
        )
        model, arguments = transformers.VisionTransformer(config, rngs=nnx.Rngs(0)), (arrays(3, 8, 8, 1),)
    for _, param in nnx.iter_graph(model):
        if isinstance(param, nnx.Param):
            noise = arrays(*param.shape, seed=param[...].size)
            param[...] = jnp.asarray(np.asarray(param[...]) + 0.1 * noise)
    gradient = jax.jit(nnx.grad(lambda m, *arguments: jnp.sum(jnp.sin(m(*arguments)))))(model, *arguments)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.sample(1)
def test_dropout_acts_on_both_branches_and_one_draw_makes_a_proposal(block):
    """Rate 1/2 doubles or drops; without forces that are dropped, velocities are those of the retained ones."""
    layer = nn.MomentumLayer(attention(), D, 16, block=block, dropout=0.5, rngs=nnx.Rngs(1, dropout=2))
    draws = []

    class Recorded:
        def __call__(self, ones):
            draws.append(jnp.where(jax.random.uniform(jax.random.key(len(draws)), ones.shape) < 0.5, 2.0, 0.0))
            return draws[-1] * ones

    layer.dropout = nnx.data(Recorded())

    @jax.jit
    def both(x, v):
        state = layer(layer.start(x, v))
        assert len(draws) == 2
        keep, keep_branch = draws
        z = layer.attention_input(layer.start(x, v))
        force = keep * layer.attention(z)
        if block == "R2":
            w = 0.9 * v + force
            c = layer.attention.with_connection(z, w)[1]
            x, v = x + layer.velocity_norm(w - c / 2), layer.velocity_norm(w - c)
        else:
            c = layer.attention.with_connection(z, v)[1] if block == "H1" else 0
            v = layer.velocity_norm(0.9 * v + force - c)
            x = x + v
        v = layer.velocity_norm(0.9 * v + keep_branch * layer.feedforward(layer.feedforward_norm(x + 0.9 * v)))
        return state, (x + v, v)

    state, (x, v) = both(*arrays(2, B, N, D))
    np.testing.assert_allclose(state.velocity, v, rtol=3e-4, atol=3e-5)
    np.testing.assert_allclose(state.position, x, rtol=3e-4, atol=3e-5)


def test_dropout_is_drawn_only_in_training():
    model = language_model("R2", dropout=0.5)
    tokens, drawn = np.arange(8), nnx.jit(lambda m, t: m(t))
    model.eval()
    np.testing.assert_array_equal(drawn(model, tokens), drawn(model, tokens))
    model.train()
    assert np.abs(np.asarray(drawn(model, tokens)) - np.asarray(drawn(model, tokens))).max() > 1e-3


def test_configs_survive_json_and_share_the_core():
    config = language_model("R2").config
    assert operators.from_dict(type(config), dataclasses.asdict(config)) == config
    plain, fast = language_model("none"), language_model("Y")
    np.testing.assert_array_equal(plain.head.kernel[...], fast.head.kernel[...])
    np.testing.assert_array_equal(
        plain.layers[1].attention.query.kernel[...], fast.layers[1].attention.query.kernel[...]
    )


BAD = [
    (lambda: nn.MomentumConfig(block="R3"), "block='R3' is unknown"),
    (lambda: operators.FlowNeuralOperatorConfig(1, 1, method="ab3"), "method='ab3' is unknown: did you mean 'ab2'"),
    (lambda: operators.FlowNeuralOperatorConfig(1, 1, velocity="zeros"), "velocity='zeros' is unknown: .*'zero'"),
    (lambda: nn.IntegralAttentionConfig(nn.LinearConfig(), "dense"), "linear attention has one implementation"),
    (lambda: operators.ViTNeuralOperatorConfig(1, 1, kernel=nn.LinearConfig()), "LinearConfig is signed"),
    (
        lambda: language_model("H1", kernel=nn.GaussianConfig()),
        "block='H1' needs ExpDotProductConfig and LinearConfig, got GaussianConfig",
    ),
    (
        lambda: operators.TransformerNeuralOperatorConfig(1, 1, momentum=nn.MomentumConfig(block="Y")),
        "give norm='pre' with block='Y', got norm='post'",
    ),
    (lambda: nn.MomentumLayer(attention(), D, 16, block="exact", rngs=nnx.Rngs(0)), "block='exact' is unknown"),
    (
        lambda: linear_attention(jnp.ones((3, 1, 2)), jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)), is_causal=True),
        "as many queries as keys",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_that_numpy_would_spread_are_refused(unchecked):
    layer = nn.MomentumLayer(attention(), D, 16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"velocity must have the shape of x, \(7, 7, 8\), got \(7, 8\)"):
        layer.start(jnp.ones((N, N, D)), jnp.ones((N, D)))
    flow = nn.FlowLayer(D, 16, rngs=nnx.Rngs(0))
    tokens, functions = (flow.start(jnp.ones(shape)) for shape in ((B, N, D), (B, 3, N, D)))
    for state, options in ((functions, {}), (tokens, {"measure": jnp.ones(N)}), (flow.start(jnp.ones((N, D))), {})):
        with pytest.raises(ValueError, match=r"positions must have shape \(b, n, d\), or \(b, n, s, d\) with a"):
            flow(state, **options)
    with pytest.raises(ValueError, match=r"weights must have shape \(7,\) for all samples, or \(2, 7\)"):
        flow(tokens, jnp.ones((N, B)))
    with pytest.raises(ValueError, match=r"measure must have shape \(7,\) for all samples, or \(2, 7\)"):
        flow(functions, measure=jnp.ones(3))


def test_blocks_say_what_they_need():
    with pytest.raises(TypeError, match="block 'H1' needs an attention with a method with_connection, got Linear"):
        nn.MomentumLayer(nn.Linear(D, D, rngs=nnx.Rngs(0)), D, 16, block="H1", rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="for linear attention, not for FourierIntegral"):
        attention(kernel=FourierIntegral(1.0)).with_connection(*(jnp.asarray(arrays(1, N, D)),) * 2)


@pytest.mark.parametrize("block", ["H1", "R2"])
def test_a_sequence_of_padding_only_harms_no_other(block):
    """Linear attention: the logits of the empty sequence and the gradients of all are finite."""
    momentum = nn.MomentumConfig(block=block)
    linear = nn.IntegralAttentionConfig(kernel=nn.LinearConfig())
    sizes = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8, "padding": 0}
    config = transformers.SequenceClassifierConfig(11, 4, classes=3, momentum=momentum, attention=linear, **sizes)
    model = transformers.SequenceClassifier(config, rngs=nnx.Rngs(0))
    tokens = np.asarray([[4, 2, 7, 0], [0, 0, 0, 0]], np.int32)

    def loss(model):
        logits = model(tokens)
        return jnp.sum(logits**2), logits

    both = jax.jit(nnx.grad(loss, has_aux=True))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both))


@pytest.mark.parametrize("method", flows.METHODS)
@pytest.mark.sample(1)
def test_flow_layers_start_stable(method):
    """Six untrained layers leave tokens of size one at that order, whatever the integrator."""
    layers = [nn.FlowLayer(16, 16, method=method, rngs=nnx.Rngs(i)) for i in range(6)]
    state = layers[0].start(jnp.asarray(arrays(2, 32, 16)))
    for layer in layers:
        state = call(layer, state)
    assert 0.3 < np.std(state.position) < 10
