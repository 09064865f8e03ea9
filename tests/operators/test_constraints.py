"""Operators that keep what is known: each property to rounding, whatever the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxop
from jaxop import data, domains, operators, training
from jaxop.operators.equivariance import motions
from tests.training.cases import SHORT

SIZES = {"width": 4, "layers": 1}
TNO = {"heads": 2, "feedforward": 4} | SIZES
EPS = {np.float32: 1e-6, np.float64: 1e-14}
precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture
def in_dtype(dtype, request):
    if dtype == np.float64:
        request.getfixturevalue("x64")
    return dtype


def tno(inputs=1, outputs=1, dim=1, **options):
    return operators.TransformerNeuralOperatorConfig(inputs, outputs, dim, **(TNO | options))


def fno(inputs=1, outputs=1, dim=2, **options):
    sizes = {"modes": 2, "reference": 4, "projection": 4} | SIZES | options
    return operators.FourierNeuralOperatorConfig(inputs, outputs, dim, **sizes)


def make(config, dtype=np.float32):
    return operators.build(config.in_dtypes(param_dtype=np.dtype(dtype).name), rngs=nnx.Rngs(0))


def standardized(operator):
    config = operator.config
    parts = {"input": config.in_channels, "output": config.out_channels}
    numbers = {f"{part}_mean": [3.0] * count for part, count in parts.items()}
    return operators.Standardized(
        operator, **numbers, **{f"{part}_std": [2.0] * count for part, count in parts.items()}
    )


@jax.jit
def call(operator, values, domain, at=None):
    return operator(values, domain, at=at)


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def symmetric(points):
    """A user's function of the points."""
    return jnp.sin(points[:, 0])


