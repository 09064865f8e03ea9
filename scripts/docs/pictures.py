"""Draws the pictures of the README.

images/orders.png shows the errors of attention under refinement, and images/same_weights.png, from a run of the demo,
one function on four grids and on scattered points.

python scripts/docs/pictures.py                  # trains the demo first
python scripts/docs/pictures.py runs/demo-...    # a run that exists
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jaxop import experiments, training
from jaxop.experiments import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies import theory

DEMO = experiments.load_recipe("demo").experiment
IMAGES = Path(__file__).parent / "images"
SIZES = (8, 16, 32, 64, 128, 256)
ROWS = ("coefficient a", "solution u", "prediction", "|prediction − u|")
TITLE = "Darcy flow −∇·(a∇u) = 1, dimensionless: the same weights on four grids and at scattered points"
DPI = 150
SHADES = {"viridis": 116, "magma": 116, "gray": 24}  # of the palette, 256 in all


def main(arguments: list[str]) -> None:
    """Draws both, the second from the run that the arguments name, or from a new one."""
    with jax.enable_x64(True):
        errors = theory.quadrature_errors(SIZES)
    experiments.save_figure(orders(errors), IMAGES / "orders.png")
    directory = Path(arguments[0]) if arguments else experiments.train(DEMO, name="demo")
    save(same_weights(training.load_run(directory)), IMAGES / "same_weights.png")


def orders(errors: Mapping[str, Sequence[float]]) -> Figure:
    """Returns the errors of attention against the number of nodes, one curve for every rule."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    for (rule, values), marker in zip(errors.items(), "so^D", strict=True):
        label = f"{rule} (order: {theory.THEORY[rule]})"
        axes.loglog(SIZES, np.maximum(values, 1e-16), marker=marker, label=label)
    axes.set_title("Error of attention under refinement, and orders in theory")
    axes.set(xlabel="nodes n", ylabel="error (dimensionless)", xticks=SIZES, xticklabels=SIZES)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    return figure


def same_weights(run: training.Run) -> Figure:
    """Returns a column for every test set, with the sample that has the median error on the training grid."""
    found = experiments.recorded_problem(run).load(DEMO.cache)
    assert isinstance(found, experiments.Sets)
    sets = found.test
    trained_on = f"{run.config['resolution']:.0f}²"
    model = run.model()
    errors = {label: training.evaluate(model, samples, batch_size=4).l2 for label, samples in sets.items()}
    sample = report.middle(errors[trained_on])
    columns = {}
    for label, samples in sets.items():
        one = samples.take([sample])
        nodes = one[[0]].inputs.shape[1]
        heading = f"{heading_of(label, nodes, label == trained_on)}\nrelative L2: {100 * errors[label][sample]:.2f} %"
        columns[heading] = one, training.predict(model, one)
    return experiments.plot_on_domains(columns, labels=ROWS, title=TITLE)


def heading_of(label: str, nodes: int, is_training_grid: bool) -> str:
    """Returns the name of a column."""
    if label.startswith("points"):
        return f"{nodes:,} points"
    return f"{label} (training)" if is_training_grid else label


def save(figure: Figure, path: Path) -> None:
    """Writes the figure with a palette of the colours that it uses, which keeps the file below 300 kB."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor="white")
    shades = [matplotlib.colormaps[name](np.linspace(0, 1, count), bytes=True)[:, :3] for name, count in SHADES.items()]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(shades).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(buffer).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
