"""Small machines with their matrices, and the oracle they are compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import kernel_machines as km
from jaxop import kernels
from jaxop.kernel_machines.binary import gram

RNG = np.random.default_rng(0)

X, Y = RNG.normal(size=(7, 2)), RNG.normal(size=(5, 2))

NEW_X, NEW_Y = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 2))

Z = RNG.normal(size=(7, 5))

MASK = RNG.uniform(size=(7, 5)) < 0.7

SIGNED = kernels.from_pair(lambda a, b: jnp.sin(3 * a[0] * b[1]) - a[1] * b[0], sign="signed")

CASES = {
    "exponential": kernels.ExpDotProduct(),
    "signed": SIGNED,
    "bilinear": kernels.from_pair(lambda a, b: a[0] * (b[0] + 2 * b[1]) - a[1] * b[0] + 1, sign="signed"),  # of rank 3
    "product": (kernels.Gaussian(1.0), kernels.Gaussian(0.5)),
}

LAMBDA = 1e-2


def matrices(kernel):
    """Φ, Ψ at the training and at new rows, and P, in float64."""

    def matrix(k, a, b):
        return np.asarray(jax.jit(gram)(k, a, b))

    if isinstance(kernel, tuple):
        k, own = kernel
        fitted, new = (matrix(k, X, X), matrix(own, Y, Y)), (matrix(k, NEW_X, X), matrix(own, NEW_Y, Y))
        return *fitted, *new, np.kron(*fitted)
    return (
        matrix(kernel, X, Y),
        matrix(kernel, X, Y).T,
        matrix(kernel, NEW_X, Y),
        matrix(kernel, X, NEW_Y).T,
        np.eye(X.shape[0] * Y.shape[0]),
    )


def oracle(kernel, mask):
    """The Kronecker normal equations of the squared loss."""
    left, right, new_left, new_right, penalty = matrices(kernel)
    design, weights = np.kron(left, right), np.asarray(mask).ravel().astype(float)
    normal = design.T @ (weights[:, None] * design) + LAMBDA * penalty
    coefficients = np.linalg.lstsq(normal, design.T @ (weights * Z.ravel()), rcond=1e-15)[0]
    return (np.kron(new_left, new_right) @ coefficients).reshape(4, 3)


def fit(case, responses=Z, mask=None, **options):
    kernel = CASES[case]
    span = "product" if isinstance(kernel, tuple) else "sections"
    return km.fit(kernel, X, Y, responses, mask, span=span, **{"regularization": LAMBDA, **options})


def check_derivatives(objective, arguments, order=1, *, eps=1e-5, rtol=1e-5, atol=1e-5):
    """Forward and reverse derivatives along a random direction against central differences, in one program."""
    rng = np.random.default_rng(6)
    arguments = tuple(np.asarray(a) for a in arguments)
    direction = tuple(np.asarray(rng.normal(size=a.shape)) for a in arguments)

    def along(function):
        def differences(*at):
            shifted = lambda h: function(*(a + h * d for a, d in zip(at, direction, strict=True)))  # noqa: E731
            ends = jax.lax.map(shifted, np.asarray([eps, -eps]))
            return (ends[0] - ends[1]) / (2 * eps)

        def forward_and_reverse(*at):
            _, linear = jax.linearize(function, *at)
            gradient = jax.linear_transpose(linear, *at)(jnp.ones(()))
            return linear(*direction), sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))

        return differences, forward_and_reverse

    found = [along(objective)]
    if order == 2:
        found += [along(lambda *at, k=k: found[0][1](*at)[k]) for k in range(2)]
    for differences, derivatives in jax.jit(lambda a: [[f(*a) for f in functions] for functions in found])(arguments):
        np.testing.assert_allclose(derivatives, [differences] * 2, rtol=rtol, atol=atol)


def replaced(array, index, value):
    array = np.array(array)
    array[index] = value
    return array
