"""Estimators made of kernels; `fit` returns a jittable pytree.

Densities: `FourierDensity` and `GaussianDensity`, with `Density.predict` and `log_predict`. Regression:
`FourierRegressor` and `GaussianRegressor`, with `Regression.predict`. Functions of two domains: `fit` returns a
`BinaryMachine`; `BinaryKernelRegressor` and `BinaryKernelClassifier` wrap it for scikit-learn, which only they need.
"""

import importlib
from typing import TYPE_CHECKING

from jaxop.kernel_machines.binary import SPANS as SPANS
from jaxop.kernel_machines.binary import BinaryMachine as BinaryMachine
from jaxop.kernel_machines.binary import fit as fit
from jaxop.kernel_machines.landmarks import choose_landmarks as choose_landmarks
from jaxop.kernel_machines.maps import AffineMap as AffineMap
from jaxop.kernel_machines.maps import partial_least_squares as partial_least_squares
from jaxop.kernel_machines.selection import Tuned as Tuned
from jaxop.kernel_machines.selection import cross_validate as cross_validate
from jaxop.kernel_machines.selection import split as split
from jaxop.kernel_machines.selection import tune as tune
from jaxop.kernel_machines.selection import validation_loss as validation_loss
from jaxop.kernel_machines.smoothing import Density as Density
from jaxop.kernel_machines.smoothing import FourierDensity as FourierDensity
from jaxop.kernel_machines.smoothing import FourierRegressor as FourierRegressor
from jaxop.kernel_machines.smoothing import GaussianDensity as GaussianDensity
from jaxop.kernel_machines.smoothing import GaussianRegressor as GaussianRegressor
from jaxop.kernel_machines.smoothing import Regression as Regression
from jaxop.kernel_machines.smoothing import sinc_power_integral as sinc_power_integral

if TYPE_CHECKING:
    from jaxop.kernel_machines.estimators import BinaryKernelClassifier as BinaryKernelClassifier
    from jaxop.kernel_machines.estimators import BinaryKernelRegressor as BinaryKernelRegressor


def __getattr__(name: str) -> object:
    if name not in ("BinaryKernelClassifier", "BinaryKernelRegressor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("jaxop.kernel_machines.estimators"), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} needs scikit-learn, which is not installed ({error}); run: pip install 'jaxop[sklearn]'. "
            "kernel_machines.fit does not need it."
        ) from error
