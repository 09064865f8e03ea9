"""Splits hold out what they say; the gradient of a held-out loss finds kernel and regularisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

from jaxop import kernel_machines as km
from jaxop import kernels

RNG = np.random.default_rng(0)
X, Y = (RNG.uniform(-1, 1, size=(n, 2)).astype(np.float32) for n in (14, 11))
Z = np.sin(2 * X @ Y.T + X[:, :1]).astype(np.float32)
MASK = RNG.uniform(size=Z.shape) < 0.9
KEY = jax.random.key(0)


def listed(mask):
    return scipy.sparse.coo_array((Z[mask], np.nonzero(mask)), shape=Z.shape)


def entries(data):
    """The observed (x, y, z) of a part, as a set."""
    x, y, z, mask = data
    if mask is None:
        i, j, z = *np.asarray(z.indices).T, np.asarray(z.data)
    else:
        i, j = np.nonzero(mask)
        z = z[i, j]
    return {(*x[a], *y[b], c) for a, b, c in zip(i, j, z, strict=True)}


@pytest.mark.parametrize("over", ["pairs", "rows", "columns"])
@pytest.mark.parametrize("kind", ["matrix", "list"])
@pytest.mark.sample(2)
def test_every_observed_pair_is_held_out_once(over, kind):
    data = (X, Y, Z, MASK) if kind == "matrix" else (X, Y, listed(MASK))
    folds = list(km.split(*data, folds=4, over=over, rng_key=KEY))
    held_out = [entries(validation) for _, validation in folds]
    everything = entries((X, Y, Z, MASK))
    assert set.union(*held_out) == everything
    assert sum(map(len, held_out)) == len(everything)
    for (training, validation), held in zip(folds, held_out, strict=True):
        assert entries(training) == everything - held
        shared = {tuple(row) for row in training[0]} & {tuple(row) for row in validation[0]}
        assert (len(shared) == 0) == (over == "rows")
        shared = {tuple(row) for row in training[1]} & {tuple(row) for row in validation[1]}
        assert (len(shared) == 0) == (over == "columns")


@pytest.mark.thorough
@pytest.mark.parametrize("over", ["pairs", "rows"])
def test_cross_validation_is_the_loop(over):
    kernel, options = kernels.Gaussian(1.0), {"regularization": 1e-2}
    scores = km.cross_validate(kernel, X, Y, Z, MASK, folds=3, over=over, rng_key=KEY, **options)
    assert scores.shape == (3,)
    training, (x, y, z, mask) = next(km.split(X, Y, Z, MASK, folds=3, over=over, rng_key=KEY))
    errors = (km.fit(kernel, *training, **options)(x, y) - z) ** 2
    assert scores[0] == pytest.approx(float(np.mean(errors[mask])), rel=1e-4)
    sparse = km.cross_validate(kernel, X, Y, listed(MASK), folds=3, over=over, rng_key=KEY, **options)
    np.testing.assert_allclose(sparse, scores, rtol=2e-2)


@pytest.mark.sample(1)
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.thorough
def test_tuning_descends(loss):
    z = Z if loss == "squared" else np.sign(Z)
    training, validation = next(km.split(X, Y, z, folds=2, over="pairs", rng_key=KEY))

    def build(log_width):
        return kernels.Gaussian(jnp.exp(log_width))

    seen = []
    options = {"loss": loss, "regularization": 1e-1, "steps": 15, "optimizer": optax.adam(0.3)}
    tuned = km.tune(build, -3.0, training, validation, progress=lambda *step: seen.append(step), **options)
    assert tuned.losses.shape == (15,)
    assert tuned.losses.min() < 0.7 * tuned.losses[0]
    assert seen[-1] == (14, tuned.losses[-1])
    machine = km.fit(tuned.kernel, *training, loss=loss, regularization=tuned.regularization)
    reached = float(km.validation_loss(machine, *validation, loss=loss))
    assert reached == pytest.approx(tuned.losses.min(), rel=1e-2)


def test_bad_input():
    with pytest.raises(ValueError, match="'pairs'"):
        next(km.split(X, Y, Z, rng_key=KEY, over="pair"))
    with pytest.raises(ValueError, match="folds must be between 2 and the number of rows, 14, got 15"):
        next(km.split(X, Y, Z, rng_key=KEY, over="rows", folds=15))
    one_row = np.zeros_like(MASK)
    one_row[3] = True
    with pytest.raises(ValueError, match=r"fold \d of 2 over rows has (no|all) observed pairs"):
        list(km.split(X, Y, Z, one_row, rng_key=KEY, over="rows", folds=2))
    training, validation = next(km.split(X, Y, Z, folds=2, rng_key=KEY))
    with pytest.raises(FloatingPointError, match="not finite in step 0 of tune"):
        km.tune(lambda p: kernels.ExpDotProduct(p), 1e4, training, validation)
    with pytest.raises(NotImplementedError, match="support pairs"):
        km.tune(kernels.Gaussian, 1.0, (X, Y, np.sign(Z), None), (X, Y, np.sign(Z), None), loss="hinge", max_steps=2)
