"""What training promises: nothing is overwritten, and a run that cannot work leaves nothing behind."""

import dataclasses
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, training
from jaxop.training._files import writing
from tests.training.cases import CONFIG, SHORT, Tiny, crash, rows, run, samples, tiny


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


def ones(nodes, channels=1):
    return np.ones((3, nodes, channels), np.float32)


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (samples(3), {}, "batch_size=4 exceeds the 3 training samples"),
        (
            samples(),
            {"square": data.Samples(ones(9), ones(9), domains.box((3, 3)))},
            r"valid\['square'\] has 2 space dimensions, but the training samples have 1",
        ),
        (
            samples(),
            {"two": data.Samples(ones(9, 2), ones(9), domains.interval(9))},
            "2 input channels, but the training samples have 1",
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
