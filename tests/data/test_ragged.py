"""Samples on nodes of their own: buckets, batches, checks."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import _validation, data, domains
from jaxop.data import _buckets
from tests.data.ragged_cases import SIZES, OnDemand, cloud, curve, functions, mesh, pairs


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", [cloud, curve, mesh])
def test_a_batch_holds_the_samples_asked_for_and_padding_without_weight(kind):
    samples = data.RaggedSamples(pairs(kind, (9, 30, 10, 31)))
    for bucket in samples.buckets:
        order = bucket.indices[::-1]
        batch = samples[order]
        assert batch.index.tolist() == order.tolist()
        assert batch.inputs.shape[:2] == batch.domain.weights.shape == (bucket.count, bucket.nodes)
        for row, i in enumerate(order):
            alone = samples.sample(i)
            n = alone.domain.size
            one = jax.tree.map(lambda leaf, row=row: leaf[row], batch.domain)
            np.testing.assert_array_equal(batch.inputs[row, :n], alone.inputs)
            np.testing.assert_array_equal(batch.targets[row, :n], alone.targets)
            np.testing.assert_array_equal(one.points[:n], alone.domain.points)
            np.testing.assert_array_equal(one.weights[:n], alone.domain.weights)
            assert not one.weights[n:].any()
            assert jnp.isfinite(batch.inputs).all()
    for space in ("L2", "H1") if kind is not cloud else ("L2",):  # of the last
        norm = alone.domain.norm(jnp.asarray(alone.targets), space=space)
        np.testing.assert_allclose(one.norm(batch.targets[row], space=space), norm, rtol=1e-6)


def test_targets_have_nodes_of_their_own_and_initial_data():
    made = [functions(cloud(n), at=cloud(50 - n, seed=1), initial=np.full(3, n, np.float32)) for n in (9, 40, 10, 40)]
    samples = data.RaggedSamples(made)
    assert [(b.nodes, b.at_nodes, b.indices.tolist()) for b in samples.buckets] == [
        (10, 42, [0, 2]),
        (40, 10, [1, 3]),
    ]
    batch = samples[[2, 0]]
    assert (batch.inputs.shape, batch.targets.shape) == ((2, 10, 2), (2, 42, 1))
    np.testing.assert_array_equal(batch.initial, [[10] * 3, [9] * 3])
    np.testing.assert_array_equal(batch.at.weights[0, :40], made[2].at.weights)
    assert samples.target_sizes.tolist() == [41, 10, 40, 10]
    assert (samples.in_channels, samples.out_channels, samples.initial_channels, samples.dim) == (2, 1, 3, 2)


def test_targets_on_one_grid_are_stacked_as_they_are():
    grid = domains.box((3, 4), rule="midpoint")
    samples = data.RaggedSamples(pairs(at=lambda _: grid))
    assert {bucket.at_nodes for bucket in samples.buckets} == {12}
    assert samples[[0, 2]].at.shape == (3, 4)


def test_every_sample_is_in_one_bucket_with_little_padding():
    sizes = np.random.default_rng(0).integers(700, 2000, (500, 1))
    found = _buckets.choose(sizes, batch_size=1, most=8)
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    largest = [int(_buckets.rounded(sizes[part].max(axis=0))[0]) for part in found]
    assert largest == sorted(largest)
    assert all(size % 64 == 0 for size in largest)
    padded = sum(len(part) * size for part, size in zip(found, largest, strict=True))
    assert 1 - sizes.sum() / padded <= 0.12
    assert len(found) <= 5


def test_sizes_that_are_almost_equal_share_one_bucket():
    sizes = np.array([[80], [85], [96], [300], [310], [280]])
    assert [part.tolist() for part in _buckets.choose(sizes, batch_size=1, most=8)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("size", [1, 5, 31, 32, 100, 129, 1000, 1025, 4097, 10**6])
def test_sizes_are_rounded_by_a_sixteenth_at_most(size):
    (found,) = _buckets.rounded(np.array([size]))
    assert size <= found <= size * 17 / 16
    assert found % (128 if size >= 2048 else 1) == 0


@pytest.mark.parametrize(("batch_size", "most"), [(1, 8), (1, 3), (4, 8), (30, 8), (1, 1), (200, 8)])
def test_buckets_are_united_until_a_batch_fits_and_there_are_few(batch_size, most):
    random = np.random.default_rng(1)
    sizes = np.stack([random.integers(10, 3000, 60), random.integers(10, 300, 60)], axis=1)
    found = _buckets.choose(sizes, batch_size=batch_size, most=most)
    assert len(found) <= most
    assert sorted(np.concatenate(found).tolist()) == list(range(60))
    assert min(map(len, found)) >= batch_size or len(found) == 1


def test_a_small_bucket_joins_the_next_larger_one():
    sizes = np.array([[100]] * 10 + [[200]] + [[240]] * 10)
    parts = _buckets.choose(sizes, batch_size=4, most=8)
    assert [part.tolist() for part in parts] == [list(range(10)), list(range(10, 21))]


def test_only_small_buckets_are_united_for_a_batch():
    sizes = np.array([[10]] * 6 + [[1000]] * 10 + [[1500]] * 10)
    assert [len(part) for part in _buckets.choose(sizes, batch_size=8, most=8)] == [16, 10]


def test_groups_hold_every_sample_in_batches_of_one_shape():
    samples = data.RaggedSamples(pairs())
    assert [len(group.indices) for group in samples.groups(5)] == [5, 5]
    (whole,) = samples.groups(6)
    assert len(whole.indices) == len(SIZES)
    batch = whole.source[np.array([1, 0])]
    assert batch.index.tolist() == [1, 0]
    assert batch.inputs.shape == (2, 31, 2)
    assert whole.sizes.tolist() == list(SIZES)


def test_samples_are_read_on_demand():
    source = OnDemand(pairs())
    samples = data.RaggedSamples(source)
    assert source.reads == list(range(len(SIZES)))  # the one pass of the checks
    assert samples.identity()
    assert samples.groups(3)
    assert samples.buckets
    part = samples.take([7, 0, 2])
    assert len(source.reads) == len(SIZES)
    part[[2, 1, 2]]
    assert source.reads[len(SIZES) :] == [2, 0]
    assert part.identity() == data.RaggedSamples([pairs()[i] for i in (7, 0, 2)]).identity()


def test_identity_tells_sets_apart():
    identity = data.RaggedSamples(pairs()).identity()
    assert identity == data.RaggedSamples(OnDemand(pairs())).identity()
    others = {"inputs": np.float32(2), "targets": np.float32(2)}
    for name, factor in others.items():
        changed = pairs()
        parts = vars(changed[4]) | {name: getattr(changed[4], name) * factor}
        changed[4] = data.Sample(**parts)
        different = data.RaggedSamples(changed).identity()
        assert [k for k, v in different["contents"].items() if v != identity["contents"][k]] == [name]
    moved = [*pairs()[:-1], functions(cloud(SIZES[-1], seed=99), amplitude=1.4)]
    assert data.RaggedSamples(moved).identity()["contents"]["domain"] != identity["contents"]["domain"]
    fan = mesh(9)
    masked, rounded = (dataclasses.replace(fan, weights=fan.weights.at[2].mul(by)) for by in (0, 1 + 1e-6))
    plain, other, same = (data.RaggedSamples([functions(one)]).identity() for one in (fan, masked, rounded))
    assert plain == same != other


def test_statistics_are_those_of_the_samples_without_padding():
    samples = data.RaggedSamples(pairs())
    found = data.standardization(samples)
    weights = np.concatenate([np.asarray(s.domain.weights, np.float64) for s in samples.samples])
    values = np.concatenate([s.inputs for s in samples.samples]).astype(np.float64)
    mean = weights @ values / weights.sum()
    np.testing.assert_allclose(found["input_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["input_std"], (weights @ (values - mean) ** 2 / weights.sum()) ** 0.5, rtol=1e-5)
    assert found.keys() == {"input_mean", "input_std", "output_mean", "output_std"}


def test_statistics_are_those_of_equal_samples_in_one_array():
    made = [functions(cloud(20, seed=i), amplitude=i + 1.0, initial=np.float32([i, 2 * i])) for i in range(4)]
    stacked = data.Samples(
        np.stack([s.inputs for s in made]),
        np.stack([s.targets for s in made]),
        domains.stack([s.domain for s in made]),
        initial=np.stack([s.initial for s in made]),
    )
    ragged, array = data.standardization(data.RaggedSamples(made)), data.standardization(stacked)
    assert ragged.keys() == array.keys()
    for name in ragged:
        np.testing.assert_allclose(ragged[name], array[name], rtol=1e-6, err_msg=name)
    one = stacked.sample(2)
    np.testing.assert_array_equal(one.inputs, made[2].inputs)
    np.testing.assert_array_equal(one.initial, made[2].initial)
    np.testing.assert_array_equal(one.domain.weights, made[2].domain.weights)


def changed(number=3, **parts):
    made = pairs()
    made[number] = data.Sample(**(vars(made[number]) | parts))
    return made


def spoiled(name, value):
    made = pairs()
    array = getattr(made[3], name).copy()
    array[5, 0] = value
    return changed(**{name: array})


N = SIZES[3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spoiled("inputs", np.nan), r"samples\[3\]\.inputs must be finite in float32, .*\[5, 0\] = nan"),
        (lambda: spoiled("targets", -np.inf), r"samples\[3\]\.targets must be finite .*\[5, 0\] = -inf"),
        (
            lambda: changed(inputs=np.ones((N, 3), np.float32)),
            r"samples\[3\] and samples\[0\] differ in input channels",
        ),
        (lambda: changed(targets=np.ones((N, 2), np.float32)), "differ in target channels: 2 instead of 1"),
        (lambda: changed(initial=np.ones(2)), "differ in initial channels: 2 instead of 0"),
        (lambda: changed(domain=cloud(N, dim=3)), "differ in space dimensions: 3 instead of 2"),
        (lambda: changed(domain=mesh(N)), "differ in domain: TriangleMesh.* instead of PointCloud.*from_nodes"),
        (lambda: changed(at=cloud(N)), "differ in target domain: PointCloud.*give `at` for all samples or for none"),
        (lambda: changed(inputs=np.ones((N, 2), np.float16)), "differ in dtype of the inputs: float16 instead of"),
        (
            lambda: [functions(domains.interval(9)), functions(domains.interval(10))],
            r"differ in domain: Grid of shape \(10,\).* instead of Grid of shape \(9,\).*convert each .*from_nodes",
        ),
        (
            lambda: [functions(domains.sphere(2, 3)), functions(domains.sphere(3, 2))],
            r"differ in domain: Sphere of 6 nodes in shape \(3, 2\), gauss.* instead of Sphere .* \(2, 3\)",
        ),
        (list, "samples is empty"),
    ],
)
def test_bad_sets_are_refused_and_the_sample_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        data.RaggedSamples(make())


def test_bad_arguments_are_refused(unchecked):
    with pytest.raises(TypeError, match=r"samples\[1\] must be a data.Sample\(.*got int"):
        data.RaggedSamples([pairs()[0], 3])
    with pytest.raises(TypeError, match=r"samples must be a list of data.Sample.*got Sample"):
        data.RaggedSamples(pairs()[0])
    with pytest.raises(ValueError, match="indices do not select any sample; a batch needs at least one"):
        data.RaggedSamples(pairs())[[]]
    with pytest.raises(ValueError, match="max_buckets must be at least 1, got 0"):
        data.RaggedSamples(pairs(), max_buckets=0)

    class Damaged(OnDemand):
        def __getitem__(self, i):
            if i == 2:
                raise OSError("the file is truncated")
            return super().__getitem__(i)

    with pytest.raises(OSError, match="the file is truncated") as error:
        data.RaggedSamples(Damaged(pairs()))
    assert error.value.__notes__ == ["(while reading samples[2])"]
    samples = data.RaggedSamples(pairs())
    with pytest.raises(ValueError, match=re.escape("indices must be samples of one bucket, but sample 1 is not in")):
        samples[[0, 1]]
    with pytest.raises(IndexError, match="there are 10 samples"):
        samples.sample(10)
    with pytest.raises(ValueError, match="do not select any"):
        samples.take([])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inputs": np.ones((8, 2))}, "inputs has 8 nodes, but domain has 9"),
        ({"targets": np.ones((8, 2))}, "targets has 8 nodes, but domain has 9"),
        ({"at": cloud(7)}, "targets has 9 nodes, but at has 7"),
        ({"inputs": np.ones(9)}, r"inputs must have shape \(n, channels\), .*, got \(9,\)"),
        ({"targets": np.ones((9, 0))}, r"targets must have shape .*, got \(9, 0\)"),
        ({"initial": np.ones((1, 2))}, r"initial must have shape \(channels,\), got \(1, 2\)"),
        ({"at": cloud(9, dim=3)}, "at has dimension 3, but domain has dimension 2"),
        ({"domain": domains.stack([cloud(9)] * 2)}, "domain is a stack of domains"),
    ],
)
def test_a_bad_sample_is_refused_when_built(unchecked, parts, message):
    good = {"inputs": np.ones((9, 2)), "targets": np.ones((9, 1)), "domain": cloud(9)}
    data.Sample(**good)
    with pytest.raises(ValueError, match=message):
        data.Sample(**(good | parts))


def test_a_sample_that_changes_is_noticed():
    held = pairs()
    samples = data.RaggedSamples(held)
    held[1] = functions(cloud(33))
    with pytest.raises(ValueError, match=r"samples\[1\] has changed: it had 30 nodes .* and has 33 now"):
        samples[[1, 3]]


def test_float64_is_rounded_with_one_warning(monkeypatch):
    monkeypatch.setattr(_validation, "_warned_about_float64", set())
    made = [data.Sample(s.inputs.astype(np.float64), s.targets, s.domain) for s in pairs()]
    with pytest.warns(UserWarning, match=r"samples\[0\]\.inputs is float64") as caught:
        samples = data.RaggedSamples(made)
    assert len(caught) == 1
    assert samples[[0]].inputs.dtype == jnp.float32
