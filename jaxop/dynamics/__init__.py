"""Dynamics: operators that step in time, their rollouts, and metrics over time."""

from jaxop.dynamics.conserved import Invariants as Invariants
from jaxop.dynamics.conserved import drift as drift
from jaxop.dynamics.conserved import energy as energy
from jaxop.dynamics.conserved import enstrophy as enstrophy
from jaxop.dynamics.conserved import invariants as invariants
from jaxop.dynamics.conserved import mass as mass
from jaxop.dynamics.conserved import vorticity as vorticity
from jaxop.dynamics.metrics import correlation as correlation
from jaxop.dynamics.metrics import correlation_time as correlation_time
from jaxop.dynamics.metrics import h1_error as h1_error
from jaxop.dynamics.metrics import nrmse as nrmse
from jaxop.dynamics.metrics import relative_l2 as relative_l2
from jaxop.dynamics.metrics import valid_time as valid_time
from jaxop.dynamics.metrics import vrmse as vrmse
from jaxop.dynamics.metrics import window_means as window_means
from jaxop.dynamics.spectra import BandErrors as BandErrors
from jaxop.dynamics.spectra import band_errors as band_errors
from jaxop.dynamics.spectra import energy_spectrum as energy_spectrum
from jaxop.dynamics.spectra import log_bands as log_bands
from jaxop.dynamics.spectra import wavenumbers as wavenumbers
