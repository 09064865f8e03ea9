"""Labelled examples and windows of text."""

import numpy as np
import pytest

from jaxop import data


def test_every_token_is_predicted_once_from_those_before_it():
    tokens = np.random.default_rng(0).integers(0, 50, 103)
    windows = data.text_windows(tokens, 10)
    assert len(windows) == 10
    np.testing.assert_array_equal(windows.inputs.reshape(-1), tokens[:100])
    np.testing.assert_array_equal(windows.labels.reshape(-1), tokens[1:101])


def test_batches_hold_what_was_asked_for():
    examples = data.Examples(np.arange(12.0).reshape(6, 2), np.arange(6))
    batch = examples[np.asarray([4, 1])]
    assert batch.inputs.tolist() == [[8, 9], [2, 3]]
    assert batch.labels.tolist() == [4, 1] == batch.index.tolist()
    assert (batch.inputs.dtype, batch.labels.dtype) == (np.float32, np.int32)
    assert examples.take(slice(2, 4)).labels.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "message"),
    [
        (np.ones((3, 2)), np.ones(3), TypeError, "labels must be integers, got float64"),
        (np.ones((3, 2), complex), np.ones(3, int), TypeError, "inputs must be integers or real numbers"),
        (np.ones((3, 2)), np.ones(2, int), ValueError, r"got shapes \(3, 2\) and \(2,\)"),
        (np.ones((0, 2)), np.ones(0, int), ValueError, "inputs is empty"),
        (np.ones((3, 2)), np.asarray([0, -1, 2]), ValueError, r"labels\[1\] = -1"),
        (
            np.asarray([[1.0], [np.nan]]),
            np.asarray([0, 1]),
            ValueError,
            r"inputs must be finite, but inputs\[\(1, 0\)\] = nan",
        ),
    ],
)
def test_bad_examples(inputs, labels, error, message):
    with pytest.raises(error, match=message):
        data.Examples(inputs, labels)


@pytest.mark.parametrize("context", [0, 10])
def test_text_shorter_than_a_window(context):
    with pytest.raises(ValueError, match="context must lie between 1 and the 9 tokens"):
        data.text_windows(np.arange(10), context)
