"""The command line ``jaxop``.

    jaxop train NAME          a ready-made experiment, or your own file that defines CONFIG
    jaxop train custom        your own arrays: pairs of functions
    jaxop train series        your own time series
    jaxop resume RUN          continue a run
    jaxop evaluate MODEL      errors and pictures on other grids or files
    jaxop predict MODEL FILES outputs for your own files, as files
    jaxop calibrate MODEL     error bars that hold, from files of new functions
    jaxop export-model RUN    the trained operator as a folder that others load
    jaxop export MODEL        the trained operator as a program that JAX alone runs
    jaxop plan NAME           memory, messages and time of a step on devices that you need not have
    jaxop list                experiments, operators and trained models

Every command explains its options with --help. With --traceback an error shows its origin.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import jaxop
from jaxop import operators, training
from jaxop._validation import check_name
from jaxop.experiments import terminal
from jaxop.experiments.calibration import calibrate
from jaxop.experiments.evaluation import evaluate
from jaxop.experiments.experiment import first_line, load_recipe, ready_made
from jaxop.experiments.export import export_model, export_program, stated
from jaxop.experiments.plan import plan, without_accelerator, write_json
from jaxop.experiments.prediction import predict
from jaxop.experiments.run import train
from jaxop.operators.folder import ABOUT, CITATION, LICENCE

_TRAIN = """Trains an operator and evaluates it on other grids.

    jaxop train darcy_fano --training.steps 500 --model.width 64 --run-dir runs/wide
    jaxop train custom --data.train a.npz model:fano --model.width 32
    jaxop train series --data.train heat.npz --stepping.steps 4 model:fno
    jaxop train my_experiment.py

NAME is one of the experiments below, or the path of your own file (it ends in .py) that defines
CONFIG = jaxop.experiments.Experiment(...), or DynamicsExperiment(...) for time series. `jaxop train NAME --help` lists
every setting."""

_RESUME = """Continues a run with the settings that it recorded, except for a time limit.

    jaxop resume runs/wide
    jaxop resume runs/mine --data.train moved/a.npz

The time limit, and how often the run is evaluated and saved, may differ. Files with the same contents may be in
another place. `jaxop resume RUN --help` lists the settings."""

_EVALUATE = """Evaluates a trained model on files or on other grids.

    jaxop evaluate runs/mine --data b.npz c.h5
    jaxop evaluate runs/darcy_fano --grids 32 64 96 128
    jaxop evaluate runs/cde_tno --grids dt=0.005 nodes=400
    jaxop evaluate runs/ks_tno --steps 1000 --grids 160 320 --animation gif
    jaxop evaluate models/mine --data b.npz --to results

