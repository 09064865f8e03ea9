"""What the training promises: nothing lost, nothing damaged unnoticed, the same run every time."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, training
from jaxop.training._files import writing
from jaxop.training.run import describe_samples, record_versions
from tests.training.cases import CONFIG, Tiny, assert_same_bits, rows, run, samples, state_at, tiny
from tests.training.run_tiny import LONG

ROOT = pathlib.Path(__file__).parents[2]
SHORT = dataclasses.replace(CONFIG, steps=2, warmup_steps=1)


class Interrupt:
    """Does something when a step is logged."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def start(self, run_dir, settings, step): ...

    def log(self, step, metrics):
        if step == self.step and "loss" in metrics:
            self.action()

    def close(self): ...


def crash():
    raise KeyboardInterrupt


def interrupted(directory, step, action=crash, **options):
    with pytest.raises(KeyboardInterrupt):
        run(directory, loggers=[Interrupt(step, action)], **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


def launch(directory, seconds):
    command = [sys.executable, "-m", "tests.training.run_tiny", str(directory), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=60.0):
    """Polls until the condition holds; whether it did before the process ended."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, "the process neither ended nor got there"
        time.sleep(0.0005)
    return False


def test_promise_1_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", config=LONG)
    directory, moments = tmp_path / "killed", random.Random(int.from_bytes(os.urandom(4)))
    metrics = directory / training.loggers.METRICS_FILE
    saves_hit = 0
    for signal_sent in ("in a save", signal.SIGTERM, "any time"):
        process = launch(directory, 0.02)
        before = metrics.stat().st_size if metrics.is_file() else 0
        running = wait_for(lambda before=before: metrics.is_file() and metrics.stat().st_size > before, process)
        assert running, process.communicate()
        if signal_sent == signal.SIGTERM:
            with pytest.raises(BlockingIOError, match=f"process {process.pid} on .* is writing to {directory}"):
                run(directory, config=LONG, resume=True)
        if signal_sent == "in a save":
            assert wait_for(lambda: list(directory.glob("checkpoints/*.tmp")), process), process.communicate()
            process.kill()
        elif signal_sent == "any time":
            time.sleep(moments.uniform(0, 0.4))
            process.kill()
        else:
            process.send_signal(signal_sent)
        output, errors = process.communicate(timeout=60)
        if signal_sent == signal.SIGTERM:
            assert process.returncode == 0, errors
            assert output.split()[0] == "terminated"
            assert training.load_run(directory).step("last") == int(output.split()[1])
        else:
            assert process.returncode == -signal.SIGKILL, (output, errors)
        saves_hit += bool(list(directory.glob("checkpoints/*.tmp")))
    assert saves_hit, "no kill fell into a save"
    resumed = run(directory, config=LONG, resume=True)
    assert (resumed.stopped, int(resumed.state.step)) == ("completed", LONG.steps)
    assert_same_bits(whole.state, resumed.state)
    assert_same_bits(whole.state, state_at(directory, LONG.steps))
    assert rows(tmp_path / "whole") == rows(directory)
    assert [row["step"] for row in rows(directory) if "loss" in row] == list(range(1, LONG.steps + 1))
    assert len(json.loads((directory / "versions.json").read_text())) == 4


@pytest.mark.parametrize("step", [1, 13, 24])
def test_promise_1_a_resumed_run_ends_with_the_same_bits_wherever_it_stopped(whole, tmp_path, step):
    interrupted(tmp_path, step)
    resumed = run(tmp_path, resume=True)
    assert_same_bits(whole[1].state, resumed.state)
    assert rows(tmp_path) == rows(whole[0])
    assert training.load_run(tmp_path).checkpoints.steps == training.load_run(whole[0]).checkpoints.steps


def test_promise_2_on_one_process_sigterm_finishes_the_step_saves_and_returns(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stopped = run(tmp_path, loggers=[Interrupt(8, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.stopped == "terminated"
    step = int(stopped.state.step)
    assert step in (8, 9, 10)
    assert_same_bits(state_at(tmp_path, step), stopped.state)
    assert_same_bits(run(tmp_path, resume=True).state, whole[1].state)
    assert rows(tmp_path) == rows(whole[0])


def test_promise_3_a_run_survives_its_newest_checkpoint(whole, tmp_path):
    interrupted(tmp_path, 18)
    newest = training.load_run(tmp_path).checkpoints.path(15)
    file = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step 15 is damaged.*step_00000015\.damaged"):
        resumed = run(tmp_path, resume=True)
    assert_same_bits(resumed.state, whole[1].state)
    assert rows(tmp_path) == rows(whole[0])


@pytest.mark.parametrize("content", ['[{"from_step": 0', "{}", "[" * 100_000])
def test_promise_3_versions_that_cannot_be_read_are_set_aside(tmp_path, content):
    (tmp_path / "versions.json").write_text(content)
    with pytest.warns(UserWarning, match=r"versions\.json is damaged; .* as .*versions\.json\.damaged"):
        record_versions(tmp_path, 5, resume=True)
    assert (tmp_path / "versions.json.damaged").read_text() == content
    assert len(json.loads((tmp_path / "versions.json").read_text())) == 1


def test_promise_3_what_cannot_be_read_back_stops_before_the_first_step(tmp_path, monkeypatch):
    def load(*_):
        raise ValueError("NOT_FOUND")

    monkeypatch.setattr(training.checkpoint.orbax, "load", load)
    with pytest.raises(OSError, match="step_00000000 is intact, but Orbax cannot read it"):
        run(tmp_path)
    assert rows(tmp_path) == []


def test_promise_3_a_directory_named_like_a_pattern_holds_a_run(whole, tmp_path):
    directory = tmp_path / "run[1]"
    interrupted(directory, 13)
    assert_same_bits(run(directory, resume=True).state, whole[1].state)


def state_like():
    _, state = training.init_state(tiny(), training.make_optimizer(CONFIG), CONFIG)
    return {"params": state.params, "ema": state.ema}


def test_promise_5_nan_in_a_batch_names_step_samples_and_array_and_is_not_saved(tmp_path):
    train = samples()
    step = next(t for t in range(12, 24) if 5 in data.batch_indices(22, 4, seed=CONFIG.seed, step=t)) + 1
    drawn = data.batch_indices(22, 4, seed=CONFIG.seed, step=step - 1).tolist()
    if step > 17:
        pytest.fail("the sample must come early enough to leave steps")
    spoil = Interrupt(10, lambda: train.inputs.__setitem__((5, 3, 0), np.nan))
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, train=train, loggers=[spoil])
    message = str(error.value)
    assert f"step {step}:" in message
    assert str(drawn) in message
    assert "batch.inputs" in message
    assert training.load_run(tmp_path).step("last") < step
    assert_finite(tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, step))


def assert_finite(directory):
    checkpoints = training.load_run(directory).checkpoints
    for step in checkpoints.steps:
        restored = checkpoints.restore(state_like(), step=step, parts=("params", "ema"))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored))


class Root(Tiny):
    """A network whose loss is finite while the gradient of one parameter is not."""

    def __init__(self, **options):
        super().__init__(**options)
        self.root = nnx.Param(jnp.zeros(3))

    def __call__(self, values, domain, **options):
        return super().__call__(values, domain, **options) + jnp.sqrt(jnp.sum(self.root[...] ** 2))


def test_promise_5_a_gradient_that_is_not_finite_names_its_parameter(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 1: .*the gradient of root"):
        run(tmp_path, model=Root(rngs=nnx.Rngs(0)))
    assert training.load_run(tmp_path).step("last") == 0


def test_promise_5_divergence_is_not_saved(tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e38, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match="not saved"):
        run(tmp_path, config=config)
    assert_finite(tmp_path)


def test_promise_6_resuming_with_other_settings_lists_the_fields(tmp_path):
    interrupted(tmp_path, 6)
    before = rows(tmp_path)
    with pytest.raises(ValueError, match=r"operator\.width: 8 -> 16") as error:
        run(
            tmp_path,
            resume=True,
            model=tiny(width=16),
            config=dataclasses.replace(CONFIG, learning_rate=0.1),
            settings={"operator": {"name": "tiny", "width": 16}},
        )
    assert "training.learning_rate: 0.01 -> 0.1" in str(error.value)
    assert rows(tmp_path) == before


def test_promise_6_an_edited_config_is_caught_by_the_leaves(tmp_path):
    interrupted(tmp_path, 6)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"width": 8', '"width": 16'))
    settings = json.loads(config.read_text())["operator"]
    with pytest.raises(
        ValueError, match=r"params\.layers\.0\.kernel: saved as float32\[2,8\], expected float32\[2,16\]"
    ):
        run(tmp_path, resume=True, model=tiny(width=settings["width"]), settings={"operator": settings})
    with pytest.raises(ValueError, match=r"layers\.0\.kernel"):
        training.load_run(tmp_path).restore(tiny(width=16))


def edited_settings(directory, old, new):
    config = directory / "config.json"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def test_promise_6_an_edited_config_is_compared_with_the_sealed_one(tmp_path):
    interrupted(tmp_path, 6)
    edited_settings(tmp_path, '"learning_rate": 0.01', '"learning_rate": 0.1')
    recorded = training.load_run(tmp_path)
    with pytest.raises(ValueError, match=r"step_00000005 -> now.*\n  training\.learning_rate: 0\.01 -> 0\.1\n"):
        run(tmp_path, resume=True, config=recorded.training)
    assert recorded.checkpoints.latest == 5


def test_a_run_of_an_earlier_version_can_be_resumed(whole, tmp_path):
    """Its manifests hold no settings, its config no sums over all samples."""
    interrupted(tmp_path, 13)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["valid_sets"]
    for part in config["train"].values():
        if isinstance(part, dict):
            del part["contents"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for manifest in tmp_path.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text())["content"]
        del content["settings"]
        manifest.write_text(json.dumps({"sha256": training.checkpoint._seal(content), "content": content}))
    with pytest.raises(ValueError, match=r"file: absent -> "):
        run(tmp_path, resume=True, settings={"operator": config["operator"], "file": pathlib.Path("a.npz")})
    assert_same_bits(run(tmp_path, resume=True).state, whole[1].state)
    assert "settings" in training.load_run(tmp_path).checkpoints.manifest(24)


class Lazy:
    """An array that is read as one in a file is: by slices and increasing indices."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        assert isinstance(index, slice) or (np.diff(index) > 0).all()
        return self.array[index]


def edited(array, row):
    array = np.array(array)
    array[row] += 1
    return array


def test_promise_6_resuming_on_other_samples_lists_what_differs(whole, tmp_path):
    interrupted(tmp_path, 6)
    before, train = rows(tmp_path), samples()
    u, v, grid = train.inputs, train.targets, train.domain
    moved = domains.from_samples(edited(grid.points[:, 0], -1))
    others = {
        "inputs.contents": [data.Samples(Lazy(edited(u, (1, 4, 0))), v, grid)],
        "targets.contents": [data.Samples(u, edited(v, (1, 4, 0)), grid)],
        "inputs.crc32": [data.Samples(edited(u, row), v, grid) for row in (0, 11, 21)],
        "targets.crc32": [data.Samples(u, Lazy(edited(v, row)), grid) for row in (0, 11, 21)],
        "inputs.dtype": [data.Samples(u.astype(np.float16), v, grid)],
        "samples": [train.take(slice(0, 21))],
        "domain.crc32": [data.Samples(u, v, moved)],
        "domain.stacked": [data.Samples(u, v, domains.stack([grid] * 22))],
        "at.kind": [data.Samples(u, v, grid, at=grid)],
    }
    for name, sets in others.items():
        for other in sets:
            with pytest.raises(ValueError, match=rf"other settings.*\n(.*\n)*  train\.{name}: .* -> "):
                run(tmp_path, resume=True, train=other)
    assert rows(tmp_path) == before
    same = data.Samples(Lazy(u), v.astype(">f4"), grid)
    assert_same_bits(run(tmp_path, resume=True, train=same).state, whole[1].state)


def test_promise_6_domains_of_samples_are_told_apart():
    mesh = domains.triangle_mesh([[0, 0], [1, 0], [1, 1], [0, 1]], [[0, 1, 2], [0, 2, 3]])
    flipped = domains.triangle_mesh(mesh.points, [[0, 1, 3], [1, 2, 3]])
    nodes = domains.from_nodes([[0.0], [1.0], [2.0], [3.0]], [1.0, 1.0, 1.0, 1.0])
    heavier = domains.from_nodes(nodes.points, [1.0, 1.0, 1.0, 2.0])
    grids = [domains.from_samples([0.0, 1.0, 2.0, end]) for end in (3.0, 4.0)]
    values = np.ones((5, 4, 1), np.float32)
    kinds = [mesh, flipped, nodes, heavier, *grids, *(domains.stack([grids[0]] * 4 + [grid]) for grid in grids)]
    described = [describe_samples(data.Samples(values, values, domain)) for domain in kinds]
    assert len({json.dumps(description) for description in described}) == len(kinds)
    assert described[0] == describe_samples(data.Samples(values, values, mesh))


def test_promise_6_one_grid_of_many_and_one_validation_value_are_told_apart(tmp_path):
    grids = [domains.from_samples([0.0, 1.0, 2.0, end]) for end in (3.0, 4.0)]
    values = np.ones((5, 4, 1), np.float32)
    stacks = [domains.stack([grids[int(i == 1 and other)] for i in range(5)]) for other in (False, True)]
    first, second = (describe_samples(data.Samples(values, values, stack)) for stack in stacks)
    assert first["domain"]["crc32"] == second["domain"]["crc32"]
    assert first["domain"]["contents"] != second["domain"]["contents"]
    train, valid = samples(), {"set": samples(6, seed=1)}
    training.fit(tiny(), train, valid, SHORT, run_dir=tmp_path, progress=False)
    valid["set"].targets[1, 4, 0] += 1
    with pytest.raises(ValueError, match=r"valid_sets\.set\.targets\.contents: .* -> "):
        training.fit(tiny(), train, valid, SHORT, run_dir=tmp_path, progress=False, resume=True)


def test_paths_among_the_settings_may_change(tmp_path):
    def settings(*names):
        return {"data": {"train": pathlib.Path(names[0]), "test": [pathlib.Path(name) for name in names], "rule": "a"}}

    run(tmp_path, config=SHORT, settings=settings("a.npz"))
    run(tmp_path, config=SHORT, settings=settings("moved/a.npz", "b.npz"), resume=True)
    assert training.load_run(tmp_path).config["data"]["train"] == "moved/a.npz"
    other = settings("a.npz")
    other["data"]["rule"] = "b"
    with pytest.raises(ValueError, match=r"now\):\n  data\.rule: \"a\" -> \"b\"\nResume"):
        run(tmp_path, config=SHORT, settings=other, resume=True)


def test_settings_that_move_no_parameter_may_change(whole, tmp_path):
    interrupted(tmp_path, 12)
    config = dataclasses.replace(CONFIG, checkpoint_every=7, keep_last=4, time_limit_s=1e6)
    assert_same_bits(run(tmp_path, resume=True, config=config).state, whole[1].state)
    assert training.load_run(tmp_path).training == config


def test_promise_7_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume from"):
        run(tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


def test_promise_7_a_run_that_ended_before_its_first_checkpoint_starts_at_step_0(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoints, "save", lambda *_, **__: crash())
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, config=SHORT)
    assert (tmp_path / "config.json").is_file()
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01 -> 1\.0"):
        run(tmp_path, config=dataclasses.replace(SHORT, learning_rate=1.0), resume=True)
    assert run(tmp_path, config=SHORT, resume=True).stopped == "completed"
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2]


