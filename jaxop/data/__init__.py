"""Sets of functions: generated problems, readers of a user's arrays, statistics and batches."""

from jaxop.data.classification import ExampleBatch as ExampleBatch
from jaxop.data.classification import Examples as Examples
from jaxop.data.classification import text_windows as text_windows
from jaxop.data.files.layout import from_arrays as from_arrays
from jaxop.data.files.open import FORMATS as FORMATS
from jaxop.data.files.open import read as read
from jaxop.data.files.save import save as save
from jaxop.data.normalization import Statistics as Statistics
from jaxop.data.normalization import denormalize as denormalize
from jaxop.data.normalization import normalize as normalize
from jaxop.data.normalization import statistics as statistics
from jaxop.data.problems.darcy_flow import COEFFICIENTS as COEFFICIENTS
from jaxop.data.problems.darcy_flow import darcy as darcy
from jaxop.data.problems.darcy_flow import darcy_on as darcy_on
from jaxop.data.problems.darcy_flow import darcy_resolutions as darcy_resolutions
from jaxop.data.problems.darcy_flow import gaussian_field as gaussian_field
from jaxop.data.problems.darcy_flow import solve_darcy as solve_darcy
from jaxop.data.problems.ode import LORENZ_TASKS as LORENZ_TASKS
from jaxop.data.problems.ode import controlled_ode as controlled_ode
from jaxop.data.problems.ode import lorenz63 as lorenz63
from jaxop.data.problems.ode import solve_lorenz63 as solve_lorenz63
from jaxop.data.samples import ArraySource as ArraySource
from jaxop.data.samples import Batch as Batch
from jaxop.data.samples import Samples as Samples
from jaxop.data.samples import batch_indices as batch_indices
from jaxop.data.source import DataSource as DataSource
