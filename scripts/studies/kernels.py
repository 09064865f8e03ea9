"""Attention kernels side by side on real data, at equal parameters and steps.

    python scripts/studies/run.py kernels text      # State of the Union addresses, byte by byte: perplexity
    python scripts/studies/run.py kernels vowels    # the same text written out from its consonants: perplexity
    python scripts/studies/run.py kernels era       # which of four periods a passage of it is from: accuracy
    python scripts/studies/run.py kernels mnist     # accuracy
    python scripts/studies/run.py kernels cifar10   # accuracy

Every kernel is trained with every seed; the table shows mean ± standard deviation over the seeds. The models are small
and the training is short: these are comparisons, not records. Data: see real_data.py.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from flax import nnx

from jaxop import data, training, transformers
from jaxop._validation import check_name
from jaxop.data import Examples
from jaxop.experiments.comparison import check_options
from jaxop.experiments.settings import parameters
from jaxop.nn import (
    EuclideanDistanceConfig,
    ExpDotProductConfig,
    FourierIntegralConfig,
    GaussianConfig,
    IntegralAttentionConfig,
    IntersectionConfig,
    KernelConfig,
    LearnedFeaturesConfig,
    LinearConfig,
    QuadraticConfig,
    TruncatedExponentialConfig,
)
from studies.real_data import CACHE, addresses, cifar10, eras, fetch, mnist
from studies.results import About
from studies.table import print_header, print_row
from studies.trainings import Plan, train_with_seeds

TRAINED = (
    "It is trained with every kernel, at equal parameters and steps; only learned features have parameters of their "
    "own. The trainings are short, so these are comparisons and no records."
)
PERPLEXITY = (
    f"{TRAINED} The table shows the perplexity per byte on held-out addresses, mean ± standard deviation over the "
    "seeds: lower is better."
)
ACCURACY = "The table shows the accuracy {}, mean ± standard deviation over the seeds: higher is better."
IMAGES = (
    f"{TRAINED} {ACCURACY.format('on the test set')} Fourier kernels start from the published radius of 1 or from "
    '0.3. "fourier, published" has the published epsilon of 1e-6 in the sums of its rows, the others are exact.'
)
HEADS = (
    "The distance of heads is the mean distance between the outputs of the heads of a layer: where it is larger, heads "
    "differ more."
)
ABOUT = {
    "kernels-text": About(
        "Attention kernels in a language model",
        f"A causal language model reads the State of the Union addresses byte by byte. {PERPLEXITY} {HEADS}",
    ),
    "kernels-vowels": About(
        "Attention kernels in an encoder–decoder",
        "An encoder–decoder writes out the text of the State of the Union addresses from its consonants. "
        f"{PERPLEXITY} The distance of heads is not defined for this model.",
    ),
    "kernels-era": About(
        "Attention kernels in a classifier of texts",
        "A classifier names the quarter of the State of the Union addresses, by year, that a passage of 128 bytes is "
        f"from. {TRAINED} {ACCURACY.format('on held-out addresses')} {HEADS}",
    ),
    "kernels-mnist": About(
        "Attention kernels in a classifier of digits",
        f"A vision transformer classifies the digits of MNIST. {IMAGES} {HEADS}",
    ),
    "kernels-cifar10": About(
        "Attention kernels in a classifier of images",
        f"A vision transformer classifies the images of CIFAR-10. {IMAGES} {HEADS}",
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Task of a comparison: the model and its training.

    Attributes:
        model: "language", "encoder-decoder", "text classifier" or "image classifier".
        radius: initial radius of the Fourier kernels, as published for this kind of data.
        steps: training steps of each model.
        batch_size: examples per step.
        learning_rate: peak learning rate of all.
        width: channels of the model.
        heads: attention heads.
        layers: encoder layers.
        feedforward: hidden channels.
        context: tokens of a text window; images are cut into patches instead.
        patch: pixels along each side of a patch.
    """

    model: Literal["language", "encoder-decoder", "text classifier", "image classifier"]
    radius: float
    steps: int
    batch_size: int
    learning_rate: float = 2e-3
    width: int = 128
    heads: int = 8
    layers: int = 4
    feedforward: int = 256
    context: int = 128
    patch: int = 4


