"""The comparison of kernel machines on ratings made here."""

import numpy as np
import pytest
from studies import machines, real_data


@pytest.fixture
def ratings():
    """A user likes films like himself, by features of both."""
    rng = np.random.default_rng(0)
    users, films = rng.normal(size=(24, 3)).astype(np.float32), rng.normal(size=(20, 2)).astype(np.float32)
    stars = 3 + 1.5 * np.tanh(users[:, :2] @ films[:, ::-1].T)
    rows, columns = (a.ravel() for a in np.indices(stars.shape))
    kept = rng.random(rows.size) < 0.6
    return real_data.Ratings(users, films, rows[kept], columns[kept], stars.ravel()[kept].astype(np.float32))


@pytest.mark.study
def test_machines_are_compared_on_all_splits(ratings, capsys):
    methods = {name: method for name, method in machines.METHODS.items() if "machine" in name or "same" in name}
    free = {"width": (0.1,), "penalty": (0.1,)}
    methods = {n: (m, free | ({"identity": (1.0,)} if "identity" in f else {})) for n, (m, f) in methods.items()}
    options = machines.Comparison(seeds=(0,), landmarks=30)
    errors = machines.run(ratings, options, methods)
    assert set(errors) == set(machines.SPLITS)
    spread = ratings.ratings.std()
    assert errors["pairs"]["asymmetric machine, features"][0] < 0.5 * spread
    assert all(0 < values[0] < 1.5 * spread for table in errors.values() for values in table.values())
    assert "| product machine, features and identity |" in capsys.readouterr().out


def test_a_number_is_chosen_on_ratings_held_out_of_the_training_set(ratings):
    used = []

    def method(ratings, train, options, guess):
        used.append((guess, len(train.ratings)))
        return lambda held_out: np.full(len(held_out.ratings), guess)

    errors = machines.run(
        ratings,
        machines.Comparison(seeds=(0, 1), splits=("pairs",)),
        {"constant": (method, {"guess": (1.0, 3.0)})},
    )
    assert [guess for guess, _ in used] == 2 * [1.0, 3.0, 3.0]
    assert used[0][1] < used[2][1] < len(ratings.ratings)
    assert errors["pairs"]["constant"][0] < 2


@pytest.mark.parametrize("split", machines.SPLITS)
def test_what_is_held_out_is_new(split, ratings):
    kept, out = machines.hold_out(ratings, split, 0.3, 0, np.arange(len(ratings.ratings)))
    assert sorted([*kept, *out]) == list(range(len(ratings.ratings)))
    if split == "new users":
        assert not set(ratings.rows[kept]) & set(ratings.rows[out])
    if split == "new films":
        assert not set(ratings.columns[kept]) & set(ratings.columns[out])


def test_bad_split():
    with pytest.raises(ValueError, match=r"splits='users' is unknown: did you mean 'new users'\?"):
        machines.Comparison(splits=("users",))
