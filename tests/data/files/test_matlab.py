"""What MATLAB and NumPy store besides numbers."""

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from jaxop import data
from tests.data.files.cases import U, V, refuse, write_mat, write_mat73, write_npz


class TestWhatMatlabStores:
    @pytest.mark.parametrize("write", [write_mat, write_mat73])
    def test_empty_options_are_absent(self, tmp_path, write):
        path = tmp_path / "set.mat"
        empty = np.zeros((0, 0))
        write(path, x=U, y=V, coordinates=empty, weights=empty, initial=empty, faces=empty)
        assert data.read(path).domain.rules == ("midpoint", "midpoint")
        refuse(path, "inputs is empty", inputs="weights")

    def test_empty_options_of_version_7_3_are_absent(self, tmp_path):
        path = tmp_path / "set.mat"
        write_mat73(path, x=U, y=V, weights=np.zeros(2, np.uint64))
        with h5py.File(path, "r+") as file:
            file["weights"].attrs["MATLAB_class"] = np.bytes_("double")
            file["weights"].attrs["MATLAB_empty"] = np.uint8(1)
        assert data.read(path).domain.rules == ("midpoint", "midpoint")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (scipy.sparse.csc_matrix(np.eye(4)), r"a sparse matrix; store full\(x\)"),
            (scipy.sparse.csc_matrix(np.eye(4, dtype=bool)), r"a sparse matrix; store full\(x\)"),
            (np.array([U, 1], dtype=object), "a cell array; store one array"),
            ({"a": 1.0}, "a struct; store its fields as variables"),
            ("text", "text; store numbers"),
            (1j * U, "complex numbers .complex64.; store real and imaginary parts"),
        ],
    )
    def test_is_named_if_it_is_no_array(self, tmp_path, value, message):
        path = tmp_path / "set.mat"
        write_mat(path, x=value, y=V)
        refuse(path, message, TypeError)

    @pytest.mark.parametrize(
        ("kind", "message"),
        [("cell", "a cell array"), ("char", "text; store"), ("string", r"an object of MATLAB \(class string\)")],
    )
    def test_is_named_in_version_7_3(self, tmp_path, kind, message):
        path = tmp_path / "set.mat"
        write_mat73(path, x=U, y=V)
        with h5py.File(path, "r+") as file:
            file["x"].attrs["MATLAB_class"] = np.bytes_(kind)
        refuse(path, message, TypeError)

    def test_groups_of_version_7_3_are_named(self, tmp_path):
        path = tmp_path / "set.mat"
        write_mat73(path, **{"x/ir": U, "y/a": V, "z": U})
        with h5py.File(path, "r+") as file:
            file["x"].attrs["MATLAB_class"] = np.bytes_("double")
            file["x"].attrs["MATLAB_sparse"] = np.uint64(4)
            file["z2"] = np.zeros(4, np.dtype([("real", "f4"), ("imag", "f4")]))
        refuse(path, r"dataset 'x' must hold real numbers, but holds a sparse matrix; store full\(x\)", TypeError)
        refuse(path, "dataset 'y' must hold real numbers, but holds a struct", TypeError, inputs="y")
        refuse(path, "dataset 'z2' must hold real numbers, but holds complex numbers", TypeError, inputs="z2")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a", "b"]), "holds text; store numbers"),
        (np.array(["2026-11-27"], "M8[s]"), "holds times"),
        (np.zeros(3, [("u", "f4"), ("v", "f4")]), "holds records with the fields 'u', 'v'"),
    ],
)
def test_what_is_stored_instead_of_numbers(tmp_path, value, message):
    path = tmp_path / "set.npz"
    write_npz(path, x=value, y=V)
    refuse(path, message, TypeError)
