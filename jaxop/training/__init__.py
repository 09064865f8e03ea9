"""Training: losses as weighted norms, one compiled step, verified checkpoints, runs that can be resumed."""

from jaxop._moved import moved
from jaxop.training.bands import band_score as band_score
from jaxop.training.bands import band_scores as band_scores
from jaxop.training.bands import conformal_factor as conformal_factor
from jaxop.training.calibration import Coverage as Coverage
from jaxop.training.calibration import absolute_residuals as absolute_residuals
from jaxop.training.calibration import calibrate as calibrate
from jaxop.training.calibration import coverage as coverage
from jaxop.training.checkpoint import Checkpoints as Checkpoints
from jaxop.training.checkpoint import DamagedCheckpointError as DamagedCheckpointError
from jaxop.training.config import LOSSES as LOSSES
from jaxop.training.config import SCHEDULES as SCHEDULES
from jaxop.training.config import TrainingConfig as TrainingConfig
from jaxop.training.config import to_json as to_json
from jaxop.training.ensembles import EnsembleErrors as EnsembleErrors
from jaxop.training.ensembles import calibration_curve as calibration_curve
from jaxop.training.ensembles import crps as crps
from jaxop.training.ensembles import evaluate_ensemble as evaluate_ensemble
from jaxop.training.ensembles import rank_shares as rank_shares
from jaxop.training.evaluation import Errors as Errors
from jaxop.training.evaluation import Scores as Scores
from jaxop.training.evaluation import evaluate as evaluate
from jaxop.training.evaluation import predict as predict
from jaxop.training.evaluation import score as score
from jaxop.training.loggers import JsonLines as JsonLines
from jaxop.training.loggers import Logger as Logger
from jaxop.training.loggers import Progress as Progress
from jaxop.training.loggers import TensorBoard as TensorBoard
from jaxop.training.loggers import WeightsAndBiases as WeightsAndBiases
from jaxop.training.loggers import read_metrics as read_metrics
from jaxop.training.loop import Result as Result
from jaxop.training.loop import fit as fit
from jaxop.training.losses import Loss as Loss
from jaxop.training.losses import cross_entropy as cross_entropy
from jaxop.training.losses import cross_entropy_loss as cross_entropy_loss
from jaxop.training.losses import pinball_loss as pinball_loss
from jaxop.training.losses import relative_h1_loss as relative_h1_loss
from jaxop.training.losses import relative_l2_loss as relative_l2_loss
from jaxop.training.losses import relative_norm as relative_norm
from jaxop.training.losses import relative_norms as relative_norms
from jaxop.training.members import MemberBatch as MemberBatch
from jaxop.training.members import member_seeds as member_seeds
from jaxop.training.mesh import MeshConfig as MeshConfig
from jaxop.training.optimizer import learning_rate as learning_rate
from jaxop.training.optimizer import make_optimizer as make_optimizer
from jaxop.training.plan import StepPlan as StepPlan
from jaxop.training.plan import plan_step as plan_step
from jaxop.training.processes import LostProcessError as LostProcessError
from jaxop.training.processes import ending_together as ending_together
from jaxop.training.queries import predict_at as predict_at
from jaxop.training.run import Run as Run
from jaxop.training.run import load_run as load_run
from jaxop.training.state import TrainState as TrainState
from jaxop.training.state import init_state as init_state
from jaxop.training.step import make_step as make_step
from jaxop.training.topology import CHIPS as CHIPS
from jaxop.training.topology import Chip as Chip
from jaxop.training.topology import Topology as Topology

__getattr__ = moved(
    __name__,
    {
        "plot_errors": "jaxop.experiments.plot_errors",
        "plot_learning_curves": "jaxop.experiments.plot_learning_curves",
        "plot_predictions": "jaxop.experiments.plot_predictions",
        "save_figure": "jaxop.experiments.save_figure",
    },
)
