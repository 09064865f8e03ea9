"""Files of every format, and how a test makes and refuses them."""

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from jaxop import data

U = np.arange(4 * 3 * 3, dtype=np.float32).reshape(4, 3, 3)

V = -U


def write_npz(path, **arrays):
    np.savez(path, **arrays)


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_mat(path, **arrays):
    scipy.io.savemat(path, arrays)


def write_mat73(path, **arrays):
    """What MATLAB writes: HDF5 behind a header of 512 bytes, the axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array).T
        file["#refs#/a"] = np.zeros(2)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")


FORMATS = {"npz": write_npz, "h5": write_hdf5, "hdf5": write_hdf5, "mat": write_mat, "7.3.mat": write_mat73}

HDF5 = {"h5": write_hdf5, "hdf5": write_hdf5}


def refuse(path, message, error=ValueError, **settings):
    with pytest.raises(error, match=message) as caught:
        data.read(path, **settings)
    assert str(path) in str(caught.value)