def test_promise_7_a_run_without_its_checkpoints_is_neither_resumed_nor_overwritten(tmp_path):
    run(tmp_path, config=SHORT)
    shutil.rmtree(tmp_path / "checkpoints")
    before = rows(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing to resume from.*start a new run in another directory"):
        run(tmp_path, config=SHORT, resume=True)
    with pytest.raises(FileExistsError, match=r"without an undamaged checkpoint; give another run_dir"):
        run(tmp_path, config=SHORT)
    assert rows(tmp_path) == before


@pytest.mark.parametrize("module", ["tensorboardX", "wandb"])
def test_a_logger_without_its_package_leaves_nothing(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    logger = training.TensorBoard() if module == "tensorboardX" else training.WeightsAndBiases("project")
    with pytest.raises(ImportError, match="pip install"):
        run(tmp_path / "run", config=SHORT, loggers=[logger])
    assert not list(tmp_path.iterdir())


def test_one_writer_at_a_time(tmp_path):
    (tmp_path / "writer.lock").write_text("999999 on elsewhere")  # of a process that was killed
    with (
        writing(tmp_path),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} on .* is writing to .*; wait until"),
    ):
        run(tmp_path, config=SHORT)
    assert not list(tmp_path.iterdir())
    run(tmp_path, config=SHORT)
    assert not (tmp_path / "writer.lock").exists()


@pytest.mark.parametrize("address", ["gs://bucket/run", pathlib.Path("s3://bucket/run")])
def test_remote_addresses_are_refused_before_anything_is_written(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"run_dir='.*' is a remote address"):
        run(address, config=SHORT)
    with pytest.raises(ValueError, match=r"directory='.*' is a remote address"):
        training.load_run(address)
    assert not list(tmp_path.iterdir())


def test_a_new_run_never_overwrites_another(whole):
    before = sorted(whole[0].rglob("*"))
    with pytest.raises(FileExistsError, match="saved up to step 24; resume it"):
        run(whole[0])
    assert sorted(whole[0].rglob("*")) == before


def test_promise_8_the_same_seed_gives_the_same_run(whole, tmp_path):
    assert_same_bits(run(tmp_path / "again").state, whole[1].state)
    assert rows(tmp_path / "again") == rows(whole[0])
    other = run(tmp_path / "other", config=dataclasses.replace(CONFIG, seed=4))
    assert rows(tmp_path / "other") != rows(whole[0])
    assert int(other.state.step) == CONFIG.steps


def test_promise_8_data_order_depends_on_seed_epoch_and_step_only(tmp_path):
    """A run resumed at step 10 sees the batches that the whole run saw from there on."""
    seen = {}

    class Watched(data.Samples):
        def __getitem__(self, indices):
            seen.setdefault(current, []).append(list(map(int, indices)))
            return super().__getitem__(indices)

    train = samples()
    train = Watched(train.inputs, train.targets, train.domain)
    current = "whole"
    run(tmp_path / "whole", train=train)
    current = "stopped"
    interrupted(tmp_path / "parts", 12, train=train)
    current = "resumed"
    run(tmp_path / "parts", train=train, resume=True)
    for batches in seen.values():
        del batches[0]  # read for its shapes alone
    assert seen["whole"] == [data.batch_indices(22, 4, seed=CONFIG.seed, step=t).tolist() for t in range(CONFIG.steps)]
    assert seen["resumed"] == seen["whole"][10:]


def test_a_completed_run_can_be_resumed_and_does_nothing(whole):
    before = rows(whole[0])
    result = run(whole[0], resume=True)
    assert result.stopped == "completed"
    assert_same_bits(result.state, whole[1].state)
    assert rows(whole[0]) == before


def test_a_time_limit_stops_saves_and_counts_over_resumptions(tmp_path):
    config = dataclasses.replace(CONFIG, steps=100_000, time_limit_s=0.3)
    rest = Interrupt(None, None)
    rest.log = lambda step, metrics: time.sleep(0.01)
    result = run(tmp_path, config=config, loggers=[rest])
    assert result.stopped == "time limit"
    assert 0.3 < result.seconds < 3
    assert training.load_run(tmp_path).step("last") == int(result.state.step)
    assert set(result.errors) == {"9/l2", "9/h1", "17/l2", "17/h1"}
    again = run(tmp_path, config=config, resume=True)
    assert again.stopped == "time limit"
    assert_same_bits(again.state, result.state)


def ones(nodes, channels=1):
    return np.ones((3, nodes, channels), np.float32)


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (samples(3), {}, "batch_size=4 exceeds the 3 training samples"),
        (
            samples(),
            {"square": data.Samples(ones(9), ones(9), domains.box((3, 3)))},
            r"valid\['square'\] has 2 space dimensions, the training samples have 1",
        ),
        (
            samples(),
            {"two": data.Samples(ones(9, 2), ones(9), domains.interval(9))},
            "2 input channels, the training samples have 1",
        ),
    ],
    ids=["small", "dimension", "channels"],
)
def test_samples_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, train, valid, message):
    with pytest.raises(ValueError, match=message):
        training.fit(tiny(), train, valid, CONFIG, run_dir=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


class Picky(Tiny):
    """An operator that runs on some grids only."""

    def __call__(self, values, domain, **options):
        if domain.size % 3:
            raise ValueError(f"3 does not divide the {domain.size} nodes")
        return super().__call__(values, domain, **options)


def test_a_model_that_cannot_run_on_some_samples_fails_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="3 does not divide the 17 nodes") as error:
        run(tmp_path, model=Picky(rngs=nnx.Rngs(0)))
    assert error.value.__notes__[-1] == "(while tracing the model on valid['17'])"
    with pytest.raises(ValueError, match="3 does not divide the 8 nodes") as error:
        training.fit(Picky(rngs=nnx.Rngs(0)), samples(nodes=8), {}, CONFIG, run_dir=tmp_path, progress=False)
    assert error.value.__notes__[-1] == "(while tracing the model on the training samples)"
    assert not list(tmp_path.iterdir())
