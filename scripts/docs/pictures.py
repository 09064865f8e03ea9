"""Draws images/same_weights.png from a run of the demo: one function on four grids and on scattered points.

python scripts/docs/pictures.py                  # trains the demo first
python scripts/docs/pictures.py runs/demo-...    # a run that exists
"""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jaxop import data, experiments, training
from jaxop.experiments import report

DEMO = experiments.load_recipe("demo").experiment
IMAGE = Path(__file__).parent / "images" / "same_weights.png"
ROWS = ("coefficient a", "solution u", "prediction", "|prediction − u|")
TITLE = "Darcy flow −∇·(a∇u) = 1, dimensionless: the same weights on four grids and at scattered points"
DPI = 150
SHADES = {"viridis": 116, "magma": 116, "gray": 24}  # of the palette, 256 in all


def main(arguments: list[str]) -> None:
    """Draws the picture from the run that the arguments name, or from a new one."""
    directory = Path(arguments[0]) if arguments else experiments.train(DEMO, name="demo")
    save(same_weights(training.load_run(directory)), IMAGE)


def same_weights(run: training.Run) -> Figure:
    """Returns a column for every test set, with the sample that has the median error on the training grid."""
    sets = experiments.recorded_problem(run).load(DEMO.cache).test
    trained_on = f"{run.config['resolution']:.0f}²"
    model = run.model()
    errors = {label: training.evaluate(model, samples, batch_size=4).l2 for label, samples in sets.items()}
    sample = report.middle(errors[trained_on])
    columns = {}
    for label, samples in sets.items():
        one = samples.take([sample])
        heading = f"{heading_of(label, one, label == trained_on)}\nrelative L2: {100 * errors[label][sample]:.2f} %"
        columns[heading] = one, training.predict(model, one)
    return experiments.plot_on_domains(columns, labels=ROWS, title=TITLE)


def heading_of(label: str, samples: data.Samples, is_training_grid: bool) -> str:
    """Returns the name of a column."""
    if label.startswith("points"):
        return f"{samples.domain.size:,} points"
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
