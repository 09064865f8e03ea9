"""The comparisons of momentum blocks, on text and in operators, at sizes that take seconds."""

import dataclasses

import numpy as np
import pytest
from studies import momentum_operators, momentum_text

from jaxop import data
from jaxop.experiments import comparison, load_recipe, problems

pytestmark = pytest.mark.optax


@pytest.mark.study
def test_momentum_blocks_are_compared_on_text(tmp_path, capsys):
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog " * 60, np.uint8)
    task = dataclasses.replace(
        momentum_text.TASKS["softmax"], context=16, blocks=("none", "R2"), batch_size=4, layers=1
    )
    options = momentum_text.Comparison(seeds=(0,), steps=4, test_examples=8, run_dir=tmp_path)
    windows = data.text_windows(text, 16)
    losses = momentum_text.run("softmax", task, options, windows, windows)
    assert set(losses) == {"none", "R2"}
    assert all(0 < loss < 8 for values in losses.values() for loss in values)
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows[0].startswith("| softmax | parameters | nats per byte | difference to none |")
    assert rows[3].startswith("| R2 | ")
    assert momentum_text.interval([1.0, 2.0, 3.0]) == "2.0000 ± 2.4841"  # 4.303/√3


@pytest.mark.study
def test_momentum_blocks_are_compared_in_operators(tmp_path, monkeypatch, capsys):
    tiny = problems.ControlledOdeData(
        samples=8, valid_samples=2, test_samples=2, sampling="nodes=10", grids=("nodes=12",)
    )
    experiment = dataclasses.replace(load_recipe("cde_tno").experiment, data=tiny)
    monkeypatch.setattr(comparison, "seconds_per_step", lambda *_: 1.0)
    options = momentum_operators.Comparison(
        seeds=(0,), minutes=0.05, blocks=("none", "flow"), cache=tmp_path / "cache", run_dir=tmp_path
    )
    sizes = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8}
    errors = momentum_operators.run("cde", experiment, sizes, options)
    assert set(errors) == {"none", "flow"}
    assert all(np.isfinite(values).all() for values in errors.values())
    assert capsys.readouterr().out.splitlines()[-1].startswith("| flow | ")


def test_the_exact_flow_is_compared_with_a_tno_only():
    options = momentum_operators.Comparison(blocks=("none", "flow"))
    with pytest.raises(ValueError, match="--blocks: 'flow'"):
        momentum_operators.run("darcy", load_recipe("darcy_fano").experiment, {}, options)


@pytest.mark.parametrize("comparison", [momentum_text.Comparison, momentum_operators.Comparison])
def test_momentum_comparison_needs_its_reference(comparison):
    with pytest.raises(ValueError, match="--blocks must include 'none', to which differences are taken, got Y"):
        comparison(blocks=("Y",))
    with pytest.raises(ValueError, match=r"blocks='R3' is unknown: did you mean 'R2'\?"):
        comparison(blocks=("none", "R3"))
