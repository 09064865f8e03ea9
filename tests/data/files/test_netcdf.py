"""netCDF files become samples on grids, or on the sphere."""

import os
import sys

import numpy as np
import pytest
import xarray

from jaxop import data
from tests.data.files.cases import refuse

X, Y = np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5, 1.0, 1.5])
U = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


def write(path, variables, coordinates, *, engine="h5netcdf", attributes=None):
    file = xarray.Dataset(variables, coordinates)
    for name, given in (attributes or {}).items():
        file[name].attrs.update(given)
    file.to_netcdf(path, engine=engine)
    return path


@pytest.fixture(params=["h5netcdf", "scipy"])
def path(request, tmp_path):
    """A file of netCDF-4 or netCDF-3."""
    dims = ("time", "x", "y")
    return write(
        tmp_path / "a.nc",
        {
            "u": (dims, U),
            "v": (("y", "time", "x"), -U.transpose(2, 0, 1)),
            "w": ((*dims, "level"), np.stack([U, 2 * U], -1)),
        },
        {"x": X, "y": Y, "time": [10.0, 20.0]},
        engine=request.param,
    )


def test_variables_on_an_uneven_grid(path):
    samples = data.read(path, inputs="u", targets=["v", "w"])
    assert samples.domain.shape == (3, 4)
    np.testing.assert_array_equal(samples.domain.axes[0].nodes, X)
    np.testing.assert_array_equal(samples.domain.axes[0].weights, [0.5, 1.5, 1.0])
    assert samples.targets.shape == (2, 12, 3)
    batch = samples[[1, 0]]
    np.testing.assert_array_equal(batch.inputs[..., 0], U[::-1].reshape(2, 12))
    np.testing.assert_array_equal(batch.targets[..., 0], -U[::-1].reshape(2, 12))
    np.testing.assert_array_equal(batch.targets[..., 2], 2 * U[::-1].reshape(2, 12))
    assert not isinstance(samples.inputs, np.ndarray)  # values stay in the file


def test_samples_and_grid_may_be_named(path):
    samples = data.read(path, inputs="u", targets="v", sample_dimension="y", coordinates=("time", "x"))
    assert (len(samples), samples.domain.shape) == (4, (2, 3))
    np.testing.assert_array_equal(samples[[0]].inputs[0, :, 0], U[:, :, 0].ravel())


def test_a_rule_and_an_axis_that_decreases(tmp_path):
    path = write(tmp_path / "a.nc", {"u": (("s", "y"), U[0])}, {"y": Y[::-1], "s": np.arange(3)})
    samples = data.read(path, inputs="u", targets="u", rule="midpoint")
    assert samples.domain.rules == ("midpoint",)
    np.testing.assert_allclose(samples.domain.measure, 2.0, rtol=1e-6)
    np.testing.assert_array_equal(samples[[0]].inputs[0, :, 0], U[0, 0, ::-1])


LATITUDES = {
    "midpoint rows": np.linspace(-87.5, 87.5, 36),
    "with poles": np.linspace(90, -90, 37),
    "Gauss": np.degrees(np.arcsin(np.polynomial.legendre.leggauss(36)[0])),
}


@pytest.mark.parametrize("rows", LATITUDES)
@pytest.mark.sample(1)
def test_latitude_and_longitude_are_a_grid_on_the_sphere(tmp_path, rows):
    latitude, longitude = LATITUDES[rows], np.arange(0, 360, 5.0)
    z, angle = np.sin(np.radians(latitude)), np.radians(longitude)
    u = ((z**2)[:, None] + 0 * angle).astype(np.float32)
    v = (np.cos(np.radians(latitude))[:, None] * np.cos(angle)).astype(np.float32)
    variables = {"u": (("time", "latitude", "l"), u[None]), "v": (("time", "l", "latitude"), v.T[None])}
    path = write(
        tmp_path / "a.nc",
        variables,
        {"latitude": latitude, "l": longitude},
        attributes={"l": {"units": "degrees_east"}},
    )
    samples = data.read(path, inputs="u", targets="v")
    batch = samples[[0]]
    assert samples.domain.dim == 3
    np.testing.assert_allclose(samples.domain.measure, 4 * np.pi, rtol=1e-4)
    np.testing.assert_allclose(batch.targets[0, :, 0], samples.domain.points[:, 0], atol=1e-6)
    np.testing.assert_allclose(samples.domain.integrate(batch.inputs[0])[0], 4 * np.pi / 3, rtol=4e-3)
    np.testing.assert_allclose(samples.domain.integrate(batch.targets[0])[0], 0, atol=1e-5)
    turned = data.read(path, inputs="v", targets="u")  # longitude is the first axis
    np.testing.assert_allclose(turned[[0]].inputs[0, :, 0], turned.domain.points[:, 0], atol=1e-6)
    np.testing.assert_allclose(turned.domain.integrate(turned[[0]].targets[0])[0], 4 * np.pi / 3, rtol=4e-3)
    if rows == "with poles":
        assert data.read(path, inputs="u", targets="v", rule="trapezoid").domain.dim == 2


