import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import _validation, data, domains


def functions(count=6, nodes=8, channels=2, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((count, nodes, channels)).astype(dtype)


class OnFile:
    """Reads like an HDF5 dataset: slices or strictly increasing indices, and remembers what was asked."""

    def __init__(self, array):
        self._array, self.reads = array, []
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index):
        self.reads.append(index)
        if not isinstance(index, slice):
            assert (np.diff(index) > 0).all()
        return self._array[index]


@pytest.fixture
def grid():
    return domains.interval(8)


@pytest.fixture
def stacked():
    return jax.vmap(domains.from_samples)(jnp.cumsum(jnp.ones((6, 8)) + jnp.arange(6.0)[:, None], axis=1))


@pytest.mark.parametrize("indices", [[4, 1], [3, 3, 0], [-1], slice(1, 4), np.array([5, 2]), jnp.array([0, 1])])
@pytest.mark.parametrize("lazily", [False, True])
def test_a_batch_holds_the_samples_asked_for(grid, indices, lazily):
    u, v = functions(), functions(channels=1)
    wrap = OnFile if lazily else np.asarray
    batch = data.Samples(wrap(u), wrap(v), grid, initial=wrap(u[:, 0]))[indices]
    rows = np.arange(6)[np.asarray(indices) if not isinstance(indices, slice) else indices]
    np.testing.assert_array_equal(batch.inputs, u[rows])
    np.testing.assert_array_equal(batch.targets, v[rows])
    np.testing.assert_array_equal(batch.initial, u[rows, 0])
    np.testing.assert_array_equal(batch.index, rows)
    assert batch.index.dtype == jnp.int32
    assert batch.domain is grid
    assert batch.target_domain is grid


def test_domains_of_the_samples_travel_with_them(grid, stacked):
    u = functions()
    batch = data.Samples(u, u, grid, at=stacked)[[4, 1]]
    assert batch.domain is grid
    assert batch.target_domain is batch.at
    np.testing.assert_array_equal(batch.at.axes[0].nodes, stacked.axes[0].nodes[jnp.array([4, 1])])
    np.testing.assert_array_equal(data.Samples(u, u, stacked)[[2]].domain.weights[0], stacked.weights[2])


def test_a_batch_is_a_pytree_for_jit(stacked):
    samples = data.Samples(functions(), functions(), stacked)
    total = jax.jit(lambda batch: jax.vmap(lambda d, u: d.integrate(u))(batch.domain, batch.inputs))
    expected = np.einsum("bn,bnc->bc", stacked.weights[:2], samples.inputs[:2])
    np.testing.assert_allclose(total(samples[[0, 1]]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lazily", [False, True])
def test_parts_of_a_set(stacked, lazily):
    u = functions()
    samples = data.Samples(OnFile(u) if lazily else u, u, stacked, initial=u[:, 0])
    part = samples.take([5, 0, 3])
    assert len(part) == 3
    assert part.inputs.shape == (3, 8, 2)
    np.testing.assert_array_equal(part[[1, 0]].inputs, u[[0, 5]])
    np.testing.assert_array_equal(part[[1, 0]].initial, u[[0, 5], 0])
    np.testing.assert_array_equal(part[[2]].domain.weights, stacked.weights[jnp.array([3])])
    np.testing.assert_array_equal(part.take(slice(1, None))[[0]].inputs, u[[0]])


def test_nothing_is_read_twice_or_out_of_order(grid):
    source = OnFile(functions())
    samples = data.Samples(source, functions(), grid)
    assert source.reads == [slice(0, 6)]  # the scan for NaN
    samples.take([4, 4, 1])[[0, 1, 2]]
    assert source.reads[1].tolist() == [1, 4]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.bool_, ">f4"])
def test_batches_are_floating_in_at_most_the_default_precision(grid, dtype):
    u = functions().astype(dtype)
    batch = data.Samples(u, u, grid)[[0]]
    assert batch.inputs.dtype == (jnp.float16 if dtype is np.float16 else jnp.float32)
    np.testing.assert_array_equal(batch.inputs[0], u[0])


def test_float64_is_rounded_with_one_warning(grid, monkeypatch):
    monkeypatch.setattr(_validation, "_warned_about_float64", set())
    u = functions(dtype=np.float64)
    with pytest.warns(UserWarning, match="inputs is float64 but JAX runs in 32 bits") as caught:
        samples = data.Samples(u, u, grid).take([0, 1])
    assert len(caught) == 1
    data.Samples(u, u, grid)  # a second warning would be an error
    assert samples.inputs.dtype == np.float64
    assert samples[[0]].inputs.dtype == jnp.float32


