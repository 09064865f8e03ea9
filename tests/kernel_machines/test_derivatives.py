"""Derivatives of fits, and fits inside transformations."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

from jaxop import kernel_machines as km
from jaxop import kernels
from jaxop.kernel_machines import solvers
from tests.kernel_machines.cases import LAMBDA, MASK, NEW_X, NEW_Y, X, Y, Z, check_derivatives, fit


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", ["sections", "bilinear", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.sample(1)
def test_derivatives_are_finite_differences(x64, case, mask, loss):
    """In every argument; the bilinear kernel has a multiple singular value 0."""

    def objective(parameter, regularization, x, y, z):
        kernel = {
            "sections": kernels.Gaussian(parameter[0, 0]),
            "bilinear": kernels.Bilinear(jnp.asarray(parameter)),
            "product": (kernels.Gaussian(parameter[0, 0]), kernels.Gaussian(parameter[0, 1])),
        }[case]
        z = z if loss == "squared" else np.sign(Z)
        machine = km.fit(
            kernel, x, y, z, mask, span=case if case == "product" else "sections", loss=loss,
            regularization=regularization, tolerance=1e-13,
        )  # fmt: skip
        return jnp.sum(jnp.sin(machine(NEW_X, NEW_Y)))

    check_derivatives(objective, ([[0.7, 1.1], [-0.4, 0.8]], LAMBDA, X, Y, Z), atol=2e-5, rtol=2e-5)


def test_derivatives_at_equal_singular_values(x64):
    """K = I: the derivative of a singular value decomposition would be NaN."""

    def objective(matrix):
        kernel = kernels.Bilinear(jnp.asarray(matrix), offset=None)
        return jnp.sum(jnp.sin(km.fit(kernel, np.eye(4), np.eye(4), Z[:4, :4], regularization=0.1)(NEW, NEW)))

    NEW = np.random.default_rng(2).normal(size=(3, 4))
    check_derivatives(objective, (np.eye(4),), 2)


@pytest.mark.thorough
def test_second_derivatives(x64):
    def objective(width, log_regularization):
        machine = km.fit(
            kernels.Gaussian(width), X, Y, Z, MASK, regularization=jnp.exp(log_regularization), tolerance=1e-13
        )
        return km.validation_loss(machine, X, Y, Z, ~MASK)

    check_derivatives(objective, (0.7, -3.0), 2, atol=1e-4, rtol=1e-4)


def test_hinge_machines_refuse_derivatives(x64):
    with pytest.raises(NotImplementedError, match="support pairs"):
        jax.grad(lambda w: fit_hinge(w)(NEW_X, NEW_Y).sum())(1.0)
    machine = fit_hinge(1.0)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda x: machine(x, NEW_Y).sum()))(NEW_X)))


def fit_hinge(width):
    return km.fit(kernels.Gaussian(width), X, Y, np.sign(Z), loss="hinge", regularization=LAMBDA)


def test_jit_and_vmap(x64):
    def value(regularization, z=Z):
        return km.fit(kernels.ExpDotProduct(), X, Y, z, regularization=regularization)(NEW_X, NEW_Y)

    several = np.asarray([1e-3, 1e-2, 1e-1])
    expected = np.stack([value(r) for r in (1e-3, 1e-2, 1e-1)])
    np.testing.assert_allclose(jax.vmap(value)(several), expected, rtol=1e-8)
    np.testing.assert_allclose(jax.jit(value)(1e-2, Z), expected[1], rtol=1e-8)
    machine = fit("exponential")
    np.testing.assert_allclose(jax.jit(lambda m, x, y: m(x, y))(machine, NEW_X, NEW_Y), expected[1], rtol=1e-8)


@pytest.mark.sample(1)
@pytest.mark.parametrize("span", km.SPANS)
@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_everything_may_be_traced(x64, span, loss):
    def value(width, x, y, z, mask, regularization):
        options = {"span": span, "loss": loss, "landmarks": (6, 4), "regularization": regularization, "tolerance": 1e-9}
        return km.fit(kernels.Gaussian(width), x, y, z, mask, **options)(NEW_X, NEW_Y)

    arguments = 0.7, X, Y, np.sign(Z), MASK, LAMBDA
    np.testing.assert_allclose(jax.jit(value)(*arguments), value(*arguments), rtol=1e-4, atol=1e-6)


def test_machine_is_a_pytree(x64):
    machine = fit("product")
    leaves, structure = jax.tree.flatten(machine)
    assert jax.tree.unflatten(structure, leaves).span == "product"
    again = pickle.loads(pickle.dumps(machine))
    np.testing.assert_array_equal(again(NEW_X, NEW_Y), machine(NEW_X, NEW_Y))
    assert repr(machine) == "BinaryMachine(product of Gaussian, 7 × 5 points)"
    assert machine(NEW_X[:0], NEW_Y).shape == (0, 3)
    assert machine(NEW_X, NEW_Y[:0]).shape == (4, 0)


def test_unsolved_derivative_is_not_a_number(x64):
    with pytest.warns(RuntimeWarning, match="max_steps"):
        assert np.isnan(
            jax.grad(lambda r: fit("exponential", mask=MASK, max_steps=1, regularization=r)(NEW_X, NEW_Y).sum())(1e-2)
        )


def test_second_fit_compiles_nothing():
    x, y, z = (jnp.asarray(a.astype(np.float32)) for a in (X, Y, Z))
    km.fit(kernels.Gaussian(1.0), x, y, z, jnp.asarray(MASK), regularization=0.1)
    before = solvers.solve._cache_size(), solvers.axes._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    km.fit(kernels.Gaussian(2.0), x, y, z, jnp.asarray(~MASK), regularization=0.2, max_steps=500)
    assert (solvers.solve._cache_size(), solvers.axes._cache_size()) == before  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.sample(1)
@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_padding_of_sparse_responses_does_not_matter_inside_jit(loss, x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 2))
    indices = np.stack(np.divmod(rng.permutation(36)[:20], 6), axis=1)
    values = np.sign(rng.normal(size=20))
    padded = np.concatenate([values, np.zeros(5)]), np.concatenate([indices, np.full((5, 2), 6)])

    @jax.jit
    def coefficients(values, indices):
        listed = BCOO((values, indices), shape=(6, 6))
        return km.fit(kernels.Gaussian(1.0), x, y, listed, loss=loss, regularization=0.1).coefficients

    np.testing.assert_allclose(coefficients(*padded), coefficients(values, indices), rtol=1e-3, atol=1e-4)


def test_a_complete_mask_is_none_inside_jit_too():
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    folds = km.split(x, x, x @ x.T, over="rows", folds=2, rng_key=jax.random.key(0))
    tuned = km.tune(lambda p: kernels.Gaussian(jnp.exp(p)), 0.0, *next(folds), steps=2, solver="spectral")
    assert np.isfinite(tuned.losses).all()
