"""Experiments: a problem, an operator and a training as one value; runs, their evaluation, and the command line.

They need the packages of the extra ``scripts``: ``pip install 'jaxop[scripts]'``.
"""

from jaxop.experiments.calibration import Calibration as Calibration
from jaxop.experiments.calibration import calibrate as calibrate
from jaxop.experiments.cluster import ClusterConfig as ClusterConfig
from jaxop.experiments.constraints import Constraints as Constraints
from jaxop.experiments.evaluation import Evaluation as Evaluation
from jaxop.experiments.evaluation import evaluate as evaluate
from jaxop.experiments.evolutions import AdvectionData as AdvectionData
from jaxop.experiments.evolutions import BurgersData as BurgersData
from jaxop.experiments.evolutions import GrayScottData as GrayScottData
from jaxop.experiments.evolutions import KolmogorovData as KolmogorovData
from jaxop.experiments.evolutions import KortewegDeVriesData as KortewegDeVriesData
from jaxop.experiments.evolutions import KuramotoSivashinskyData as KuramotoSivashinskyData
from jaxop.experiments.evolutions import Lorenz96Data as Lorenz96Data
from jaxop.experiments.evolutions import NavierStokesData as NavierStokesData
from jaxop.experiments.experiment import DynamicsExperiment as DynamicsExperiment
from jaxop.experiments.experiment import Experiment as Experiment
from jaxop.experiments.experiment import Recipe as Recipe
from jaxop.experiments.experiment import load_recipe as load_recipe
from jaxop.experiments.experiment import ready_made as ready_made
from jaxop.experiments.export import export_model as export_model
from jaxop.experiments.export import export_program as export_program
from jaxop.experiments.plots import plot_calibration as plot_calibration
from jaxop.experiments.plots import plot_errors as plot_errors
from jaxop.experiments.plots import plot_learning_curves as plot_learning_curves
from jaxop.experiments.plots import plot_on_domains as plot_on_domains
from jaxop.experiments.plots import plot_predictions as plot_predictions
from jaxop.experiments.plots import save_figure as save_figure
from jaxop.experiments.prediction import Prediction as Prediction
from jaxop.experiments.prediction import predict as predict
from jaxop.experiments.problems import PROBLEMS as PROBLEMS
from jaxop.experiments.problems import ControlledOdeData as ControlledOdeData
from jaxop.experiments.problems import DarcyData as DarcyData
from jaxop.experiments.problems import FileData as FileData
from jaxop.experiments.problems import LorenzData as LorenzData
from jaxop.experiments.record import recorded_problem as recorded_problem
from jaxop.experiments.run import train as train
from jaxop.experiments.series import SeriesData as SeriesData
from jaxop.experiments.sets import Problem as Problem
from jaxop.experiments.sets import SeriesProblem as SeriesProblem
from jaxop.experiments.sets import SeriesSets as SeriesSets
from jaxop.experiments.sets import Sets as Sets
from jaxop.experiments.settings import OperatorSettings as OperatorSettings
from jaxop.experiments.stepping import Stepping as Stepping
from jaxop.experiments.task import build as build
from jaxop.experiments.time_plots import plot_rollout_errors as plot_rollout_errors
from jaxop.experiments.time_plots import plot_snapshots as plot_snapshots
from jaxop.experiments.time_plots import plot_space_time as plot_space_time
from jaxop.experiments.time_plots import plot_spectra as plot_spectra
from jaxop.experiments.time_plots import save_animation as save_animation
