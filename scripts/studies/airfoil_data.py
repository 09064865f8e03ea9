"""Pressure around airfoils: outlines of the UIUC database, potential flow, and a mesh of its own around each."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxop import data, domains

PANELS = 160
BOX = np.array([[-0.6, -0.8], [1.6, 0.8]])
"""Corners of the box around an airfoil with the chord from (0, 0) to (1, 0)."""

ANGLES = (-4.0, 8.0)
"""Range of the angle of attack, in degrees."""

NEAREST = 5e-3
"""Smallest distance of a node in the field from the surface, about the length of a panel."""


_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_PAIR = re.compile(rf"^\s*{_NUMBER}\s+{_NUMBER}\s*$", re.MULTILINE)


class Airfoil(NamedTuple):
    """An outline with its flow.

    Attributes:
        name: of the outline.
        flow: with unit chord, from the leading edge near (0, 0) to the trailing edge near (1, 0).
    """

    name: str
    flow: data.PotentialFlow


class Nodes(NamedTuple):
    """A mesh around an airfoil, with the fields at its vertices; the first `PANELS` vertices are on the surface.

    Attributes:
        points: (n, 2).
        faces: (f, 3).
        inputs: distance from the surface in chords, and the angle of attack in tenths of a radian, (n, 2).
        targets: pressure coefficient, (n, 1).
    """

    points: np.ndarray
    faces: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


def outlines(folder: Path) -> dict[str, np.ndarray]:
    """Returns the outlines of the package aerosandbox by name."""
    found = {}
    for path in sorted((folder / "aerosandbox/geometry/airfoil/airfoil_database").glob("*.dat"), key=lambda p: p.stem):
        pairs = _PAIR.findall(path.read_text(errors="replace"))
        found[path.stem] = np.array(pairs, np.float64).reshape(-1, 2)
    return found


def airfoils(found: Mapping[str, np.ndarray], *, seed: int) -> Iterator[Airfoil]:
    """Yields the airfoils whose flow the panels resolve: no suction beyond −60, and a lift coefficient of at most 4."""
    for number, (name, outline) in enumerate(found.items()):
        angle = np.deg2rad(np.random.default_rng((seed, number)).uniform(*ANGLES))
        try:
            flow = data.potential_flow(data.resample_outline(_scaled(outline), PANELS), angle)
        except ValueError:
            continue
        if flow.surface_pressure.min() > -60 and abs(flow.lift) < 4:
            yield Airfoil(name, flow)


def family(name: str) -> str:
    """Returns the stem of a name, which near copies share."""
    stem = re.match(r"[a-z]*", name.lower())
    return stem[0] if stem and stem[0] else name.lower()


def split(names: Sequence[str], sizes: Sequence[int]) -> list[list[int]]:
    """Divides numbers of airfoils into sets of these sizes, by families as far as they are small.

    Families come in the order of a hash of their names and fill the last set first, so that the large ones remain for
    the first set.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(family(name), []).append(i)
    order = sorted(members, key=lambda stem: (len(members[stem]) > 40, hashlib.sha256(stem.encode()).hexdigest()))
    numbers = [i for stem in order for i in members[stem]]
    parts = []
    for size in reversed(sizes):
        parts.append(numbers[:size])
        numbers = numbers[size:]
    return parts[::-1]


def nodes(airfoil: Airfoil, count: int, rng: np.random.Generator, *, nose: float = 0.0) -> Nodes:
    """Draws a mesh around an airfoil.

    The vertices are the middles of the panels, the corners and sides of `BOX`, and ``count`` random points: three
    quarters at distances from the surface that are uniform on a logarithmic scale, the others uniform in the box.

    Args:
        airfoil: the airfoil.
        count: random points in the field.
        rng: source of the random numbers.
        nose: share of the points near the surface that are drawn within a fifth of the chord from the leading edge.
    """
    flow = airfoil.flow
    body = flow.middles
    outward = np.stack([np.diff(flow.outline[:, 1]), -np.diff(flow.outline[:, 0])], axis=1) / flow.lengths[:, None]
    near = 3 * count // 4
    weights = flow.lengths + nose * flow.lengths.sum() * (body[:, 0] < 0.2) / np.sum(body[:, 0] < 0.2)
    chosen = rng.choice(PANELS, 2 * near, p=weights / weights.sum())
    distance = np.exp(rng.uniform(np.log(1.5 * NEAREST), np.log(0.5), 2 * near))
    around = body[chosen] + distance[:, None] * outward[chosen]
    uniform = rng.uniform(BOX[0], BOX[1], (2 * (count - near), 2))
    drawn = []
    for points, size in ((around, near), (uniform, count - near)):
        inside = np.all((points > BOX[0]) & (points < BOX[1]), axis=1)
        drawn.append(points[inside & (signed_distance(points, body) > NEAREST)][:size])
    steps = np.linspace(0, 1, 9)[:-1]
    corners = np.stack([BOX[[0, 1, 1, 0, 0], 0], BOX[[0, 0, 1, 1, 0], 1]], axis=1)
    sides = [a + s * (b - a) for a, b in itertools.pairwise(corners) for s in steps]
    points = np.concatenate([body, np.array(sides), *drawn])
    points = points.astype(np.float32)  # in which no two of them may be equal
    mesh = domains.from_points(points, inside=lambda centroids: signed_distance(centroids, body) > 0)
    faces = np.asarray(mesh.faces)  # pyright: ignore[reportAttributeAccessIssue]
    pressure = np.concatenate([flow.surface_pressure, flow.pressure(points[PANELS:])])
    return Nodes(points, faces, features(airfoil, points), pressure[:, None])


def features(airfoil: Airfoil, points: np.ndarray) -> np.ndarray:
    """Returns the inputs of an operator at points: distance from the surface, and angle of attack."""
    distance = signed_distance(points, airfoil.flow.middles)
    return np.stack([distance, np.full(len(points), 10 * airfoil.flow.angle)], axis=1)


def signed_distance(points: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Returns the distance from a closed polygon, negative inside."""
    a, b = body, np.roll(body, -1, axis=0)
    edge, away = b - a, points[:, None] - a
    t = np.clip(np.sum(away * edge, axis=-1) / np.sum(edge**2, axis=-1), 0, 1)
    distance = np.min(np.linalg.norm(away - t[..., None] * edge, axis=-1), axis=1)
    x, y = points[:, :1], points[:, 1:]
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = a[:, 0] + (y - a[:, 1]) / edge[:, 1] * edge[:, 0]
    inside = np.sum(crosses & (x < crossing), axis=1) % 2 == 1
    return np.where(inside, -distance, distance)


def _scaled(outline: np.ndarray) -> np.ndarray:
    """Returns the outline with unit chord along x."""
    low, high = outline[:, 0].min(), outline[:, 0].max()
    if not high > low:
        raise ValueError("outline has no extent along x.")
    return (outline - [low, 0]) / (high - low)