SMALL: dict[str, int] = {"width": 64, "heads": 4, "layers": 2, "feedforward": 128}

TASKS = {
    "text": Task("language", radius=2.0, steps=400, batch_size=16),
    "vowels": Task("encoder-decoder", radius=2.0, steps=400, batch_size=16, context=48, **SMALL),
    "era": Task("text classifier", radius=2.0, steps=400, batch_size=16, **SMALL),
    "mnist": Task("image classifier", radius=1.0, steps=500, batch_size=64, **(SMALL | {"layers": 3})),
    "cifar10": Task(
        "image classifier", radius=1.0, steps=500, batch_size=64, width=96, heads=6, layers=4, feedforward=192
    ),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Options of a comparison of kernels.

    Attributes:
        seeds: of parameters and batches; one training each.
        steps: training steps of each model; None takes those of the task.
        kernels: of "softmax", "fourier" (the published radius), "fourier, published" (with the epsilon of 1e-6, the
            others are exact), "fourier, R = 0.3", "gaussian", "distance", "intersection", "quadratic", "learned
            features", "linear", and "taylor 1" to "taylor 8" (softmax's kernel cut at that degree; odd ones clipped).
        test_examples: validation examples to judge by, from the start of the set.
        cache: where the packages are kept.
        run_dir: where the runs are kept.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    kernels: tuple[str, ...] = ("softmax", "fourier", "fourier, published", "fourier, R = 0.3")
    test_examples: int = 2000
    cache: Path = CACHE
    run_dir: Path = Path("runs/kernels")

    def __post_init__(self):
        check_options(self)
        for name in self.kernels:
            check_name(name, "kernels", kernel_choices(1.0))


def kernel_choices(radius: float) -> dict[str, KernelConfig]:
    """Returns the settings of every kernel by its name in the table, for a radius of the Fourier kernels."""
    return {
        "softmax": ExpDotProductConfig(),
        "fourier": FourierIntegralConfig(radius=radius),
        "fourier, published": FourierIntegralConfig(radius=radius, epsilon=1e-6),
        "fourier, R = 0.3": FourierIntegralConfig(radius=0.3),
        "gaussian": GaussianConfig(),
        "distance": EuclideanDistanceConfig(),
        "intersection": IntersectionConfig(),
        "quadratic": QuadraticConfig(),
        "learned features": LearnedFeaturesConfig(),
        "linear": LinearConfig(),
    } | {f"taylor {p}": TruncatedExponentialConfig(degree=p, clip=p % 2 == 1) for p in range(1, 9)}


def load(name: str, task: Task, cache: Path) -> tuple[Examples, Examples]:
    """Returns the training and the validation set of a task."""
    if name == "mnist":
        return mnist(fetch("mnist", cache))
    if name == "cifar10":
        return cifar10(fetch("cifar10", cache))
    folder = fetch("sotu", cache)
    if name == "era":
        return eras(folder, task.context)
    train, valid = (data.text_windows(text, task.context) for text in addresses(folder))
    return (from_consonants(train), from_consonants(valid)) if name == "vowels" else (train, valid)


START = 1
"""The token before a text, which no text contains."""


def from_consonants(windows: Examples) -> Examples:
    """Returns pairs of a text without its vowels, filled up with 0, and the text itself, from windows of text."""
    texts = windows.inputs
    source = np.zeros_like(texts)
    for row, text in zip(source, texts, strict=True):
        left = text[~np.isin(text, np.frombuffer(b"aeiouAEIOU", np.uint8))]
        row[: left.size] = left
    start = np.full_like(texts[:, :1], START)
    return Examples(np.concatenate([source, start, texts[:, :-1]], axis=1), texts.astype(np.int32))


Model = (
    transformers.SequenceTransformer
    | transformers.SequenceClassifier
    | transformers.EncoderDecoderTransformer
    | transformers.VisionTransformer
)


def build(task: Task, choice: KernelConfig, train: Examples, seed: int) -> Model:
    """Returns the model of a task with one of the kernels, for examples like these."""
    rngs = nnx.Rngs(seed)
    sizes: dict[str, Any] = {
        "width": task.width,
        "heads": task.heads,
        "layers": task.layers,
        "feedforward": task.feedforward,
        "attention": IntegralAttentionConfig(kernel=choice),
    }
    if task.model == "language":
        return transformers.SequenceTransformer(
            transformers.SequenceTransformerConfig(256, task.context, **sizes), rngs=rngs
        )
    classes = int(train.labels.max()) + 1
    if task.model == "text classifier":
        config = transformers.SequenceClassifierConfig(256, task.context, classes=classes, **sizes)
        return transformers.SequenceClassifier(config, rngs=rngs)
    if task.model == "encoder-decoder":
        config = transformers.EncoderDecoderTransformerConfig(256, task.context, task.context, padding=0, **sizes)
        return transformers.EncoderDecoderTransformer(config, rngs=rngs)
    side, channels = train.inputs.shape[1], train.inputs.shape[-1]
    config = transformers.VisionTransformerConfig(side, channels, classes, patch=task.patch, **sizes)
    return transformers.VisionTransformer(config, rngs=rngs)


class Outcome(NamedTuple):
    """Outcome of one training.

    Attributes:
        measure: perplexity or accuracy on the validation set.
        distance: the mean distance of the heads; NaN for an encoder–decoder, where it is not defined.
        seconds: of one training step.
    """

    measure: float
    distance: float
    seconds: float


def run(name: str, task: Task, options: Comparison, train: Examples, test: Examples) -> dict[str, list[Outcome]]:
    """Trains every kernel with every seed, prints the table, and returns the outcome of each seed by kernel."""
    test = test.take(slice(options.test_examples))
    plan = Plan(name, task.steps, task.batch_size, task.learning_rate, options.seeds, options.run_dir)
    is_text = task.model in ("language", "encoder-decoder")
    print_header(name, "parameters", "perplexity" if is_text else "accuracy", "distance of heads", "s / step")
    choices, outcomes = kernel_choices(task.radius), {}
    for label in options.kernels:
        outcomes[label], count = [], 0
        make = functools.partial(build, task, choices[label], train)
        for result in train_with_seeds(make, train, plan, label):
            count = parameters(result.model)
            scores = training.score(result.model, test, batch_size=task.batch_size)
            measure = scores.perplexity if is_text else float(np.mean(scores.accuracy))
            apart = head_distance(result.model, test[: task.batch_size].inputs)
            outcomes[label].append(Outcome(measure, apart, result.seconds / task.steps))
        mean, spread = Outcome(*np.mean(outcomes[label], axis=0)), Outcome(*np.std(outcomes[label], axis=0))
        digits = 3 if is_text else 4
        measure = f"{mean.measure:.{digits}f} ± {spread.measure:.{digits}f}"
        heads = f"{mean.distance:.3f} ± {spread.distance:.3f}" if np.isfinite(mean.distance) else ""
        print_row(label, f"{count:,}", measure, heads, f"{mean.seconds:.3f}")
    return outcomes


def head_distance(model: Model, inputs: jax.Array) -> float:
    """The mean distance of the heads; NaN for an encoder–decoder, where it is not defined."""
    if isinstance(model, transformers.EncoderDecoderTransformer):
        return float("nan")
    return float(np.mean(jax.jit(lambda m, x: m.head_distances(x))(model, inputs)))


Name = Literal["text", "vowels", "era", "mnist", "cifar10"]


def main(name: tyro.conf.Positional[Name], options: Comparison = Comparison()) -> None:
    """Compares kernels on the task NAME.

    Args:
        name: the task.
        options: seeds, steps, kernels and directories.
    """
    task = TASKS[name]
    if options.steps is not None:
        task = dataclasses.replace(task, steps=options.steps)
    run(name, task, options, *load(name, task, options.cache))
