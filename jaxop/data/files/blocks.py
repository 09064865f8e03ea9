"""Writer of functions that are computed in blocks, on nodes that all of them share."""

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxop._files import appearing
from jaxop.data.files.save import described
from jaxop.domains import Domain, Grid


@contextlib.contextmanager
def writing_blocks(
    path: Path, domain: Domain, count: int, channels: int, dtype: np.dtype
) -> Iterator[Callable[[Float[np.ndarray, "..."]], None]]:
    """Yields a function that appends values to an .npz file of functions, which appears when the block ends.

    `jaxop.data.read` reads the file with ``inputs="y"`` and ``targets="y"``.

    Args:
        path: the file.
        domain: the nodes of all functions.
        count: number N of functions.
        channels: number c of channels.
        dtype: dtype of the values.

    Raises:
        ValueError: if the file cannot describe the domain, or at the end if there are not N n c values.

    Cost: memory of the blocks only.
    """
    arrays = described(domain)
    grid = domain.shape if isinstance(domain, Grid) else (domain.size,)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    header["shape"] = (count, *grid, channels)
    missing = math.prod(header["shape"])
    with appearing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        with archive.open("y.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)

            def append(values: Float[np.ndarray, "..."]) -> None:
                nonlocal missing
                missing -= values.size
                member.write(np.ascontiguousarray(values, dtype).tobytes())

            yield append
        if missing:
            raise ValueError(f"{path} lacks {missing} of {math.prod(header['shape'])} values.")