def test_float64_is_kept_under_x64(x64):
    u = with_entry(functions(dtype=np.float64), (0, 0, 0), 1e300)
    np.testing.assert_array_equal(data.Samples(u, u, domains.interval(8))[[1]].inputs[0], u[1])


def with_entry(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": functions(count=0)}, r"inputs is empty: its shape is \(0, 8, 2\)"),
        ({"inputs": functions()[..., 0]}, r"inputs must have shape \(samples, n, channels\), got \(6, 8\)"),
        ({"inputs": functions(nodes=9)}, "inputs has 9 nodes, but domain has 8"),
        ({"targets": functions(nodes=9)}, "targets has 9 nodes, but domain has 8"),
        ({"targets": functions(count=5)}, "targets has 5 samples for the 6 of inputs"),
        ({"at": domains.interval(7)}, "targets has 8 nodes, but at has 7"),
        ({"at": domains.box((2, 4))}, "at has dimension 2, but domain has dimension 1"),
        ({"domain": domains.stack([domains.interval(8)] * 5)}, "domain stacks 5 domains for the 6 samples of inputs"),
        ({"initial": functions()}, r"initial must have shape \(samples, channels\) = \(6, channels\), got \(6, 8, 2\)"),
        ({"initial": functions()[:5, 0]}, r"initial must have shape .* got \(5, 2\)"),
        ({"inputs": with_entry(functions(), (3, 5, 1), np.nan)}, r"inputs\[3, 5, 1\] = nan \(sample 3, channel 1\)"),
        (
            {"inputs": with_entry(functions(dtype=np.float64), (3, 5, 1), 1e300)},
            r"inputs must be finite in float32, but inputs\[3, 5, 1\] = 1e\+300 \(sample 3, channel 1\)",
        ),
        ({"targets": with_entry(functions(), (2, 0, 0), -np.inf)}, r"targets\[2, 0, 0\] = -inf"),
        ({"initial": with_entry(functions()[:, 0], (4, 1), np.nan)}, r"initial\[4, 1\] = nan \(sample 4\)"),
    ],
)
def test_bad_sets_are_refused_when_built(grid, changes, message):
    with pytest.raises(ValueError, match=message):
        data.Samples(**{"inputs": functions(), "targets": functions(), "domain": grid, **changes})


def test_the_first_bad_entry_is_named_on_its_grid_in_large_sets(monkeypatch):
    from jaxop.data import samples

    monkeypatch.setattr(samples, "_BLOCK", 40)
    u = functions(nodes=12)
    bad = with_entry(with_entry(u, (4, 7, 0), np.nan), (5, 0, 0), np.nan)
    with pytest.raises(ValueError, match=r"inputs\[4, 7, 0\] = nan \(sample 4, grid index \(1, 3\), channel 0\)"):
        data.Samples(OnFile(bad), u, domains.box((3, 4)))


