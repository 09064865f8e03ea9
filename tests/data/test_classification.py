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
        (
            np.arange(3).astype("m8[s]"),
            np.ones(3, int),
            TypeError,
            "inputs must be integers or real numbers, got timedelta",
        ),
        (np.ones((3, 2)), np.arange(3).astype("m8[s]"), TypeError, "labels must be integers, got timedelta64"),
        (np.ma.masked_array(np.ones((2, 1)), [[0], [1]]), np.ones(2, int), TypeError, "inputs must hold numbers only"),
        (
            np.ones((2, 1)),
            np.ma.masked_array([0, 1], [0, 1]),
            TypeError,
            "labels must hold numbers only, but 1 of its 2",
        ),
        ([[1], [1, 2]], np.ones(2, int), ValueError, "inputs must be an array, got rows of different lengths"),
        (np.ones((3, 2)), np.asarray([0, -1, 2]), ValueError, r"labels\[1\] = -1"),
        (
            np.asarray([[1.0], [np.nan]]),
            np.asarray([0, 1]),
            ValueError,
            r"inputs must be finite, but inputs\[\(1, 0\)\] = nan",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_examples(inputs, labels, error, message):
    with pytest.raises(error, match=message):
        data.Examples(inputs, labels)


@pytest.mark.parametrize("context", [0, 10])
def test_text_shorter_than_a_window(context):
    with pytest.raises(ValueError, match="context must lie between 1 and the 9 tokens"):
        data.text_windows(np.arange(10), context)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("tokens", "context", "message"),
    [
        (np.arange(10), 2.5, r"context must be an integer, got 2\.5"),
        (np.arange(10), "2", "context must be an integer, got '2'"),
        (np.arange(10).astype("m8[s]"), 2, "tokens must be one row of integers, got timedelta64"),
        (np.ma.masked_array(np.arange(10), np.arange(10) == 3), 2, "tokens must hold numbers only, but 1 of its 10"),
    ],
)
def test_text_of_the_wrong_kind(tokens, context, message):
    with pytest.raises(TypeError, match=message):
        data.text_windows(tokens, context)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([6], IndexError, r"indices\[0\] = 6 is out of range: there are 6 examples"),
        (3, TypeError, r"must be a slice or a sequence of integers.* examples\[\[i\]\]"),
        ([1.5], TypeError, "must be a slice or a sequence of integers"),
        (np.ones(6, bool), TypeError, "must be a slice or a sequence of integers"),
    ],
)
def test_bad_numbers_of_examples(indices, error, message):
    examples = data.Examples(np.arange(12.0).reshape(6, 2), np.arange(6))
    for choose in (examples.__getitem__, examples.take):
        with pytest.raises(error, match=message):
            choose(indices)
    with pytest.raises(ValueError, match="indices do not select any of the 6 examples"):
        examples.take([])