class TestMessages:
    def test_a_meridian_that_is_repeated(self, tmp_path):
        path = write(tmp_path / "a.nc", {"u": (("t", "lat", "lon"), U)}, {"lat": X, "lon": [0.0, 120.0, 240.0, 360.0]})
        refuse(path, r"longitudes\[3\] = 360.0 repeats longitudes\[0\]", inputs="u", targets="u")

    def test_latitude_and_longitude_beside_a_third_axis(self, tmp_path):
        axes = {"lat": [0.0, 1.0, 2.0], "lon": Y, "level": [1.0, 2.0]}
        path = write(tmp_path / "a.nc", {"u": (("t", "level", "lat", "lon"), np.stack([U] * 5))}, axes)
        refuse(
            path, "'level', 'lat', 'lon' has latitude, longitude and another axis; name 'lat'", inputs="u", targets="u"
        )
        assert data.read(path, inputs="u", targets="u", coordinates=("lat", "lon")).in_channels == 2
        assert data.read(path, inputs="u", targets="u", rule="trapezoid").dim == 3

    def test_names(self, path):
        refuse(path, r"has no variable 'uu'; it has .*: did you mean 'u'\?", inputs="uu", targets="v")
        refuse(
            path,
            "'lat' is not a dimension of the inputs, which have 'time', 'x', 'y'",
            inputs="u",
            targets="v",
            coordinates="lat",
        )
        refuse(path, "and 's' should count samples", inputs="u", targets="v", sample_dimension="s")

    def test_dimensions(self, tmp_path):
        path = write(
            tmp_path / "a.nc",
            {"u": (("t", "x"), U[0]), "v": (("t", "z"), U[0]), "w": (("t", "x", "a", "b"), np.ones((3, 4, 1, 1)))},
            {"x": Y},
        )
        refuse(path, "'v' has the dimensions 't', 'z' without 'x'", inputs="u", targets="v")
        refuse(path, "none of the dimensions 't', 'z' has coordinates", inputs="v", targets="v")
        refuse(path, "the dimension 'z' has no coordinates", inputs="v", targets="v", coordinates="z")
        refuse(path, "more than one other, which could be channels", inputs="u", targets="w")

    def test_missing_values(self, tmp_path):
        bad = np.where(U > 20, np.nan, U)
        path = write(tmp_path / "a.nc", {"u": (("t", "x", "y"), bad)}, {"x": X, "y": Y})
        refuse(path, r"inputs must be finite .*sample 1, grid index \(2, 1\)", inputs="u", targets="u")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_a_truncated_file(self, tmp_path, share):
        path = write(tmp_path / "a.nc", {"u": (("t", "x", "y"), U)}, {"x": X, "y": Y})
        os.truncate(path, int(share * path.stat().st_size))
        refuse(path, r"is empty|truncated or damaged", inputs="u", targets="u")

    def test_options_that_do_not_apply(self, path):
        refuse(path, "is read as a netCDF file; nothing reads weights='w'; leave it out", weights="w")

    def test_a_missing_package_names_the_extra(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "xarray", None)
        refuse(path, r"needs xarray; install it with: pip install 'jaxop\[netcdf\]'", ImportError)
