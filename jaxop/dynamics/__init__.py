"""Systems that move: operators that step in time, their rollouts, and their training along their own predictions."""

from jaxop.dynamics.rollout import BlowUpError as BlowUpError
from jaxop.dynamics.rollout import Rollout as Rollout
from jaxop.dynamics.rollout import check_finite as check_finite
from jaxop.dynamics.rollout import rollout as rollout
from jaxop.dynamics.stepper import OUTPUTS as OUTPUTS
from jaxop.dynamics.stepper import Stepper as Stepper
from jaxop.dynamics.stepper import StepperConfig as StepperConfig
from jaxop.dynamics.stepper import make_stepper as make_stepper
from jaxop.dynamics.unrolled import UnrolledLoss as UnrolledLoss
