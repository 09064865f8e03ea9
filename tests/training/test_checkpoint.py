"""Checkpoints are whole, verified and of the right model, or they are an error that says what is wrong."""

import json
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import training
from jaxop._files import json_checksum
from tests.training.cases import assert_same_bits


def state(value: float = 1.0):
    """Every kind of leaf that a training state may hold."""
    return {
        "step": jnp.asarray(7, jnp.int32),
        "params": {"layers": {0: {"kernel": jnp.full((2, 3), value)}, 1: {"bias": jnp.zeros(3, jnp.bfloat16)}}},
        "other": {"key": jax.random.key(5), "keys": jax.random.split(jax.random.key(6), 2), "on": jnp.array([True])},
        "opt_state": ({"count": jnp.asarray(2, jnp.uint32)}, ()),
        "ema": None,
    }


def like(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@pytest.fixture
def checkpoints(tmp_path):
    result = training.Checkpoints(tmp_path / "checkpoints", keep_last=3, best_metric="error")
    for step in (10, 20, 30):
        result.save(step, state(float(step)), metrics={"error": 1 / step})
    return result


def files(checkpoints, step):
    return sorted(path for path in checkpoints.path(step).rglob("*") if path.is_file())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


def test_state_survives_bit_for_bit_with_its_shardings(checkpoints):
    restored = checkpoints.restore(like(state()))
    assert_same_bits(restored, state(30.0))
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (restored, state())), strict=True))


def test_a_part_can_be_restored_alone(checkpoints):
    part = {"params": state()["params"]}
    assert_same_bits(checkpoints.restore(like(part), step=10, parts=["params"]), {"params": state(10.0)["params"]})


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = training.Checkpoints(tmp_path, keep_last=2, best_metric="error")
    for step, error in enumerate([0.5, 0.2, float("nan"), 0.2, 0.4, None, 0.3]):
        checkpoints.save(step, {"w": jnp.ones(2)}, metrics={} if error is None else {"error": error})
    assert checkpoints.steps == [1, 5, 6]
    assert checkpoints.best == 1
    assert training.Checkpoints(tmp_path, best_metric="another").best is None
    assert training.Checkpoints(tmp_path / "nowhere").latest is None


def test_a_saved_step_is_never_overwritten(checkpoints):
    with pytest.raises(FileExistsError, match="step_00000030"):
        checkpoints.save(30, state())


def test_promise_5_a_state_that_is_not_finite_is_never_written(checkpoints):
    bad = state()
    bad["params"]["layers"][0]["kernel"] = bad["params"]["layers"][0]["kernel"].at[1, 1].set(jnp.nan)
    with pytest.raises(FloatingPointError, match=r"step 40 .*params\.layers\.0\.kernel"):
        checkpoints.save(40, bad)
    assert checkpoints.steps == [10, 20, 30]


@pytest.mark.parametrize("position", [0, -1])
def test_promise_3_a_flipped_bit_in_any_file_is_found(checkpoints, position):
    for path in files(checkpoints, 30):
        if not path.stat().st_size:
            continue
        content = path.read_bytes()
        flip(path, position if path.name != "manifest.json" else content.index(b'"step"') + 8)
        with pytest.raises(training.DamagedCheckpointError, match=path.name):
            checkpoints.restore(like(state()), step=30)
        path.write_bytes(content)
    checkpoints.restore(like(state()), step=30)


