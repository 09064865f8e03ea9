"""An experiment on samples that have nodes of their own, from training to figures."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from jaxop import data, domains, experiments, nn, training
from jaxop.experiments import comparison
from jaxop.experiments.plots import plot_predictions
from jaxop.experiments.problems import Sets, grid_name
from jaxop.experiments.settings import prepared
from tests.data.ragged_cases import cloud, functions, pairs
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


def test_operators_that_need_one_grid_are_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match=r"needs a grid .*PointCloud; the TransformerNeuralOperator takes any domain"):
        experiments.train(experiment(tmp_path / "fno", "fno"))
    schwarz = nn.SchwarzAttentionConfig(subdomains=2)
    config, _ = experiment(tmp_path, "tno", heads=2, schwarz=schwarz).model.for_data(data.RaggedSamples(pairs()))
    with pytest.raises(NotImplementedError, match=r"training \(9–31 nodes\): each sample has its own .*LatentNeuralOp"):
        prepared({"training": data.RaggedSamples(pairs())}, config)


def test_the_box_of_a_latent_grid_holds_the_nodes_of_all_samples():
    clouds = [domains.monte_carlo(cloud(9).points + np.float32(shift)) for shift in (0, 3, -5)]
    samples = data.RaggedSamples([functions(one) for one in clouds])
    points = np.concatenate([one.points for one in clouds])
    np.testing.assert_array_equal(samples.corners, [points.min(axis=0), points.max(axis=0)])
    settings = experiments.OperatorSettings("latent_grid", width=8, heads=2, grid=4)
    config, _ = settings.for_data(samples)
    assert prepared({"all": samples}, config)["all"] is samples
    narrow, _ = settings.for_data(samples.take([0]), [samples.take([1])])
    with pytest.raises(ValueError, match=r"more \(9 nodes\): the nodes reach from -\S+ to .* along axis 0, outside"):
        prepared({"more": samples}, narrow)


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
