"""What cannot be fitted is refused with its name."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

from jaxop import kernel_machines as km
from jaxop import kernels
from tests.kernel_machines.cases import CASES, MASK, NEW_X, NEW_Y, X, Y, Z, fit, replaced

DUPLICATE = replaced(Y, 4, Y[1])

BAD = {
    "shape": (lambda: fit("exponential", Z.T), ValueError, r"\(nx, ny\) = \(7, 5\).*got \(5, 7\); transpose"),
    "mask shape": (lambda: fit("exponential", mask=MASK[:3]), ValueError, r"mask must have shape"),
    "mask dtype": (lambda: fit("exponential", mask=MASK.astype(int)), TypeError, "mask must be boolean"),
    "empty": (lambda: fit("exponential", mask=MASK & False), ValueError, "at least one observed pair"),
    "NaN": (lambda: fit("exponential", replaced(Z, (2, 3), np.nan)), ValueError, r"responses\[2, 3\] is nan.*mask="),
    "NaN rows": (lambda: km.fit(kernels.Gaussian(), replaced(X, (6, 1), np.nan), Y, Z), ValueError, r"X .*\(6, 1\)"),
    "one row": (lambda: km.fit(kernels.Gaussian(), X[:, 0], Y, Z), ValueError, "X must have shape"),
    "kernel": (lambda: km.fit(kernels.Gaussian, X, Y, Z), TypeError, "must be a Kernel"),
    "two kernels": (lambda: km.fit((kernels.Gaussian(),) * 2, X, Y, Z), ValueError, "one kernel between both"),
    "span": (lambda: km.fit(kernels.Gaussian(), X, Y, Z, span="section"), ValueError, "'sections'"),
    "loss": (lambda: fit("exponential", loss="square"), ValueError, "'squared'"),
    "solver": (lambda: fit("exponential", solver="gc"), ValueError, "'cg'"),
    "spectral": (lambda: fit("exponential", mask=MASK, solver="spectral"), NotImplementedError, "some pairs.*'cg'"),
    "newton": (lambda: fit("exponential", solver="newton"), NotImplementedError, "does not solve loss='squared'"),
    "labels": (
        lambda: fit("exponential", replaced(np.sign(Z), (1, 2), 0), loss="hinge"),
        ValueError,
        r"\(1, 2\) is 0.0.*2 \* r",
    ),
    "negative": (lambda: fit("exponential", regularization=-1.0), ValueError, "not negative, got -1"),
    "several": (lambda: fit("exponential", regularization=np.ones(2)), ValueError, "vmap"),
    "zero, masked": (lambda: fit("exponential", mask=MASK, regularization=0), ValueError, "pass a positive number"),
    "zero, rectangular": (lambda: fit("exponential", regularization=0), ValueError, "7 rows of X and 5 of Y"),
    "zero, duplicates": (
        lambda: km.fit(kernels.ExpDotProduct(), X[:5], DUPLICATE, Z[:5], regularization=0),
        ValueError,
        "the equal rows 1 and 4 of Y",
    ),
    "zero, rank": (
        lambda: km.fit(kernels.from_pair(jnp.dot, sign="signed"), X[:5], Y, Z[:5], regularization=0),
        ValueError,
        r"the rows \d, .* of [XY] give dependent kernel values",
    ),
    "landmarks": (lambda: fit("exponential", landmarks=6), ValueError, "number of rows of Y, 5, got 6"),
    "indefinite": (
        lambda: km.fit(kernels.from_pair(lambda a, b: jnp.sum((a - b) ** 2), sign="signed"), X, Y, Z, span="product"),
        ValueError,
        r"FunctionKernel has the eigenvalue -.*rows of X.*span='sections'",
    ),
    "asymmetric": (
        lambda: km.fit(CASES["signed"], X, Y, Z, span="product"),
        ValueError,
        "symmetric kernels.*in the other order",
    ),
    "overflow": (
        lambda: km.fit(kernels.ExpDotProduct(), 100 * X, Y, Z),
        FloatingPointError,
        "ExpDotProduct is not finite",
    ),
    "rank of maps": (lambda: fit("exponential", maps=3), ValueError, r"min\(a, b\) = 2, got 3"),
    "shape of maps": (
        lambda: fit("exponential", maps=(np.eye(3), np.eye(2))),
        ValueError,
        r"maps\[0\] must have shape \(2, r\)",
    ),
    "number of maps": (lambda: fit("exponential", maps=(np.eye(2),)), ValueError, "two matrices"),
    "tolerance": (lambda: fit("exponential", tolerance=0.0), ValueError, "must be positive"),
    "rows": (lambda: fit("exponential")(NEW_X[:, :1], NEW_Y), ValueError, r"x must have shape \(n, 2\)"),
    "pairs": (lambda: fit("exponential").pairs(NEW_X, NEW_Y), ValueError, "4 and 3 rows"),
    "sparse mask": (lambda: fit("exponential", scipy.sparse.coo_array(Z), MASK), ValueError, "mask must be None"),
    "sparse shape": (lambda: fit("exponential", scipy.sparse.coo_array(Z.T)), ValueError, "transpose"),
    "sparse empty": (lambda: fit("exponential", scipy.sparse.coo_array((7, 5))), ValueError, "stores no entries"),
    "sparse twice": (
        lambda: fit("exponential", scipy.sparse.coo_array((np.ones(2), ([1, 1], [2, 2])), shape=(7, 5))),
        ValueError,
        r"the pair \(1, 2\) more than once",
    ),
    "sparse NaN": (
        lambda: fit("exponential", scipy.sparse.coo_array((np.asarray([1, np.nan]), ([1, 3], [2, 4])), shape=(7, 5))),
        ValueError,
        r"pair \(3, 4\) is nan",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is float64 but JAX runs in 32 bits")
@pytest.mark.parametrize("case", BAD)
@pytest.mark.sample(7)
def test_bad_input(unchecked, case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