@pytest.mark.parametrize("harm", ["truncate", "empty", "delete", "flip", "delete manifest", "empty directory"])
@pytest.mark.sample(2)
def test_promise_3_a_damaged_newest_step_is_named_and_set_aside_and_the_previous_used(checkpoints, harm):
    newest = checkpoints.path(30)
    largest = max(files(checkpoints, 30), key=lambda path: path.stat().st_size if path.name != "manifest.json" else 0)
    named = largest.name
    if harm == "truncate":
        largest.write_bytes(largest.read_bytes()[:-7])
    elif harm == "empty":
        largest.write_bytes(b"")
    elif harm == "delete":
        largest.unlink()
    elif harm == "flip":
        flip(largest, largest.stat().st_size // 2)
    else:
        named = "manifest.json"
        if harm == "delete manifest":
            (newest / named).unlink()
        else:
            shutil.rmtree(newest)
            newest.mkdir()
    remains = len(list(newest.rglob("*")))
    with pytest.warns(UserWarning, match=rf"step 30 is damaged: .*{named}.*set aside") as record:
        step, restored = checkpoints.restore_latest(like(state()))
    assert len(record) == 1
    assert step == 20
    assert_same_bits(restored, state(20.0))
    assert checkpoints.steps == [10, 20]
    assert len(list(newest.with_name("step_00000030.damaged").rglob("*"))) == remains
    checkpoints.save(30, state(3.0))
    assert checkpoints.restore_latest(like(state()))[0] == 30


def test_promise_3_when_every_step_is_damaged_nothing_starts_silently(checkpoints):
    for step in checkpoints.steps:
        (checkpoints.path(step) / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(FileNotFoundError, match="no undamaged checkpoint"):
        checkpoints.restore_latest(like(state()))
    assert len(list(checkpoints.directory.glob("*.damaged"))) == 3


def test_a_damaged_step_does_not_hide_the_best_of_the_others(checkpoints):
    (checkpoints.path(30) / "manifest.json").write_text("{")
    assert checkpoints.best == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"scale": jnp.ones(2)}, r"params\.scale: missing in the checkpoint, expected float32\[2\]"),
        (lambda p: {}, r"params\.layers\.0\.kernel: unknown to this model, saved as float32\[2,3\]"),
        (
            lambda p: {"layers": p["layers"] | {0: {"kernel": jnp.ones((2, 4))}}},
            r"params\.layers\.0\.kernel: saved as float32\[2,3\], expected float32\[2,4\]",
        ),
        (
            lambda p: {"layers": p["layers"] | {1: {"bias": jnp.ones(3)}}},
            r"params\.layers\.1\.bias: saved as bfloat16\[3\], expected float32\[3\]",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "differently typed"],
)
@pytest.mark.sample(2)
def test_promise_6_a_parameter_that_does_not_fit_is_named(checkpoints, change, message):
    other = state() | {"params": change(state()["params"])}
    for restore in (checkpoints.restore, checkpoints.restore_latest):
        with pytest.raises(ValueError, match=message):
            restore(like(other))
    assert checkpoints.steps == [10, 20, 30]  # it fits another model: that is no damage


def test_promise_7_nothing_there_is_an_error(tmp_path):
    checkpoints = training.Checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing to resume from"):
        checkpoints.restore_latest(like(state()))
    with pytest.raises(FileNotFoundError, match="steps there: none"):
        checkpoints.restore(like(state()))


def test_a_missing_step_is_named_with_those_there(checkpoints):
    with pytest.raises(FileNotFoundError, match=r"of step 15 .*\[10, 20, 30\]"):
        checkpoints.restore(like(state()), step=15)


def test_leftovers_of_a_killed_save_are_invisible_and_removed(checkpoints):
    leftover = checkpoints.directory / "step_00000040.tmp"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    assert checkpoints.latest == 30
    checkpoints.save(50, state())
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["run[1]", "run?", "run*", "back\\slash", "bytes\udcff"])
@pytest.mark.sample(2)
def test_a_directory_named_like_a_pattern_is_written_and_read(tmp_path, name):
    for directory, value in (("run1", 1.0), (name, 2.0)):  # run1 fits some of the patterns
        training.Checkpoints(tmp_path / directory).save(10, state(value))
    assert_same_bits(training.Checkpoints(tmp_path / name).restore(like(state())), state(2.0))


def test_without_a_plain_directory_for_the_link_the_character_is_named(tmp_path, monkeypatch):
    (tmp_path / "temporary[1]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary[1]"))
    with pytest.raises(ValueError, match=r"temporary\[1\], must not hold the character '\['; set TMPDIR"):
        training.Checkpoints(tmp_path / "run[1]").save(10, state())


