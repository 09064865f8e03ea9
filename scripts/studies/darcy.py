"""Darcy flow at equal training time, one set of parameters on three grids.

    python scripts/studies/run.py darcy --minutes 5                  # four operators, about 25 minutes on two cores
    python scripts/studies/run.py darcy --operators schwarz tno      # two-level Schwarz attention, and the global one
    python scripts/studies/run.py darcy --operators fno flare transolver "transolver, spectral"
    python scripts/studies/run.py darcy --minutes 1 --operators fano fno --seeds 0 1 2

Every operator of the ready-made Darcy experiments, and some latent operators, are trained for the same time (the steps
that the fastest step allows; compilation, evaluation and saving not counted) on 1000 two-valued fields at 64² (TNO, its
Schwarz form and the latent operators: 32²), in the relative L2 norm. The learning rate follows a cosine over these
steps. Prints a Markdown table.
"""

import dataclasses
from pathlib import Path

from jaxop import experiments, nn, operators, training
from jaxop._validation import check_name
from jaxop.experiments.comparison import Contender, check_options, compare
from studies.results import About

ABOUT = {
    "darcy": About(
        "Neural operators on Darcy flow at equal training time",
        "Every operator is trained for the same time on 1000 two-valued fields at 64² nodes, the TNO, its Schwarz "
        "form and the latent operators at 32². Compilation, evaluation and saving are not counted. One set of "
        "parameters is then tested on three grids. The last columns are mean relative L2 errors on 100 fields, for the "
        "TNO at 128² on 8 fields. "
        "Equal errors in a row mean that the parameters carry over to other grids.",
    ),
}

GRIDS = (32, 64, 128)
READY_MADE = [name.removeprefix("darcy_") for name in experiments.ready_made() if name.startswith("darcy_")]
LATENT: dict[str, tuple[str, nn.SpectralIntegralConfig | None]] = {
    "flare": ("flare", None),
    "transolver": ("transolver", None),
    "flare, spectral": ("flare", nn.SpectralIntegralConfig()),
    "transolver, spectral": ("transolver", nn.SpectralIntegralConfig()),
}
"""Latent operators: the preset, and the local integral before its scores and values."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Equal-time training of several operators.

    Attributes:
        minutes: training time of each operator.
        operators: which ones.
        seeds: of parameters and batches; one training each.
        batch_size: samples per step.
        learning_rate: peak learning rate of all.
        test_samples: fields of the test set.
        test_samples_tno: fields on which the TNO, quadratic in the nodes, is tested on the 128² grid.
        run_dir: where the runs are kept.
    """

    minutes: float = 5.0
    operators: tuple[str, ...] = ("fano", "vitno", "tno", "fno")
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 4
    learning_rate: float = 2e-3
    test_samples: int = 100
    test_samples_tno: int = 8
    run_dir: Path = Path("runs/darcy")

    def __post_init__(self):
        check_options(self)
        for name in self.operators:
            check_name(name, "operators", (*READY_MADE, *LATENT))


def contender(name: str, options: Comparison) -> Contender:
    """The operator of a ready-made experiment, or a latent operator of the width of the TNO."""
    default = experiments.load_recipe(f"darcy_{'tno' if name in LATENT else name}").experiment
    config = default.model
    if name in LATENT:
        preset, local = LATENT[name]
        make = getattr(operators.LatentNeuralOperatorConfig, preset)
        config = make(1, 1, dim=2, width=64, heads=4, layers=4, local=local)
    assert isinstance(config, operators.OperatorConfig)
    sets = dataclasses.replace(default.data, test_samples=options.test_samples, grids=GRIDS).load(default.cache)
    assert isinstance(sets, experiments.Sets)
    tests = dict(sets.test)
    if name == "tno":
        tests["128²"] = tests["128²"].take(slice(options.test_samples_tno))
    return Contender(lambda seed: experiments.build(config, sets.train, seed=seed), sets.train, tests)


def main(options: Comparison = Comparison()) -> None:
    """Trains and tests one operator after the other."""
    settings = training.TrainingConfig(
        batch_size=options.batch_size, learning_rate=options.learning_rate, loss="l2", weight_decay=1e-4
    )
    compare(
        {name: contender(name, options) for name in options.operators},
        settings,
        seconds=60 * options.minutes,
        seeds=options.seeds,
        run_dir=options.run_dir,
        task="Darcy",
    )
