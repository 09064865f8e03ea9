"""Writer of functions that are computed in blocks, on nodes that all of them share."""

import contextlib
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from jaxop._files import appearing
from jaxop.data.files.save import described
from jaxop.domains import Domain, Grid


class Append(Protocol):
    """Protocol of a function that appends values to an array of a file, the first one unless another is named."""

    def __call__(self, values: Float[np.ndarray, "..."], name: str = ...) -> None:
        """Appends the next values, in the order of the array."""
        ...


@contextlib.contextmanager
def writing_blocks(
    path: Path, domain: Domain, count: int, channels: int, dtype: np.dtype, names: Sequence[str] = ("y",)
) -> Iterator[Append]:
    """Yields a function that appends values to an .npz file of functions, which appears when the block ends.

    `jaxop.data.read` reads the file with ``inputs="y"`` and ``targets="y"``.

    Args:
        path: the file.
        domain: the nodes of all functions.
        count: number N of functions.
        channels: number c of channels.
        dtype: dtype of the values.
        names: the arrays, all of one shape. Those after the first wait in files of their own until the end.

    Raises:
        ValueError: if the file cannot describe the domain, or at the end if there are not N n c values of each array.

    Cost: memory of the blocks only.
    """
    arrays = described(domain)
    grid = domain.shape if isinstance(domain, Grid) else (domain.size,)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    header["shape"] = (count, *grid, channels)
    size = math.prod(header["shape"])
    missing = dict.fromkeys(names, size)
    with appearing(path) as partial, zipfile.ZipFile(partial, "w") as archive, contextlib.ExitStack() as waiting:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        streams: dict[str, Any] = {
            name: waiting.enter_context(tempfile.TemporaryFile(dir=partial.parent)) for name in names[1:]
        }
        with archive.open(f"{names[0]}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            streams[names[0]] = member

            def append(values: Float[np.ndarray, "..."], name: str = names[0]) -> None:
                missing[name] -= values.size
                streams[name].write(np.ascontiguousarray(values, dtype).tobytes())

            yield append
        for name in names[1:]:
            streams[name].seek(0)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(streams[name], member)
        for name, count in missing.items():
            if count:
                raise ValueError(f"{path} lacks {count} of {size} values of {name}.")