def test_a_place_that_orbax_cannot_read_is_named_and_nothing_is_set_aside(checkpoints, monkeypatch):
    def load(*_):
        raise ValueError("NOT_FOUND: " + 2000 * "tensorstore ")

    monkeypatch.setattr(training.checkpoint.orbax, "load", load)
    with pytest.raises(OSError, match=r"step_00000030 is intact, but Orbax cannot read it .*NOT_FOUND") as error:
        checkpoints.restore_latest(like(state()))
    assert len(str(error.value)) < 600
    assert checkpoints.steps == [10, 20, 30]


def test_strangers_among_the_checkpoints_are_ignored(checkpoints, tmp_path):
    directory, elsewhere = checkpoints.directory, tmp_path / "elsewhere"
    for name in ("step_²", "step_5", "step_-0000001", "step_00000099.old", "notes", "step_mine.tmp"):
        (directory / name).mkdir()
    (directory / "step_00000041").touch()
    (directory / "step_00000042.tmp").touch()
    for name in ("step_00000043", "step_00000044.tmp", "step_00000050"):
        (directory / name).symlink_to("nowhere")
    checkpoints.path(10).rename(elsewhere)
    checkpoints.path(10).symlink_to(elsewhere)
    checkpoints.save(40, state())
    assert checkpoints.steps == [20, 30, 40]
    with pytest.warns(UserWarning, match=r"step_00000050 is not a directory; .*step_00000050\.damaged"):
        checkpoints.save(50, state(), metrics={"error": 0.01})
    assert checkpoints.steps == [30, 40, 50]
    assert elsewhere.is_dir()
    assert sorted(path.name for path in directory.glob("*.tmp")) == ["step_mine.tmp"]


def deep(path):
    path.write_text("[" * 100_000 + "]" * 100_000)


def huge(path):
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("/dev/zero"),
        os.mkfifo,
        pathlib.Path.mkdir,
        deep,
        huge,
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"sha256": null, "content": []}'),
        lambda path: path.write_text(json.dumps({"sha256": json_checksum([]), "content": []})),
        lambda path: path.write_text(json.dumps({"sha256": json_checksum({}), "content": {}})),
        lambda path: path.write_bytes(b"\xff"),
    ],
    ids=["device", "pipe", "directory", "deep", "huge", "list", "seal", "no object", "no fields", "bytes"],
)
def test_promise_3_a_manifest_of_any_kind_is_damage(checkpoints, put):
    manifest = checkpoints.path(30) / "manifest.json"
    manifest.unlink()
    put(manifest)
    with pytest.warns(UserWarning, match=r"step 30 is damaged: .*manifest\.json .*set aside"):
        assert checkpoints.restore_latest(like(state()))[0] == 20


def test_promise_3_a_copy_under_another_step_is_damage(checkpoints):
    shutil.copytree(checkpoints.path(30), checkpoints.path(50))
    with pytest.warns(UserWarning, match=r"manifest\.json is not of step 50: it was saved at step 30"):
        assert checkpoints.restore_latest(like(state()))[0] == 30
    with pytest.raises(FileNotFoundError, match="of step 50"):
        checkpoints.restore(like(state()), step=50)


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3:/bucket/run"])
def test_remote_addresses_are_refused(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"directory='{address}' is a remote address.*local"):
        training.Checkpoints(pathlib.PurePosixPath(address) if ":/b" in address else address)
    assert not list(tmp_path.iterdir())


def test_the_manifest_can_be_read_by_people(checkpoints):
    written = json.loads((checkpoints.path(20) / "manifest.json").read_text())["content"]
    assert written == checkpoints.manifest(20)
    assert written["metrics"] == {"error": 0.05}
    assert written["leaves"]["params.layers.1.bias"] == "bfloat16[3]"
    assert np.all([len(entry) == 2 for entry in written["files"].values()])
