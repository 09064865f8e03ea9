"""What is saved is read back, meshes included."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxop import data, domains
from tests.data.files.cases import U, V, refuse, write_hdf5, write_mat, write_mat73

CORNERS = np.array([[0, 0], [2, 0], [2, 1], [0, 1]], np.float32)

FACES = np.array([[0, 1, 2], [0, 2, 3]])


class TestMeshes:
    def test_are_read(self, kind):
        write, path = kind
        u = U.reshape(4, 9)[:, :4]
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES)
        samples = data.read(path)
        expected = domains.triangle_mesh(CORNERS, FACES)
        assert type(samples.domain) is domains.TriangleMesh
        np.testing.assert_array_equal(samples.domain.weights, expected.weights)
        np.testing.assert_array_equal(samples.domain.faces, FACES)
        assert type(data.read(path, faces=None).domain) is domains.PointCloud

    @pytest.mark.parametrize("write", [write_mat, write_mat73])
    def test_of_matlab_count_from_one(self, tmp_path, write):
        path = tmp_path / "set.mat"
        u = U.reshape(4, 9)[:, :4]
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES + 1.0)
        np.testing.assert_array_equal(data.read(path).domain.faces, FACES)
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES[:1] + 0.5)
        refuse(path, "faces must be integers")
        write(path, x=u, y=-u, coordinates=CORNERS, faces=np.array([[1.0, 2.0, 3.0]]))
        refuse(path, "faces has indices from 1 to 3 for 4 vertices, which may count from 0 or from 1")
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES + 2.0)
        refuse(path, r"faces\[0, 2\] = 4 is not a vertex")


DOMAINS = {
    "midpoint box": lambda: domains.box((3, 3), lower=(0.0, -1.0), upper=(2.0, 1.0), rule="midpoint"),
    "mixed rules": lambda: domains.box((3, 3), rule=("trapezoid", "gauss-legendre")),
    "interval": lambda: domains.interval(9, upper=2.0, rule="periodic"),
    "uneven times": lambda: domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32) ** 2),
    "padded times": lambda: domains.pad(domains.from_samples([0.0, 0.5, 2.0]), 9),
    "times of each sample": lambda: jax.vmap(domains.from_samples)(
        np.cumsum(1 + U.reshape(4, 9), axis=1).astype(np.float32)
    ),
    "scattered": lambda: domains.from_nodes(U.reshape(18, 2)[:9], np.arange(9, dtype=np.float32)),
    "mesh": lambda: domains.triangle_mesh(U.reshape(18, 2)[:9] ** 2, np.arange(9).reshape(3, 3)),
    "volume": lambda: domains.tetrahedral_mesh(U.reshape(12, 3)[:9] ** 3, [[0, 1, 2, 3]]),
    "scattered of each sample": lambda: domains.stack(
        [domains.monte_carlo(i + U.reshape(18, 2)[:9], measure=2.0) for i in range(4)]
    ),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_what_is_saved_is_read_back(tmp_path, name):
    domain = DOMAINS[name]()
    samples = data.Samples(U.reshape(4, 9, 1), V.reshape(4, 9, 1), domain, initial=U[:, 0])
    data.save(tmp_path / "set.npz", samples)
    again = data.read(tmp_path / "set.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["set.npz"]
    assert jax.tree.structure(again.domain) == jax.tree.structure(domain)
    for ours, theirs in zip(jax.tree.leaves(again.domain), jax.tree.leaves(domain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for field in ("inputs", "targets", "initial"):
        np.testing.assert_array_equal(getattr(again, field), getattr(samples, field))


def test_lazily_read_samples_are_saved(tmp_path):
    write_hdf5(tmp_path / "a.h5", x=U, y=V)
    data.save(tmp_path / "b.npz", data.read(tmp_path / "a.h5").take([2, 0]))
    np.testing.assert_array_equal(data.read(tmp_path / "b.npz").inputs[..., 0], U[[2, 0]].reshape(2, 9))


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path):
    u = U.reshape(4, 9, 1)
    mesh = domains.triangle_mesh(CORNERS, FACES)
    for path, samples, message in (
        ("set.h5", data.Samples(u, u, domains.interval(9)), "samples are written as .npz"),
        ("set.npz", data.Samples(u, u, domains.interval(9), at=domains.interval(9)), "on another domain than inputs"),
        ("set.npz", data.Samples(u[:, :4], u[:, :4], domains.stack([mesh] * 4)), "cannot describe .* .TriangleMesh"),
    ):
        with pytest.raises(ValueError, match=message):
            data.save(tmp_path / path, samples)
    assert not list(tmp_path.iterdir())


def test_grids_of_given_nodes_are_read_back(tmp_path):
    first, second = np.array([0.0, 1.0, 3.0], np.float32), np.array([0.0, 0.5, 2.0], np.float32)
    samples = data.from_arrays(U, V, [first, second])
    data.save(tmp_path / "set.npz", samples)
    again = data.read(tmp_path / "set.npz")
    for ours, theirs in zip(jax.tree.leaves(again.domain), jax.tree.leaves(samples.domain), strict=True):
        np.testing.assert_array_equal(ours, theirs)


OWN_NODES = {
    "scattered": lambda n: domains.from_nodes(U.reshape(18, 2)[:n], np.arange(n, dtype=np.float32)),
    "times": lambda n: domains.pad(domains.from_samples([0.0, 0.5, 2.0]), n),
    "meshes": lambda n: domains.triangle_mesh(U.reshape(18, 2)[:n] ** 2, np.arange(n - n % 3).reshape(-1, 3)),
}


@pytest.mark.parametrize("name", OWN_NODES)
def test_samples_with_their_own_nodes_are_read_back(tmp_path, name):
    given = [
        data.Sample(np.full((n, 2), n, np.float32), V.reshape(-1, 1)[:n], OWN_NODES[name](n), initial=np.float32([n]))
        for n in (7, 4, 6)
    ]
    data.save(tmp_path / "set.npz", data.RaggedSamples(given))
    again = data.read(tmp_path / "set.npz")
    for i, one in enumerate(given):
        same = again.sample(i)
        assert type(same.domain) is type(one.domain)
        for field in ("inputs", "targets", "initial"):
            np.testing.assert_array_equal(getattr(same, field), getattr(one, field))
        for ours, theirs in zip(jax.tree.leaves(same.domain), jax.tree.leaves(one.domain), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_targets_on_other_nodes_are_read_back(tmp_path):
    given = []
    for n in (7, 4):
        inputs, queries = (domains.from_nodes(U.reshape(18, 2)[:k], np.arange(k, dtype=np.float32)) for k in (n, n + 3))
        given.append(data.Sample(U.reshape(-1, 1)[:n], V.reshape(-1, 1)[: n + 3], inputs, at=queries))
    data.save(tmp_path / "set.npz", data.RaggedSamples(given))
    again = data.read(tmp_path / "set.npz")
    for i, one in enumerate(given):
        same = again.sample(i)
        np.testing.assert_array_equal(same.targets, one.targets)
        for ours, theirs in zip(
            jax.tree.leaves((same.domain, same.at)), jax.tree.leaves((one.domain, one.at)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_meshes_that_the_file_cannot_describe_are_refused(tmp_path):
    mesh = domains.triangle_mesh(CORNERS, FACES)
    masked = dataclasses.replace(mesh, weights=mesh.weights * np.float32([1, 0, 1, 1]))
    lines = domains.line_mesh(CORNERS, [[0, 1], [1, 2], [2, 3]])
    u = U.reshape(4, 9)[:, :4, None]
    for domain, message in (
        (masked, r"weights of a TriangleMesh are not those of its faces.*convert it by jaxop\.domains\.from_nodes"),
        (lines, r"LineMesh .* a mesh of triangles or tetrahedra\. Convert others by jaxop\.domains\.from_nodes"),
    ):
        for samples in (data.Samples(u, u, domain), data.RaggedSamples([data.Sample(u[0], u[0], domain)])):
            with pytest.raises(ValueError, match=message):
                data.save(tmp_path / "set.npz", samples)
    assert not list(tmp_path.iterdir())
