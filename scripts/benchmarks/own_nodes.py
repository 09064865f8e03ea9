"""Training steps on samples of ten thousand nodes of their own, for every operator that takes any nodes."""

import numpy as np
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import scratch
from benchmarks.timing import median_seconds
from benchmarks.training_step import TrainingStep
from jaxop import data, domains, experiments, operators, training

ABOUT = {
    "own-nodes": About(
        "Training steps on samples with nodes of their own",
        "One training step on a batch of samples that each have their own random nodes in the unit square, padded to "
        "a common number. The operators have 64 channels, 4 heads and 4 layers; latent operators have 64 latents, and "
        "the latent grid has 32² nodes with an FNO on them. The last rows train on random subsets of the nodes, "
        "another one in every step. Scratch is the temporary memory of the step.",
    ),
}


def configs(train: data.RaggedSamples) -> dict[str, operators.OperatorConfig]:
    """Returns the operators by name."""
    inputs, outputs, dim = train.in_channels, train.out_channels, train.dim
    latent = operators.LatentNeuralOperatorConfig
    settings = experiments.OperatorSettings("latent_grid", width=64, heads=4, layers=4, grid=32)
    return {
        "TNO": operators.TransformerNeuralOperatorConfig(inputs, outputs, dim, width=64, heads=4, layers=4),
        "FLARE": latent.flare(inputs, outputs, dim, width=64, heads=4, layers=4),
        "Transolver": latent.transolver(inputs, outputs, dim, width=64, heads=4, layers=4),
        "latent grid": settings.for_data(train)[0],
    }


def main(nodes: int = 10_000, subset: int = 1000, batch_size: int = 4, repeats: int = 5) -> None:
    """Prints a row per operator.

    Args:
        nodes: largest number of nodes of a sample; the smallest is 0.9 times as large.
        subset: number of random nodes in the last rows.
        batch_size: samples in a step.
        repeats: measured steps; one for the TNO, whose cost is quadratic in the nodes.
    """
    train = samples(nodes, batch_size)
    settings = training.TrainingConfig(batch_size=batch_size)
    index = np.arange(batch_size)
    found = configs(train)
    print_header("operator", "nodes in a step", "step", "samples per second", "scratch")
    for source, names in ((train, found), (data.RandomNodes(train, subset), ("FLARE", "Transolver"))):
        batch = source[index]
        for name in names:
            step = TrainingStep(experiments.build(found[name], train, seed=0), batch, settings)
            seconds = median_seconds(step, 1 if name == "TNO" else repeats)  # a minute for ten thousand nodes
            count = f"{batch_size} × {batch.inputs.shape[1]:,}"
            print_row(name, count, f"{seconds:.2f} s", f"{batch_size / seconds:.2g}", scratch(step.program))


def samples(nodes: int, count: int) -> data.RaggedSamples:
    """Returns samples of a smooth function and its square on random nodes."""
    random, found = np.random.default_rng(0), []
    for size in np.linspace(0.9 * nodes, nodes, count).astype(int):
        points = random.random((size, 2), np.float32)
        u = np.sin(random.normal() + 5 * points[:, :1])
        found.append(data.Sample(u, u**2, domains.monte_carlo(points)))
    return data.RaggedSamples(found, max_buckets=1)
