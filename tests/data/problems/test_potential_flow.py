"""The panel method against exact flows: a circle, an ellipse, a Joukowski airfoil; and its refusals."""

import numpy as np
import pytest

from jaxop import data


def ellipse(panels, height):
    t = np.linspace(0, 2 * np.pi, panels + 1)
    return np.stack([np.cos(t), height * np.sin(t)], axis=1)


def joukowski(panels, centre=-0.1 + 0.05j):
    """An airfoil with a cusp at 2, the image of a circle through 1 under ζ + 1/ζ."""
    t = np.linspace(0, 2 * np.pi, panels + 1) + np.angle(1 - centre)
    circle = centre + abs(1 - centre) * np.exp(1j * t)
    image = circle + 1 / circle
    return np.stack([image.real, image.imag], axis=1)


def exact_joukowski(points, angle, centre=-0.1 + 0.05j):
    """Velocity around `joukowski` outside of it, and its circulation clockwise."""
    radius, offset = abs(1 - centre), np.angle(1 - centre)
    circulation = 4 * np.pi * radius * np.sin(angle - offset)
    z = points[:, 0] + 1j * points[:, 1]
    root = np.sqrt(z * z - 4)
    both = (z + root) / 2, (z - root) / 2
    zeta = np.where(abs(both[0] - centre) > abs(both[1] - centre), *both)
    away = zeta - centre
    velocity = np.exp(-1j * angle) - radius**2 * np.exp(1j * angle) / away**2 + 1j * circulation / (2 * np.pi * away)
    velocity /= 1 - 1 / zeta**2
    return np.stack([velocity.real, -velocity.imag], axis=1), circulation


def naca(thickness, count=100, last=0.1036):
    """A symmetric NACA airfoil; the trailing edge is open with the published last coefficient 0.1015."""
    x = (1 - np.cos(np.linspace(0, np.pi, count))) / 2
    y = 5 * thickness * (0.2969 * np.sqrt(x) - 0.126 * x - 0.3516 * x**2 + 0.2843 * x**3 - last * x**4)
    return np.concatenate([np.stack([x, y], axis=1)[::-1], np.stack([x, -y], axis=1)[1:]])


def test_a_circle_is_exact():
    flow = data.potential_flow(ellipse(64, 1.0), 0.0)
    angle = np.arctan2(*flow.middles.T[::-1])
    np.testing.assert_allclose(flow.surface_pressure, 1 - 4 * np.sin(angle) ** 2, atol=1e-13)
    assert abs(flow.lift) < 1e-13


def test_an_ellipse_at_order_two():
    errors = []
    for panels in (40, 80, 160):
        flow = data.potential_flow(ellipse(panels, 0.5), 0.0)
        t = (np.arange(panels) + 0.5) * 2 * np.pi / panels
        exact = -1.5 * np.sin(t) / np.sqrt(np.sin(t) ** 2 + 0.25 * np.cos(t) ** 2)
        errors.append(np.sqrt(np.mean((flow.speed - exact) ** 2)))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > 1.8), orders


def test_a_joukowski_airfoil():
    points, angle = np.array([[-1.5, 0.8], [2.5, 0.3], [0.0, -0.9]]), np.deg2rad(4)
    exact, circulation = exact_joukowski(points, angle)
    errors = []
    for panels in (80, 160, 320):
        flow = data.potential_flow(joukowski(panels), angle)
        turn = -flow.circulation * flow.lengths.sum()
        errors.append((abs(turn / circulation - 1), np.max(np.abs(flow.velocity(points) - exact))))
    errors = np.array(errors)
    assert np.all(np.log2(errors[:-1] / errors[1:]) > 0.5), errors
    assert np.all(errors[-1] < [0.02, 0.004]), errors


def test_the_lift_of_a_thin_airfoil():
    flow = data.potential_flow(data.resample_outline(naca(0.12), 160), np.deg2rad(5))
    # thin airfoils: 2π sin α, and a first correction for the thickness
    assert flow.lift == pytest.approx(2 * np.pi * np.sin(np.deg2rad(5)) * (1 + 0.77 * 0.12), rel=0.02)
    outer = 1 - np.sum(flow.velocity(np.array([[1e4, 1.0]])) ** 2)
    assert abs(outer) < 1e-3


def test_the_pressure_in_the_field_meets_that_of_the_surface():
    flow = data.potential_flow(ellipse(320, 0.5), 0.1)
    outward = np.stack([np.diff(flow.outline[:, 1]), -np.diff(flow.outline[:, 0])], axis=1) / flow.lengths[:, None]
    field = flow.pressure(flow.middles + 1e-9 * outward)
    np.testing.assert_allclose(field, flow.surface_pressure, atol=1e-6)


def test_the_direction_of_an_outline_does_not_matter():
    outline = data.resample_outline(naca(0.15), 40)
    one, other = (data.potential_flow(points, 0.1) for points in (outline, outline[::-1]))
    assert one.lift == pytest.approx(other.lift, rel=1e-12)
    np.testing.assert_allclose(one.surface_pressure, other.surface_pressure, atol=1e-12)


def test_the_equations_hold():
    flow = data.potential_flow(data.resample_outline(naca(0.1), 60), 0.05)
    outward = np.stack([np.diff(flow.outline[:, 1]), -np.diff(flow.outline[:, 0])], axis=1) / flow.lengths[:, None]
    velocity = flow.velocity(flow.middles + 1e-10 * outward)
    assert np.max(np.abs(np.sum(velocity * outward, axis=1))) < 1e-6
    assert flow.speed[0] + flow.speed[-1] == pytest.approx(0, abs=1e-12)


def test_resampling_keeps_the_curve_and_closes_it():
    outline = np.repeat(naca(0.12), 2, axis=0)
    points = data.resample_outline(outline, 80)
    assert points.shape == (81, 2)
    np.testing.assert_array_equal(points[0], points[-1])
    np.testing.assert_allclose(points[40], [0, 0], atol=1e-12)
    fine = naca(0.12, 2000)[1999::-1]
    np.testing.assert_allclose(points[:40, 1], np.interp(points[:40, 0], *fine.T), atol=2e-4)


@pytest.mark.parametrize(
    ("outline", "angle", "message"),
    [
        (
            naca(0.1, last=0.1015),
            0.1,
            r"must end where it begins, but .* 0\.00\d+ apart; close it by resample_outline",
        ),
        (ellipse(7, 0.5), 0.1, r"outline must have shape \(points, 2\) with at least 9 points, got \(8, 2\)"),
        (ellipse(16, 0.0), 0.1, r"outline must enclose an area"),
        (ellipse(16, 0.5), np.nan, r"angle must be a finite number of radians, got nan"),
        (np.insert(ellipse(16, 0.5), 3, ellipse(16, 0.5)[3], axis=0), 0.1, r"rows 3 and 4 are both"),
        (ellipse(16, np.nan), 0.1, r"outline must be finite, got nan at \(0, 1\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_outlines_without_a_flow_are_refused(outline, angle, message):
    with pytest.raises(ValueError, match=message):
        data.potential_flow(outline, angle)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="panels must be even, half of them on each side, got 9"):
        data.resample_outline(naca(0.1), 9)
    with pytest.raises(ValueError, match="panels must be at least 8, got 6"):
        data.resample_outline(naca(0.1), 6)
    with pytest.raises(ValueError, match=r"points must have shape \(n, 2\), got \(3,\)"):
        data.potential_flow(ellipse(16, 0.5), 0.0).velocity(np.zeros(3))
