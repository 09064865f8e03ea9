"""Estimators made of kernels: `fit` returns a jittable pytree.

`FourierDensity` and `GaussianDensity`, with `Density.predict` and `log_predict`; `FourierRegressor` and
`GaussianRegressor`, with `Regression.predict`.
"""

from jaxop.kernel_machines.binary import BinaryMachine as BinaryMachine
from jaxop.kernel_machines.binary import fit as fit
from jaxop.kernel_machines.landmarks import choose_landmarks as choose_landmarks
from jaxop.kernel_machines.maps import AffineMap as AffineMap
from jaxop.kernel_machines.maps import partial_least_squares as partial_least_squares
from jaxop.kernel_machines.smoothing import Density as Density
from jaxop.kernel_machines.smoothing import FourierDensity as FourierDensity
from jaxop.kernel_machines.smoothing import FourierRegressor as FourierRegressor
from jaxop.kernel_machines.smoothing import GaussianDensity as GaussianDensity
from jaxop.kernel_machines.smoothing import GaussianRegressor as GaussianRegressor
from jaxop.kernel_machines.smoothing import Regression as Regression
from jaxop.kernel_machines.smoothing import sinc_power_integral as sinc_power_integral