MODEL is a run directory, or the folder or .zip file of a model, whose results go to --to.
Prints and saves relative L2 and H1 errors and the worst sample of every set, in physical units
(RUN/evaluation/NAME.csv and .json), and pictures of the median and the worst sample (RUN/figures/). For a run on time
series these are the errors of rollouts over lead times, beside persistence."""

_PREDICT = """Predicts the outputs for the input functions in files, and writes them to files.

    jaxop predict runs/wings new/*.vtu --to results
    jaxop predict runs/mine b.npz
    jaxop predict runs/ks_tno start.npz --steps 200 --to results
    jaxop predict models/mine b.npz --at nodes.npz --to results
    jaxop predict models/with-bars b.npz --band --to results
    jaxop predict runs/mine b.npz --residuals --to errors

MODEL is a run directory, or the folder or .zip file of a model.
A mesh gives a .vtu file with the same nodes and cells, which ParaView shows; any other file gives .npz. Outputs are in
the units of the training data. The files need not have targets. Folders stand for the files in them. --at names a
file of query points, of which there may be more than fit into one call, for operators that evaluate anywhere. --band
also writes the half-widths of a model of `jaxop calibrate`, --residuals pairs of inputs and absolute errors. A run on
time series makes --steps steps from the last states in the files, and writes .npz files of trajectories."""

_CALIBRATE = """Makes error bars for a trained operator, from pairs of functions that are new to it.

    jaxop calibrate runs/mine --data new.npz --to models/mine
    jaxop calibrate runs/mine --spread runs/spread --data new.npz --test fine.npz scattered.npz --to mine.zip
    jaxop calibrate models/mine --data new.npz --trained-on old.npz --to models/with-bars

With a probability of at least 1 - DELTA, the truth lies within the half-width of the prediction on at least 1 - ALPHA
of the domain, for new functions of the same distribution on the same nodes. --test measures how often it does, also on
other nodes; the table is printed and written on the card. Functions that a run was trained on are refused.
`jaxop predict MODEL FILES --band` writes the half-widths, and `jaxop evaluate MODEL` shows the coverage."""

_PLAN = """Compiles the training step of an experiment for a slice of TPUs that you need not have, and prints for one
device the bytes of memory, the messages, the operations, and the least time of a step at the peak rates of the chip.

    jaxop plan darcy_fano --topology v5e:4x4 --mesh.data 16 --training.batch-size 64
    jaxop plan my_experiment.py --topology v5p:2x2x4 --json plan.json

NAME and its settings are those of `jaxop train NAME --help`, and two more:

    --topology CHIP:SIZES     v4, v5e, v5p or v6e with the sizes of the slice, or cpu:COUNT
    --json FILE               also write all figures to a file

The topologies of TPUs need libtpu: pip install 'jaxop[plan]'."""


_EXPORT = """Writes the trained operator of a run as a folder, or as one file that ends in .zip, with a card that says
what it was trained on and how well it does.

    jaxop export-model runs/mine --to models/mine
    jaxop export-model runs/mine --to mine.zip --checkpoint last --about "Heat on a plate." --licence CC-BY-4.0

In Python, jaxop.from_pretrained("models/mine") loads it, without the run and its data."""

_PROGRAM = """Writes the trained operator of a run or of a saved model as one file, a program that runs with JAX alone,
without jaxop.

    jaxop export runs/mine --to mine.zip
    jaxop export models/darcy --symbolic batch --domain grid.npz --to darcy-64.zip

The program takes any number of functions (batch) on any nodes. With --symbolic batch it takes functions on the nodes of
--domain only, which operators on patches need. jaxop.operators.export says how to run the file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the arguments without the program's name; None takes those of this process.

    Returns:
        The exit status: 0, or 2 with one message on stderr if the inputs are wrong.

    Raises:
        SystemExit: after ``--help``, and if options cannot be read.

    Example:
        >>> from jaxop.experiments import cli
        >>> cli.main(["list"])  # doctest: +ELLIPSIS
        experiments: ...
    """
    return terminal.run_command(_run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> None:
    parser = _parser("jaxop", __doc__)
    parser.add_argument("--version", action="version", version=f"jaxop {jaxop.__version__}")
    command, options = _first(parser, "COMMAND", arguments, about=", ".join(_COMMANDS))
    check_name(command, "command", _COMMANDS)
    _COMMANDS[command](options)


def _train(arguments: Sequence[str]) -> None:
    parser = _parser("jaxop train", f"{_TRAIN}\n\n{_listing('experiments', ready_made())}")
    name, others = _first(parser, "NAME", arguments)
    recipe = load_recipe(name)
    terminal.tune_allocator()
    train(_options().of_recipe(recipe, others, prog=f"jaxop train {name}"), name=recipe.name)


def _resume(arguments: Sequence[str]) -> None:
    parser = _parser("jaxop resume", _RESUME)
    directory, others = _first(parser, "RUN", arguments)
    run = training.load_run(directory)
    terminal.tune_allocator()
    train(_options().of_run(run, others, prog="jaxop resume RUN", description=_RESUME), name=run.directory.name)


def _evaluate(arguments: Sequence[str]) -> None:
    settings = _options().of_evaluation(arguments, prog="jaxop evaluate", description=_EVALUATE)
    terminal.tune_allocator()
    evaluate(settings)


def _export_model(arguments: Sequence[str]) -> None:
    parser = _parser("jaxop export-model", _EXPORT)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--to", type=Path, required=True, help="a new folder, or a new file that ends in .zip")
    parser.add_argument("--checkpoint", default="best", help="best, last, or the number of a step (default: best)")
    for option, title in {"about": ABOUT, "licence": LICENCE, "cite": CITATION}.items():
        parser.add_argument(f"--{option}", metavar="TEXT", help=f'the card\'s section "{title}"')
    given = parser.parse_args(arguments)
    card = stated(about=given.about, licence=given.licence, cite=given.cite)
    path = export_model(given.run, given.to, checkpoint=given.checkpoint, card=card)
    sys.stdout.write(f"model: {path}\n")


def _export(arguments: Sequence[str]) -> None:
    parser = _parser("jaxop export", _PROGRAM)
    parser.add_argument("model", metavar="MODEL", type=Path, help="a run directory, or a saved folder or .zip file")
    parser.add_argument("--to", type=Path, required=True, help="a new file that ends in .zip")
    known = ", ".join(operators.SYMBOLIC)
    parser.add_argument("--symbolic", nargs="*", default=operators.SYMBOLIC, help=f"sizes left open: {known} (default)")
    platforms = ("cpu", "cuda", "tpu")
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=platforms,
        help=f"{', '.join(operators.PLATFORMS)} (default: {', '.join(platforms)})",
    )
    parser.add_argument("--domain", type=Path, help="a file of input functions on the nodes, if these are not symbolic")
    parser.add_argument("--inputs", help="name of the input functions in this file (default: that of the training)")
    parser.add_argument(
        "--checkpoint", default="best", help="of a run: best, last, or the number of a step (default: best)"
    )
    given = parser.parse_args(arguments)
    path = export_program(
        given.model,
        given.to,
        symbolic=given.symbolic,
        platforms=given.platforms,
        domain=given.domain,
        inputs=given.inputs,
        checkpoint=given.checkpoint,
    )
    sys.stdout.write(f"program: {path}\n")


def _predict(arguments: Sequence[str]) -> None:
    settings = _options().of_prediction(arguments, prog="jaxop predict", description=_PREDICT)
    terminal.tune_allocator()
    predict(settings)


def _calibrate(arguments: Sequence[str]) -> None:
    settings = _options().of_calibration(arguments, prog="jaxop calibrate", description=_CALIBRATE)
    terminal.tune_allocator()
    calibrate(settings)


def _plan(arguments: Sequence[str]) -> None:
    parser = _parser("jaxop plan", f"{_PLAN}\n\n{_listing('experiments', ready_made())}")
    name, others = _first(parser, "NAME", arguments)
    own = argparse.ArgumentParser("jaxop plan NAME", add_help=False, allow_abbrev=False)
    own.add_argument("--topology", required=not {"-h", "--help"} & {*others})
    own.add_argument("--json", type=Path)
    given, settings = own.parse_known_args(others)
    recipe = dataclasses.replace(load_recipe(name), about=_PLAN)
    experiment = _options().of_recipe(recipe, settings, prog=f"jaxop plan {name}")
    with without_accelerator(given.topology):
        result = plan(experiment, given.topology, name=recipe.name)
    if given.json is not None:
        write_json(given.json, result)


def _list(arguments: Sequence[str]) -> None:
    _parser("jaxop list", "Lists experiments, operators and trained models.").parse_args(arguments)
    about = {name: first_line(sys.modules[kind.__module__].__doc__) for name, kind in operators.CONFIGS.items()}
    known = {"experiments": ready_made(), "operators": about, "models": operators.ready_models()}
    sys.stdout.write("\n\n".join(_listing(title, texts) for title, texts in known.items()) + "\n")


_COMMANDS = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "predict": _predict,
    "calibrate": _calibrate,
    "export-model": _export_model,
    "export": _export,
    "plan": _plan,
    "list": _list,
}


def _parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog, description=description, formatter_class=kind, allow_abbrev=False)


def _first(
    parser: argparse.ArgumentParser, word: str, arguments: Sequence[str], *, about: str | None = None
) -> tuple[str, list[str]]:
    """Reads the word that a command needs first, and returns it with the rest, which another parser reads."""
    parser.add_argument("word", metavar=word, help=about)
    parser.add_argument("others", metavar="...", nargs=argparse.REMAINDER, help="its options; add --help to list them")
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2, f"\nerror: an argument is required: {word}\n")
    given = parser.parse_args(arguments)
    return given.word, given.others


def _listing(title: str, about: Mapping[str, str]) -> str:
    width = max(map(len, about))
    return "\n".join([f"{title}:", *(f"  {name:{width}}  {text}" for name, text in about.items())])


def _options() -> ModuleType:
    """Imports the module that needs tyro; the commands without settings do not need it."""
    from jaxop.experiments import options

    return options


if __name__ == "__main__":
    sys.exit(main())
