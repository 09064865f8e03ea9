"""JSON files that are read with bounds, hashes as files, and files that are written in one go."""

import contextlib
import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_LARGEST = 2**28  # bytes of a JSON file


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file.

    Raises:
        OSError: if the file does not exist, or may not be read.
        ValueError: if it is a device, pipe or directory, is larger than 256 MiB, is not JSON, or is nested too
            deeply; the message names the file.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    if size > _LARGEST:
        raise ValueError(f"{path} has {size} bytes, more than the {_LARGEST} that are read.")
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, name: str) -> Any:
    """Returns what JSON text says.

    Raises:
        ValueError: if it is not JSON, or is nested too deeply; the message begins with the name.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}).") from error


def hashes_to_bytes(hashes: np.ndarray) -> bytes:
    """Returns hashes of 16 bytes each, shape (n, 16), as the contents of a .npy file.

    Raises:
        TypeError: if they are not an array of uint8 of this shape.
    """
    if not isinstance(hashes, np.ndarray) or hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != 16:
        found = f"{hashes.dtype} of shape {hashes.shape}" if isinstance(hashes, np.ndarray) else repr(hashes)
        raise TypeError(f"functions must be hashes, uint8 of shape (n, 16), such as run.functions has, got {found}.")
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(hashes), allow_pickle=False)
    return content.getvalue()


def parse_hashes(content: bytes, name: str) -> np.ndarray:
    """Returns the hashes in the contents of a .npy file.

    Raises:
        ValueError: if they are not what `hashes_to_bytes` returned; the message begins with the name.
    """
    start = len(hashes_to_bytes(np.zeros((0, 16), np.uint8)))  # the header has one length for all n
    rows = np.frombuffer(content[start:], np.uint8)
    if rows.size % 16 or hashes_to_bytes(rows.reshape(-1, 16)) != content:
        raise ValueError(
            f"{name} is not a file of hashes, uint8 of shape (n, 16), or was cut or changed; get another copy of the "
            "folder."
        )
    return rows.reshape(-1, 16)


def write_in_one_go(path: Path, content: bytes) -> None:
    """Replaces a file by a file with this content, on the disk; a reader sees the old file or the new one."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yields a file of this process beside ``path``, which takes its place at the end; after an error nothing is left.

    Several processes may write the same file, such as one of a cache.
    """
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def json_checksum(content: object) -> str:
    """Returns the SHA-256 checksum of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
