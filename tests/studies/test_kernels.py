"""The comparison of kernels, on a few kilobytes made here."""

import dataclasses
import types

import numpy as np
import pytest
from studies import kernels, real_data

from jaxop import data, training

pytestmark = pytest.mark.optax


@pytest.mark.study
@pytest.mark.parametrize("name", ["text", "mnist"])
def test_recipes_run_on_a_few_kilobytes(name, tmp_path, capsys):
    task = dataclasses.replace(
        kernels.TASKS[name], steps=20, batch_size=8, width=16, heads=2, layers=1, feedforward=16, context=8
    )
    if name == "text":
        tokens = np.frombuffer(b"abcdefg " * 200, np.uint8)
        train = test = data.text_windows(tokens, task.context)
    else:
        labels = np.arange(64) % 2
        images = np.broadcast_to(labels[:, None, None, None], (64, 8, 8, 1)).astype(np.float32)
        train = test = data.Examples(images, labels)
    # every kernel on texts, two seeds on images
    seeds, names = (
        ((0,), ["softmax", "fourier", "fourier, published"]) if name == "text" else ((0, 1), ["softmax", "fourier"])
    )
    options = kernels.Comparison(seeds=seeds, kernels=tuple(names), run_dir=tmp_path)
    outcomes = kernels.run(name, task, options, train, test)
    assert list(outcomes) == names
    assert all(len(seeded) == len(seeds) and np.isfinite(seeded).all() for seeded in outcomes.values())
    for seeded in outcomes.values():
        measure = np.mean([outcome.measure for outcome in seeded])
        assert measure < 100 if name == "text" else measure > 0.9
    assert "± " in capsys.readouterr().out


@pytest.mark.thorough
def test_a_comparison_ends_with_the_run_that_was_terminated(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_, **__: types.SimpleNamespace(stopped="terminated"))
    images = data.Examples(np.zeros((8, 8, 8, 1), np.float32), np.arange(8) % 2)
    options = kernels.Comparison(seeds=(0,), kernels=("softmax",), run_dir=tmp_path)
    with pytest.raises(SystemExit, match=r"terminated; .*mnist-softmax-0.* holds what was trained"):
        kernels.run("mnist", kernels.TASKS["mnist"], options, images, images)


def test_consonants_are_what_is_left_of_a_text():
    windows = data.text_windows(np.frombuffer(b"A text on areas.", np.uint8), 7)
    pairs = kernels.from_consonants(windows)
    assert pairs.inputs[0].tobytes() == b" txt \0\0\x01A text"
    assert bytes(pairs.labels[0].astype(np.uint8)) == b"A text "


@pytest.mark.study
@pytest.mark.parametrize("name", ["vowels", "era"])
def test_texts_are_written_and_dated(name, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for year in range(1990, 2001):
        (folder / f"{year}.txt").write_bytes(b"jumps over dogs " * 8 if year < 1996 else b"a quick brown fox " * 8)
    task = dataclasses.replace(
        kernels.TASKS[name], steps=30, batch_size=8, width=16, heads=2, layers=1, feedforward=16, context=16
    )
    if name == "era":
        train, test = real_data.eras(tmp_path, 16)
        assert sorted(set(train.labels.tolist())) == [0, 1, 2, 3]
        assert set(test.labels.tolist()) == {3}
    else:
        train = test = kernels.from_consonants(data.text_windows(real_data.addresses(tmp_path)[0], 16))
    options = kernels.Comparison(seeds=(0,), kernels=("softmax",), run_dir=tmp_path / "runs")
    (outcome,) = kernels.run(name, task, options, train, train)["softmax"]
    measure = outcome.measure
    assert np.isnan(outcome.distance) == (name == "vowels")
    assert measure > 0.4 if name == "era" else measure < 100  # by chance 0.25 and 256


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match=r"kernels='fourier R=0\.3' is unknown: did you mean 'fourier, R = 0\.3'"):
        kernels.Comparison(kernels=("fourier R=0.3",))
