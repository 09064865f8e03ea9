"""A config that no run could use is refused when it is built, with the remedy in the message."""

import ast
import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import training
from jaxop.training.config import check_same_settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("loss", "l1", "did you mean"),
        ("steps", 0, "steps=0 must be at least 1"),
        ("steps", 3_000_000_000, "steps=3000000000 must lie below 2\\^31"),
        ("keep_last", 0, "at least 1"),
        ("batch_size", 6, "multiple of accumulate=4; the nearest are 4 and 8"),
        ("learning_rate", 0.0, "must be positive"),
        ("learning_rate", float("nan"), "must be finite"),
        ("final_learning_rate", 1.0, "must not exceed learning_rate"),
        ("warmup_steps", 101, "between 0 and steps=100"),
        ("weight_decay", -1.0, "not negative"),
        ("clip_norm", -1.0, "not negative"),
        ("ema_decay", 1.0, r"\[0, 1\)"),
        ("seed", -1, "2\\^32"),
        ("time_limit_s", 0.0, "None for no limit"),
        ("time_limit_s", float("inf"), "None for no limit"),
    ],
)
def test_impossible_values_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        training.TrainingConfig(**({"steps": 100, "batch_size": 8, "accumulate": 4} | {field: value}))


def read_from_config(source: str) -> set[str]:
    """Attributes that the code, not its text, reads from something called config."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value).split(".")[-1] == "config"}


def test_every_field_is_read_somewhere():
    package = pathlib.Path(training.__file__).parent
    read = set().union(*(read_from_config(path.read_text()) for path in package.glob("*.py")))
    assert {field.name for field in dataclasses.fields(training.TrainingConfig)} <= read


def test_only_code_counts_as_reading_a_field():
    source = '"""Uses config.seed."""\nx = self.config.keep_last_few + config.steps  # and config.loss\n'
    assert read_from_config(source) == {"keep_last_few", "steps"}


def test_settings_survive_json():
    settings = training.to_json(
        {
            "training": training.TrainingConfig(seed=5),
            "grid": (8, 8),
            "path": pathlib.Path("a/b"),
            "dtype": np.dtype("float32"),
            "parameter dtype": jnp.bfloat16,
            "mean": np.arange(2),
            "rate": np.float32(0.5),
        }
    )
    assert json.loads(json.dumps(settings)) == settings
    assert settings["dtype"] == "float32"
    assert settings["parameter dtype"] == "bfloat16"
    assert training.TrainingConfig.from_dict(settings["training"]) == training.TrainingConfig(seed=5)


def test_settings_without_json_form_are_located():
    with pytest.raises(TypeError, match=r"settings.operator.activation\[1\]=<function"):
        training.to_json({"operator": {"activation": [1, np.sin.__class__.__call__ and (lambda x: x)]}})


def test_every_differing_field_is_listed():
    old = {"operator": {"width": 32, "modes": [8, 8], "name": "fano"}, "training": {"seed": 0, "keep_last": 2}}
    new = {"operator": {"width": 64, "modes": [8, 8], "heads": 4}, "training": {"seed": 1, "keep_last": 5}}
    with pytest.raises(ValueError, match="other settings") as error:
        check_same_settings(old, new, "config.json")
    message = str(error.value)
    for line in ("operator.width: 32 -> 64", "operator.heads: absent -> 4", 'operator.name: "fano" -> absent'):
        assert line in message
    assert "training.seed: 0 -> 1" in message
    assert "modes" not in message
    assert "keep_last" not in message
    check_same_settings(old, old | {"training": {"seed": 0, "keep_last": 9}}, "config.json")
