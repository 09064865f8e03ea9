"""Trains the models that the package brings along, and writes them as folders with cards.

python scripts/ready_models.py                          all of them, into jaxop/models
python scripts/ready_models.py darcy_lognormal_tno --to my_models

They are small, so that all of them together take less than 5 MB. `jaxop.from_pretrained(NAME)` loads one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxop import operators
from jaxop._validation import check_name
from jaxop.experiments import DarcyData, Experiment, export_model, train
from jaxop.training import TrainingConfig

FOLDER = Path(__file__).parents[1] / "jaxop" / "models"

FNO = operators.FourierNeuralOperatorConfig(1, 1, width=16, layers=4, modes=8, reference=64)
FANO = operators.FourierAttentionNeuralOperatorConfig(
    1, 1, width=16, heads=4, layers=4, feedforward=64, patches=2, modes=6, reference=64
)
TNO = operators.TransformerNeuralOperatorConfig(
    1, 1, dim=2, width=64, heads=2, layers=4, feedforward=128, activation="gelu_tanh"
)

TWO_VALUED = DarcyData()
LOGNORMAL = DarcyData(coefficient="lognormal")
COARSE = DarcyData(coefficient="lognormal", resolution=24, grids=(16, 24, 32, 64, "points=3000"))


def training(steps: int, *, learning_rate: float = 2e-3, weight_decay: float = 1e-4) -> TrainingConfig:
    """Returns the settings that all trainings share."""
    return TrainingConfig(
        steps=steps,
        batch_size=4,
        learning_rate=learning_rate,
        warmup_steps=steps // 20,
        weight_decay=weight_decay,
        eval_every=steps // 10,
        checkpoint_every=steps // 10,
    )


MODELS = {
    "darcy_two_valued_fno": Experiment(TWO_VALUED, FNO, training(16_000)),
    "darcy_two_valued_fano": Experiment(TWO_VALUED, FANO, training(12_000)),
    "darcy_lognormal_fno": Experiment(LOGNORMAL, FNO, training(16_000)),
    "darcy_lognormal_tno": Experiment(COARSE, TNO, training(4_000, learning_rate=1.5e-3, weight_decay=0.0)),
}


FIELDS = {
    "two-valued": "a two-valued coefficient a (3 and 12)",
    "lognormal": "a lognormal coefficient a",
}


def card(data: DarcyData, model: operators.OperatorConfig) -> dict[str, str]:
    """Returns what the card says beside the record of the run."""
    name = operators.model_of(model).name.upper()
    where = "grids of equal weights" if model.acts_on_grids else "any nodes"
    return {
        "What it does": f"Darcy flow by {name}: from {FIELDS[data.coefficient]} to the pressure u, on {where}.\n\n"
        "The equation is −∇·(a∇u) = 1 on the unit square, with u = 0 on its sides. The model has learned fields a as "
        f"`jaxop.data.darcy(..., coefficient={data.coefficient!r})` draws them; on others it may be wrong.",
        "Licence": "MIT, like jaxop.",
    }


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODELS)} (default: all)")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the models (default: jaxop/models)")
    given = parser.parse_args(arguments)
    for name in given.names:
        check_name(name, "NAME", MODELS)
    for name in given.names or MODELS:
        experiment = MODELS[name]
        run = train(experiment, name=name)
        about = card(experiment.data, experiment.model)
        sys.stdout.write(f"{export_model(run, given.to / name, card=about)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