class TestBoundary:
    @pytest.mark.sample(2)
    @precisions
    @pytest.mark.parametrize("units", [False, True])
    def test_sides_of_a_box_are_exact_on_any_nodes(self, in_dtype, units):
        """Nodes of a grid, and points of a cloud, of a box whose corners are not exact in binary."""
        sides = operators.BoxSidesConfig((0.1, -1.3), (0.3, 0.7), ((0, "lower"), (0, "upper"), (1, "upper")))
        config = operators.BoundaryOperatorConfig(tno(1, 2, 2, decoder_layers=1), factor=sides, values=(2.0, -0.1))
        operator = make(config, in_dtype)
        operator = standardized(operator) if units else operator
        domain = domains.box((4, 5), lower=sides.lower, upper=sides.upper)
        inside = np.array([[0.2, 0.0], [0.1, 0.2], [0.3, -1.3], [0.15, 0.7], [0.2, -1.3]])
        u, cloud = normal(20, 1, dtype=in_dtype), domains.monte_carlo(inside.astype(in_dtype))
        g = np.asarray([2.0, -0.1], in_dtype)
        for at, prescribed in ((cloud, [False, True, True, True, False]), (domain, None)):
            outputs = np.asarray(call(operator, u, domain, at))
            if prescribed is None:
                i, j = np.divmod(np.arange(20), 5)
                prescribed = (i == 0) | (i == 3) | (j == 4)
            on_side = np.asarray(prescribed)
            assert outputs.dtype == in_dtype
            np.testing.assert_array_equal(outputs[on_side], np.broadcast_to(g, outputs[on_side].shape))
            assert (np.abs(outputs[~on_side] - g) > 1e-4).all()

    @pytest.mark.parametrize("units", [False, True])
    def test_a_mask_and_its_values_are_channels_of_the_input(self, units):
        """The input is [mask, g]: on the nodes with mask 0 the output is g, and functions of a batch differ."""
        channel = operators.InputChannelsConfig
        operator = make(operators.BoundaryOperatorConfig(tno(2, 1), factor=channel((0,)), values=channel((1,))))
        operator = standardized(operator) if units else operator
        masks = np.random.default_rng(1).integers(0, 2, size=(3, 9, 1)).astype(np.float32)
        u = np.concatenate([masks, normal(3, 9, 1)], axis=-1)
        outputs = np.asarray(call(operator, u, domains.interval(9)))
        np.testing.assert_array_equal(outputs[masks == 0], u[..., 1:][masks == 0])
        assert (outputs[masks == 1] != u[..., 1:][masks == 1]).all()
        for i in range(3):
            np.testing.assert_allclose(call(operator, u[i], domains.interval(9)), outputs[i], rtol=1e-5, atol=1e-6)

    def test_functions_of_the_points_act_but_are_not_saved(self, tmp_path):
        config = operators.BoundaryOperatorConfig(tno(), factor=symmetric, values=lambda x: x**2)
        operator = make(config)
        clouds = (np.zeros((5, 1), np.float32), normal(5, 1))
        cloud = domains.stack([domains.monte_carlo(x) for x in clouds])
        outputs = np.asarray(call(operator, normal(2, 5, 1), cloud))
        np.testing.assert_array_equal(outputs[0], np.zeros((5, 1)))
        free = np.asarray(call(operator.operator, normal(2, 5, 1), cloud))[1]
        x = np.asarray(cloud.points)[1]
        np.testing.assert_allclose(outputs[1], x**2 + np.sin(x) * free, rtol=1e-5, atol=1e-6)
        for one in (operator, standardized(operator)):
            with pytest.raises(
                TypeError, match=r"config\.factor=<function symmetric .* has no JSON form; give numbers"
            ):
                one.save(tmp_path / "refused")
        assert not list(tmp_path.iterdir())

    def test_the_factor_is_positive_inside_and_has_maximum_one(self):
        x = np.linspace(0, 1, 101, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
        for sides in (None, ((0, "lower"),), ((1, "upper"), (0, "upper"))):
            m = np.asarray(operators.box_factor(jnp.asarray(x), (0.0, 0.0), (1.0, 1.0), sides))
            assert (m[1:-1] > 0).all()
            assert m.max() <= 1 + 1e-6


class TestConservation:
    @pytest.mark.sample(2)
    @precisions
    @pytest.mark.parametrize("units", [False, True])
    def test_integrals_are_exact_in_the_measure_of_the_output(self, in_dtype, units):
        config = operators.ConservativeOperatorConfig(
            tno(2, 3, decoder_layers=1), channels=(0, 2), integrals=operators.InputChannelsConfig((1, 0))
        )
        operator = make(config, in_dtype)
        operator = standardized(operator) if units else operator
        domain = domains.interval(8, upper=2.0)
        cloud = domains.monte_carlo(normal(6, 1, dtype=in_dtype) ** 2, measure=0.7)
        u = normal(8, 2, dtype=in_dtype)
        known = np.asarray(domain.integrate(jnp.asarray(u)))
        for at in (domain, domains.pad(cloud, 9)):
            outputs = call(operator, u, domain, at)
            integrals = np.asarray(at.integrate(outputs))
            np.testing.assert_allclose(integrals[[0, 2]], known[[1, 0]], atol=20 * EPS[in_dtype])
            assert abs(integrals[1] - known[1]) > 1e-3

    def test_nodes_of_weight_zero_do_not_count(self):
        operator = make(operators.ConservativeOperatorConfig(tno(), integrals=(2.0,)))
        cloud, u = domains.monte_carlo(normal(6, 1)), normal(6, 1)
        padded = domains.pad(cloud, 8)
        more = np.concatenate([u, np.full((2, 1), 1e3, np.float32)])
        np.testing.assert_allclose(call(operator, more, padded)[:6], call(operator, u, cloud), atol=1e-5)
        np.testing.assert_allclose(padded.integrate(call(operator, more, padded)), [2.0], rtol=1e-6)

    def test_a_batch_on_a_stack(self):
        operator = make(operators.ConservativeOperatorConfig(tno()))
        stack = domains.stack([domains.from_samples(np.sort(normal(5)) * k) for k in (1, 2)])
        u = normal(2, 5, 1)
        outputs, integrate = call(operator, u, stack), jax.vmap(lambda domain, u: domain.integrate(u))
        np.testing.assert_allclose(integrate(stack, outputs), integrate(stack, jnp.asarray(u)), atol=1e-5)

    def test_it_is_the_nearest_function(self):
        domain, u = domains.from_samples([0.0, 0.1, 0.5, 2.0]), jnp.asarray(normal(4, 1))
        nearest = operators.conserve(u, domain, jnp.ones(1))
        other = operators.conserve(u + jnp.asarray(normal(4, 1))[::-1], domain, jnp.ones(1))
        assert abs(domain.inner(nearest - u, other - nearest)) < 1e-5
        assert domain.norm(other - u) > domain.norm(nearest - u)


def moved(values, one, domain, vectors=()):
    return np.asarray(one.move(jnp.asarray(values), domain, vectors))


def grids():
    return {
        "periodic": domains.box((4, 4), lower=(1.0, -1.0), upper=(3.0, 1.0), rule="periodic"),
        "midpoint": domains.box((4, 4), rule="midpoint"),
    }


class TestEquivariance:
    @pytest.mark.sample(1)
    @precisions
    @pytest.mark.parametrize("group", operators.GROUPS)
    @pytest.mark.parametrize("rule", ["periodic", "midpoint"])
    def test_turning_the_input_turns_the_output(self, group, rule, in_dtype):
        vectors = {"input_vectors": ((2, 0),), "output_vectors": ((0, 1),)}
        config = operators.EquivariantOperatorConfig(fno(3, 2), group=group, **vectors)
        operator, domain = make(config, in_dtype), grids()[rule]
        u = normal(16, 3, dtype=in_dtype)
        elements = motions(group, 2)
        turned = np.stack([moved(u, one, domain, vectors["input_vectors"]) for one in elements])
        expected = np.asarray(call(operator, u, domain))
        found = np.asarray(call(operator, turned, domain))
        free = np.asarray(call(operator.operator, turned, domain))
        errors = {"kept": 0.0, "free": 0.0}
        for i, one in enumerate(elements):
            target = moved(expected, one, domain, vectors["output_vectors"])
            errors["kept"] = max(errors["kept"], np.abs(found[i] - target).max())
            errors["free"] = max(errors["free"], np.abs(free[i] - moved(free[0], one, domain, ((0, 1),))).max())
        assert errors["kept"] < 4 * EPS[in_dtype]
        assert errors["free"] > 1e-3

    def test_gradients_are_vectors(self):
        """The motion of a gradient is the gradient of the moved function, by hand on a grid."""
        domain = domains.box((6, 6), lower=(-1, -1), upper=(1, 1), rule="midpoint")
        x = np.asarray(domain.points)
        f = lambda x: x[:, :1] ** 2 * x[:, 1:] + x[:, :1]  # noqa: E731
        df = lambda x: np.stack([2 * x[:, 0] * x[:, 1] + 1, x[:, 0] ** 2], axis=1)  # noqa: E731
        for one in motions("all", 2):
            matrix = np.zeros((2, 2), np.float32)
            matrix[range(2), one.axes] = one.signs
            back = x @ matrix  # R⁻¹ x, one row per point
            np.testing.assert_allclose(moved(f(x), one, domain), f(back), atol=1e-6)
            np.testing.assert_allclose(moved(df(x), one, domain, ((0, 1),)), df(back) @ matrix.T, atol=1e-5)

    def test_motions_of_a_torus_keep_its_corner(self):
        domain = domains.box((6, 6), lower=(-1, -1), upper=(1, 1), rule="periodic")
        x = np.asarray(domain.points)
        f = lambda x: np.sin(np.pi * x[:, :1]) + np.cos(np.pi * (x[:, :1] - 0.3)) * np.sin(np.pi * x[:, 1:])  # noqa: E731
        for one in motions("all", 2):
            matrix = np.zeros((2, 2), np.float32)
            matrix[range(2), one.axes] = one.signs
            np.testing.assert_allclose(moved(f(x), one, domain), f(x @ matrix), atol=1e-5)

    def test_groups_are_groups(self):
        for group, dim, count in (("flips", 1, 2), ("flips", 3, 8), ("turns", 2, 4), ("turns", 3, 24), ("all", 3, 48)):
            elements = motions(group, dim)
            assert len(set(elements)) == count
            assert {one.inverse for one in elements} == set(elements)
            assert elements[0].axes == tuple(range(dim))

    def test_batches_stacks_and_other_grids(self):
        """An interval and its mirror image, a batch on a stack, and the output on a finer grid of the same interval."""
        operator = make(operators.EquivariantOperatorConfig(tno(decoder_layers=1), group="flips"))
        domain, at = domains.interval(5, rule="gauss-legendre"), domains.interval(8)
        u = normal(2, 5, 1)
        outputs = np.asarray(call(operator, u, domain, at))
        np.testing.assert_allclose(call(operator, u[:, ::-1], domain, at), outputs[:, ::-1], atol=1e-6)
        np.testing.assert_allclose(call(operator, u[0], domain, at), outputs[0], atol=1e-6)
        stack = domains.stack([domain, domain])
        np.testing.assert_allclose(call(operator, u, stack, at), outputs, atol=1e-6)


KINDS = {
    "boundary": operators.BoundaryOperatorConfig(fno(), values=(0.5,)),
    "conservative": operators.ConservativeOperatorConfig(fno()),
    "equivariant": operators.EquivariantOperatorConfig(fno(), group="turns"),
    "nested": operators.ConservativeOperatorConfig(
        operators.EquivariantOperatorConfig(operators.BoundaryOperatorConfig(fno()), group="flips"), integrals=(1.5,)
    ),
}
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.mark.sample(2)
@every_kind
def test_saved_operators_come_back_in_their_units(name, tmp_path):
    operator = standardized(make(KINDS[name]))
    operator.eval()
    loaded = jaxop.from_pretrained(operator.save(tmp_path / "model"))
    assert loaded.config == operator.config
    domain, u = domains.box((4, 4), rule="midpoint"), normal(16, 1)
    np.testing.assert_array_equal(call(loaded, u, domain), call(operator, u, domain))
    half = jaxop.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert half.config.dtypes == {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    innermost = half.operator
    while isinstance(innermost, operators.ConstrainedOperator):
        innermost = innermost.operator
    assert innermost.config.dtype == "bfloat16"


@pytest.mark.optax
@pytest.mark.sample(1)
@every_kind
@pytest.mark.thorough
def test_training_and_its_constraint_afterwards(name, tmp_path):
    domain = domains.box((4, 4), rule="midpoint")
    u = normal(12, 16, 1)
    samples = data.Samples(u, np.cumsum(u, axis=1), domain)
    operator = standardized(make(KINDS[name]))
    before = np.asarray(call(operator, samples.inputs[0], domain))
    settings = {"operator": operators.model_of(KINDS[name]).name, "model": KINDS[name]}
    options = {"run_dir": tmp_path / "run", "settings": settings, "progress": False}
    training.fit(operator, samples, {"same": samples}, SHORT, **options)
    run = training.load_run(tmp_path / "run")
    restored = run.restore(standardized(make(KINDS[name])), checkpoint=2, average=False)
    after = np.asarray(call(restored, samples.inputs[0], domain))
    recorded = run.model(checkpoint=2, average=False)
    np.testing.assert_array_equal(call(recorded, samples.inputs[0], domain), after)
    assert np.abs(after - before).max() > 1e-6
    if name in ("conservative", "nested"):
        known = 1.5 if name == "nested" else float(samples.inputs[0].mean())
        assert after.mean() == pytest.approx(known, abs=1e-5)


@pytest.mark.sample(2)
@every_kind
def test_gradients_are_finite_differences(name, x64):
    operator, domain = make(KINDS[name], np.float64), domains.box((4, 4), rule="midpoint")
    graphdef, params, rest = nnx.split(operator, nnx.Param, ...)
    direction = jax.tree.map(lambda leaf: jnp.asarray(normal(*leaf.shape, dtype=leaf.dtype)), params)
    u = normal(16, 1, dtype=np.float64)

    @jax.jit
    def loss(step):
        moved = jax.tree.map(lambda leaf, one: leaf + step * one, params, direction)
        outputs = nnx.merge(graphdef, moved, rest)(jnp.asarray(u) + step, domain)
        return jnp.sum(jnp.sin(outputs) * (1 + domain.points[:, :1]))

    slope, ahead, behind = (float(one) for one in (jax.grad(loss)(0.0), loss(1e-5), loss(-1e-5)))
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)
    assert abs(slope) > 1e-3


BOUNDARY, CONSERVATIVE = operators.BoundaryOperatorConfig, operators.ConservativeOperatorConfig
EQUIVARIANT = operators.EquivariantOperatorConfig
SIDES, CHANNELS = operators.BoxSidesConfig, operators.InputChannelsConfig
BAD = [
    (
        lambda: BOUNDARY(3),
        TypeError,
        "operator must be the config of an operator, see operators",
    ),
    (
        lambda: BOUNDARY(fno(), factor=2),
        TypeError,
        r"factor must be operators\.BoxSides.* got 2",
    ),
    (
        lambda: BOUNDARY(fno(), values=(1.0, 2.0)),
        ValueError,
        "values must be a tuple of one num",
    ),
    (lambda: BOUNDARY(fno(), values=(np.inf,)), ValueError, "values must be finite"),
    (lambda: BOUNDARY(fno(), values=CHANNELS((1,))), ValueError, "channels of 1, 0 to 0, got"),
    (
        lambda: BOUNDARY(fno(), factor=SIDES((0.0,))),
        ValueError,
        r"a box with dim = 2, got lower",
    ),
    (
        lambda: BOUNDARY(fno(), factor=SIDES((1.0, 0.0))),
        ValueError,
        "upper must be above lower",
    ),
    (lambda: SIDES(sides=((0, "left"),)), ValueError, r"sides must hold pairs such as .* got \(0, 'left'\)"),
    (lambda: SIDES(sides=((2, "lower"),)).corners(2), ValueError, "must be those of a box with dim = 2"),
    (lambda: SIDES(lower=0.0), TypeError, "lower must be a tuple of coordinates"),
    (lambda: CHANNELS((-1,)), ValueError, "must be a tuple of different numbers of channels from 0"),
    (lambda: CONSERVATIVE(fno(), channels=(1,)), ValueError, "channels must be channels of 1"),
    (lambda: CONSERVATIVE(fno(), integrals=3.0), TypeError, "integrals must be a tuple of"),
    (lambda: CONSERVATIVE(fno(1, 2)), ValueError, r"integrals.channels must be channels of 1"),
    (lambda: EQUIVARIANT(fno(dim=1), group="turns"), ValueError, "an interval has flips only"),
    (
        lambda: EQUIVARIANT(fno(), group="turn"),
        ValueError,
        "'turn' is unknown: did you mean 'tur",
    ),
    (
        lambda: EQUIVARIANT(fno(), input_vectors=((0,),)),
        ValueError,
        "tuples of dim = 2 channels",
    ),
    (lambda: EQUIVARIANT(fno(3), input_vectors=((0, 0),)), ValueError, "different numbers"),
    (
        lambda: on(KINDS["equivariant"], domains.box((4, 3), rule="midpoint")),
        ValueError,
        "equal axes for group='turns'",
    ),
    (lambda: on(KINDS["equivariant"], domains.monte_carlo(normal(4, 2))), TypeError, "must be a grid .* a PointCloud"),
    (lambda: on(EVEN, domains.from_samples([0.0, 0.5, 1.0])), ValueError, "the nodes of axis 0 were given: use a rule"),
    (lambda: on(EVEN, domains.interval(4, rule=LEFT)), ValueError, "rule='left' of axis 0 is not symmetric"),
    (lambda: on(EVEN, domains.interval(4), nodes=3), ValueError, r"n = 4, got \(3, 1\)"),
    (lambda: on(EVEN, domains.interval(4), at=domains.interval(4, upper=2.0)), ValueError, "on the box of the domain"),
    (lambda: on(MASKED, domains.interval(4), at=domains.interval(5)), NotImplementedError, "at its own nodes only"),
    (lambda: on(WRONG, domains.interval(4)), ValueError, r"factor must return one number per point.*got \(4, 3\)"),
    (
        lambda: operators.from_dict(operators.ConstraintConfig, {"operator": {}, "model": "fnno"}),
        ValueError,
        "model='fnno' is unknown: did you mean 'fno'",
    ),
]
EVEN = EQUIVARIANT(tno(decoder_layers=1), group="flips")
MASKED = BOUNDARY(tno(decoder_layers=1), factor=CHANNELS())
WRONG = BOUNDARY(tno(), factor=lambda x: jnp.ones((x.shape[0], 3)))
LEFT = domains.Rule("left", lambda n: (np.arange(n) / n, np.full(n, 1 / n)))


@pytest.mark.usefixtures("unchecked")
def test_sides_that_are_not_those_of_the_domain_are_refused():
    """A grid under rules tells inside a compiled program too, a mesh or scattered nodes outside of one."""
    lower = operators.BoxSidesConfig(sides=((0, "lower"), (1, "upper")))
    model = make(operators.BoundaryOperatorConfig(tno(dim=2, decoder_layers=1), factor=lower))
    square = domains.box((4, 4))
    random = np.random.default_rng(0).random((9, 2)).astype(np.float32)
    corners = domains.triangle_mesh([[0.0, 0], [1, 0], [0, 1], [1, 1]], [[0, 1, 2], [1, 3, 2]])
    wrong = domains.triangle_mesh([[0.0, 0], [1, 0], [0, 2], [1, 2]], [[0, 1, 2], [1, 3, 2]])
    wide = domains.box((4, 4), upper=(7.0, 1.0))  # beyond no side
    for domain in (square, corners, domains.monte_carlo(random / 2), wide):
        model.config.prepare(domain)
    with pytest.raises(ValueError, match=r"the upper side across axis 1.* is at 1, but the domain ends at 2; give"):
        call(model, normal(16, 1), domains.box((4, 4), upper=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"the upper side across axis 1.* ends at 0\.5"):
        call(model, normal(16, 1), domains.box((4, 4), upper=(1.0, 0.5)))
    with pytest.raises(ValueError, match=r"the upper side across axis 1.* ends at 2"):
        model(normal(4, 1), wrong)
    with pytest.raises(ValueError, match=r"the lower side across axis 0.* ends at -"):
        model.config.prepare(domains.monte_carlo(random - 1))
    call(model, normal(16, 1), square, domains.box((3, 3), lower=(0.25, 0.25), upper=(0.5, 0.5)))
    with pytest.raises(ValueError, match=r"the lower side across axis 0.* ends at -1"):
        call(model, normal(16, 1), square, domains.box((3, 3), lower=(-1.0, 0.0)))


def on(config, domain, *, nodes=None, at=None):
    values = np.ones((domain.size if nodes is None else nodes, config.in_channels), np.float32)
    return make(config)(values, domain, at=at)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_named():
    for wrong, error, message in BAD:
        with pytest.raises(error, match=message):
            wrong()


@pytest.mark.parametrize("corner", [1000.03, 2000.7, -1e6])
def test_boxes_far_from_the_origin_are_compared_up_to_rounding(corner):
    points = np.stack(np.meshgrid([0, 0.5, 1], [0, 0.5, 1]), -1).reshape(-1, 2) + corner
    mesh = domains.from_points(points.astype(np.float32))
    operators.BoxSidesConfig(lower=(corner,) * 2, upper=(corner + 1,) * 2).check(mesh, whole=True)
    with pytest.raises(ValueError, match="the lower side across axis 0"):
        operators.BoxSidesConfig(lower=(corner + 0.5,) * 2, upper=(corner + 1,) * 2).check(mesh, whole=True)
