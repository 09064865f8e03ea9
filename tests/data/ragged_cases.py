"""Samples on nodes of their own, of every kind of domain that can be padded."""

import numpy as np

from jaxop import data, domains

SIZES = (9, 30, 10, 28, 31, 9, 11, 29, 10, 30)


def cloud(n, *, seed=0, dim=2):
    random = np.random.default_rng((seed, n))
    weights = (0.5 + random.random(n)) / n
    return domains.from_nodes(random.random((n, dim)).astype(np.float32), weights.astype(np.float32))


def curve(n, *, seed=0):
    return domains.from_samples(np.sort(np.random.default_rng((seed, n)).random(n)).astype(np.float32))


def mesh(n, *, seed=0):
    """A fan of triangles around the origin, whose number depends on the seed."""
    angles = np.linspace(0, 1 + seed % 3, n - 1)
    vertices = np.concatenate([[[0, 0]], np.stack([np.cos(angles), np.sin(angles)], axis=1)]).astype(np.float32)
    faces = [[0, i, i + 1] for i in range(1, n - 1)]
    return domains.triangle_mesh(vertices, faces)


def functions(domain, *, amplitude=1.0, at=None, initial=None):
    """u = a(sin x, x₁) to (1 + u₀², on other nodes if `at` is given)."""
    x, y = (np.asarray(one.points)[:, :1] for one in (domain, domain if at is None else at))
    inputs = amplitude * np.concatenate([np.sin(3 * x), x], axis=1)
    targets = 1 + (amplitude * np.sin(3 * y)) ** 2
    return data.Sample(inputs.astype(np.float32), targets.astype(np.float32), domain, at=at, initial=initial)


def pairs(kind=cloud, sizes=SIZES, *, at=None):
    """A sample of every size; `at` is a function of the number of a sample that returns the domain of its targets."""
    made = [kind(n, seed=i) for i, n in enumerate(sizes)]
    return [
        functions(domain, amplitude=0.5 + i / len(made), at=None if at is None else at(i))
        for i, domain in enumerate(made)
    ]


class OnDemand:
    """A sequence that makes a sample when it is asked for, and remembers which."""

    def __init__(self, samples):
        self.held, self.reads = samples, []

    def __len__(self):
        return len(self.held)

    def __getitem__(self, i):
        assert type(i) is int
        self.reads.append(i)
        return self.held[i]