def test_complex_values_are_refused(grid):
    with pytest.raises(TypeError, match="inputs must be real, got dtype complex64; pass its real and imaginary parts"):
        data.Samples(functions().astype(np.complex64), functions(), grid)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 6], IndexError, r"indices\[1\] = 6 is out of range: there are 6 samples"),
        ([-7], IndexError, r"indices\[0\] = -7 is out of range"),
        (np.array([[0]]), TypeError, "must be a slice or a sequence of integers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_indices_are_refused(grid, indices, error, message):
    samples = data.Samples(functions(), functions(), grid)
    with pytest.raises(Exception, match=message) as caught:
        samples[indices]
    assert caught.type is error


def test_an_empty_part_is_refused(grid):
    with pytest.raises(ValueError, match="indices do not select any of the 6 samples"):
        data.Samples(functions(), functions(), grid).take([])


def test_an_epoch_is_a_permutation_and_steps_are_random_access():
    def epoch(seed, number, size=20, batch_size=4):
        steps = range(number * (size // batch_size), (number + 1) * (size // batch_size))
        return [data.batch_indices(size, batch_size, seed=seed, step=step).tolist() for step in steps]

    first, second = epoch(0, 0), epoch(0, 1)
    for batches in (first, second, epoch(1, 0)):
        assert sorted(i for batch in batches for i in batch) == list(range(20))
    assert first != second
    assert first != epoch(1, 0)
    assert data.batch_indices(20, 4, seed=0, step=8).tolist() == second[3]
    assert first == epoch(0, 0)


def test_the_order_is_the_same_everywhere():
    assert data.batch_indices(8, 4, seed=0, step=5).tolist() == [5, 6, 1, 0]


def test_the_caller_may_change_what_it_got():
    data.batch_indices(8, 4, seed=0, step=0)[:] = -1
    assert (data.batch_indices(8, 4, seed=0, step=0) >= 0).all()


def test_samples_left_over_differ_from_epoch_to_epoch():
    left = [set(range(5)) - set(data.batch_indices(5, 4, seed=0, step=step).tolist()) for step in range(20)]
    assert set.union(*left) == set(range(5))


def test_every_position_is_equally_likely():
    epochs = 2000
    first = np.array([data.batch_indices(6, 6, seed=3, step=step)[0] for step in range(epochs)])
    share = np.bincount(first, minlength=6) / epochs
    assert np.abs(share - 1 / 6).max() < 5 * np.sqrt(5 / 36 / epochs)


def test_integers_of_any_kind_are_accepted():
    expected = data.batch_indices(8, 4, seed=1, step=3)
    np.testing.assert_array_equal(data.batch_indices(np.int64(8), 4, seed=np.uint32(1), step=jnp.int32(3)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, 0), "size must be at least 1, got 0: the dataset is empty"),
        ((8, 9, 0, 0), "batch_size must lie between 1 and the 8 samples of the set, got 9"),
        ((8, 0, 0, 0), "batch_size must lie between 1 and the 8"),
        ((8, 4, 0, -1), "step must not be negative, got -1"),
        ((8, 4, -1, 0), "seed must be a non-negative integer, got -1"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    size, batch_size, seed, step = arguments
    with pytest.raises(ValueError, match=message):
        data.batch_indices(size, batch_size, seed=seed, step=step)


class Masking(OnFile):
    """A file that marks missing entries by a mask, as netCDF4 does."""

    def __getitem__(self, index):
        rows = super().__getitem__(index)
        return np.ma.masked_array(rows, rows == 0)


MASKED = np.ma.masked_array(np.ones((6, 8, 1), np.float32), np.arange(48).reshape(6, 8, 1) == 9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MASKED, functions()), "inputs must hold numbers only, but 1 of its 48 entries are masked"),
        ((functions(), MASKED), "targets must hold numbers only"),
        ((functions(), functions(), None, None, MASKED[:, 0]), "domain must be a Domain, got NoneType"),
        (
            (functions().astype("timedelta64[s]"), functions()),
            r"inputs must hold real numbers, got dtype timedelta64\[s\]",
        ),
        (
            (functions(), functions().astype("datetime64[s]")),
            r"targets must hold real numbers, got dtype datetime64\[s\]",
        ),
        ((functions().astype(object), functions()), "inputs must hold real numbers, got dtype object"),
        ((None, functions()), "inputs must be an array, got NoneType"),
        ((functions(), functions(), "x"), "domain must be a Domain, got str"),
    ],
)
def test_what_is_not_an_array_of_numbers_is_a_type_error(grid, arguments, message):
    with pytest.raises(TypeError, match=message):
        data.Samples(*(arguments if len(arguments) > 2 else (*arguments, grid)))


def test_masks_of_files_are_refused(grid):
    whole = data.Samples(Masking(1 + 0 * functions()), functions(), grid)  # not one entry is masked
    assert whole[[1]].inputs.shape == (1, 8, 2)
    with pytest.raises(TypeError, match="inputs must hold numbers only, but 96 of its 96 entries are masked"):
        data.Samples(Masking(0 * functions()), functions(), grid)


def test_a_masked_array_without_masked_entries_is_an_array(grid):
    samples = data.Samples(np.ma.masked_array(functions()), functions(), grid)
    assert type(samples.inputs) is np.ndarray
    with pytest.raises(TypeError, match="values must hold numbers only"):
        data.statistics(MASKED, grid)


@pytest.mark.usefixtures("unchecked")
def test_counts_are_integers():
    with pytest.raises(TypeError, match=r"size must be an integer, got 8\.0"):
        data.batch_indices(8.0, 2, seed=0, step=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="step must be an integer, got True"):
        data.batch_indices(8, 2, seed=0, step=True)
