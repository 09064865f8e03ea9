"""What training promises: a run is resumed with what it was started with, or the difference is named."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from jaxop import data, domains, training
from jaxop._files import json_checksum
from jaxop.training.identity import describe_samples
from tests.training.cases import CONFIG, SHORT, assert_same_bits, interrupted, rows, run, samples, tiny


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


@pytest.mark.thorough
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
        manifest.write_text(json.dumps({"sha256": json_checksum(content), "content": content}))
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_settings_that_move_no_parameter_may_change(whole, tmp_path):
    interrupted(tmp_path, 12)
    config = dataclasses.replace(CONFIG, checkpoint_every=7, keep_last=4, time_limit_s=1e6)
    assert_same_bits(run(tmp_path, resume=True, config=config).state, whole[1].state)
    assert training.load_run(tmp_path).training == config
