"""An experiment on samples that have nodes of their own, from training to figures."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, experiments, nn, training
from jaxop.experiments import comparison
from jaxop.experiments.plots import plot_predictions
from jaxop.experiments.sets import Sets, grid_name
from jaxop.experiments.settings import prepared
from tests.data.ragged_cases import cloud, curve, pairs
from tests.training.ragged_cases import Mean

SHORT = training.TrainingConfig(steps=3, batch_size=2, warmup_steps=1)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Functions on clouds of their own."""

    name: ClassVar[str] = "shapes"

    count: int = 8

    def load(self, cache: Path) -> Sets:
        """See `Problem`."""
        whole = data.RaggedSamples(pairs())
        return Sets(whole.take(slice(self.count)), {"valid": whole.take([8, 9])}, {"test": whole.take([1, 0, 9])})

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, data.RaggedSamples]:
        """See `Problem`."""
        return {grid: data.RaggedSamples(pairs(sizes=(int(grid), 12))) for grid in grids}


def experiment(directory, operator="latent", **settings):
    settings = {"width": 8, "layers": 1} | settings
    model = experiments.OperatorSettings(operator, **settings)
    return experiments.Experiment(Shapes(), model, SHORT, run_dir=directory)


@pytest.mark.thorough
def test_an_operator_is_trained_evaluated_and_drawn(tmp_path, capsys):
    run = experiments.train(experiment(tmp_path / "run", heads=2), name="shapes")
    printed = capsys.readouterr().out
    assert "8 samples on 9–31 nodes" in " ".join(printed.split())
    assert "8 samples in 2 buckets" in printed
    assert "warning" not in printed  # pictures were drawn
    (row,) = json.loads((run / "evaluation" / "test.json").read_text())["sets"]
    assert (row["grid"], row["samples"], row["rel_h1"]) == ("9–30 nodes", 3, None)
    figures = {path.stem for path in (run / "figures").glob("*.png")}
    assert figures == {"test-test", "test-errors", "learning-curves"}
    found = training.load_run(run)
    model, test = found.model(), Shapes().load(tmp_path).test["test"]
    errors = training.evaluate(model, test).l2
    assert row["rel_l2"] == pytest.approx(errors.mean(), rel=1e-5)
    assert row["worst_sample"] == int(errors.argmax())


def thinned(tmp_path):
    data.save(tmp_path / "shapes.npz", data.RaggedSamples(pairs()))
    return experiments.FileData(tmp_path / "shapes.npz", random_nodes=8)


def test_files_are_thinned_for_training_only(tmp_path, unchecked):
    sets = thinned(tmp_path).load(tmp_path)
    assert sets.drawn[np.arange(2)].inputs.shape[1] == 8
    assert sets.valid["held out"].sample(0).domain.size > 8
    with pytest.raises(ValueError, match=r"--data\.random-nodes must be at least 1, got 0"):
        dataclasses.replace(thinned(tmp_path), random_nodes=0).load(tmp_path)


@pytest.mark.thorough
def test_a_step_sees_random_nodes(tmp_path, capsys):
    problem = thinned(tmp_path)
    model = experiments.OperatorSettings("latent", width=8, heads=2, layers=1)
    whole = experiments.Experiment(problem, model, SHORT, run_dir=tmp_path / "whole")
    run = training.load_run(experiments.train(whole))
    assert " nodes, 8 random nodes in a step" in " ".join(capsys.readouterr().out.split())
    assert run.config["data"]["random_nodes"] == 8
    part = dataclasses.replace(whole, run_dir=tmp_path / "part")
    experiments.train(dataclasses.replace(part, training=dataclasses.replace(SHORT, time_limit_s=1e-6)))
    assert training.load_run(part.run_dir).checkpoints.latest < SHORT.steps
    experiments.train(dataclasses.replace(part, resume=True))
    ends = [nnx.state(training.load_run(tmp_path / name).model(checkpoint="last"), nnx.Param) for name in ("whole", "part")]
    chex.assert_trees_all_equal(*ends)
    all_nodes = dataclasses.replace(problem, random_nodes=None)
    with pytest.raises(ValueError, match=r"random_nodes"):
        experiments.train(dataclasses.replace(part, data=all_nodes, resume=True))


def test_operators_that_need_one_grid_are_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match=r"needs a grid .*PointCloud; the TransformerNeuralOperator takes any domain"):
        experiments.train(experiment(tmp_path / "fno", "fno"))
    schwarz = nn.SchwarzAttentionConfig(subdomains=2)
    config, _ = experiment(tmp_path, "tno", heads=2, schwarz=schwarz).model.for_data(data.RaggedSamples(pairs()))
    with pytest.raises(NotImplementedError, match=r"training \(9–31 nodes\): each sample has its own .*LatentNeuralOp"):
        prepared({"training": data.RaggedSamples(pairs())}, config)


def test_the_box_of_a_latent_grid_holds_the_nodes_of_all_samples():
    model = experiments.OperatorSettings("latent_grid", width=4, heads=2, layers=1, grid=4)
    samples = data.RaggedSamples(pairs(curve))
    moved = [dataclasses.replace(one, domain=domains.from_samples(one.domain.points[:, 0] + 1)) for one in pairs(curve)]
    config, _ = model.for_data(samples, [data.RaggedSamples([pairs(curve)[0], *moved])])
    assert (config.lower[0] < 0) & (config.upper[0] > 1.9)
    config, _ = model.for_data(samples)
    ends = np.concatenate([one.domain.points for one in samples.samples])
    assert config.lower[0] < ends.min() < ends.max() < config.upper[0]
    np.testing.assert_array_equal(samples.corners, [[ends.min()], [ends.max()]])
    with pytest.raises(ValueError, match=r"new \(9–31 nodes\): the nodes reach from .* along axis 0, outside the box"):
        prepared({"new": data.RaggedSamples([pairs(curve)[0], *moved])}, config)


@pytest.mark.thorough
def test_the_time_of_a_step_is_the_mean_over_the_batches_of_an_epoch(monkeypatch):
    """Where a step on few nodes takes half a second, and one on many nodes three times as long."""
    samples = data.RaggedSamples(pairs(sizes=(9, 9, 9, 9, 30, 31)))
    clock, last = [0.0], []

    def seconds():
        clock[0] += {31: 1.5, 9: 0.5}[last[-1].inputs.shape[1]]
        return clock[0]

    monkeypatch.setattr(jax, "device_put", lambda batch: last.append(batch) or batch)
    monkeypatch.setattr(comparison.time, "perf_counter", seconds)
    assert comparison.seconds_per_step(Mean(), samples, SHORT) == pytest.approx((2 * 0.5 + 1.5) / 3)


def test_figures_show_every_sample_on_its_own_nodes():
    samples = data.RaggedSamples(pairs(at=lambda i: cloud(12 + i)))
    few = samples.take([0, 3])
    figure = plot_predictions(few, [sample.targets + 1 for sample in few.samples])
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes[:8]] == [9, 12, 12, 12, 28, 15, 15, 15]
    with pytest.raises(ValueError, match=r"predictions must have the targets' shape \[\(12, 1\), \(15, 1\)\], got \(2"):
        plot_predictions(few, np.zeros((2, 12, 1)))
    assert (grid_name(few), grid_name(few.take([0]))) == ("12–15 nodes", "12 nodes")
