"""Runs that version 0.1.0 was interrupted in, resumed, evaluated and loaded by this one."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, training
from tests.experiments.conftest import jaxop

EARLIER = Path(__file__).parents[1] / "training" / "earlier_run"

pytestmark = pytest.mark.optax


@pytest.mark.sample(1)
@pytest.mark.parametrize("operator", ["tno", "fano"])
def test_a_run_of_an_earlier_version_ends_where_it_would_have(operator, tmp_path):
    directory = tmp_path / operator
    shutil.copytree(EARLIER / operator, directory, ignore=shutil.ignore_patterns("final.npz"))
    config = json.loads((directory / "config.json").read_text())
    config["data"]["train"] = str(EARLIER / "pairs.npz")
    (directory / "config.json").write_text(json.dumps(config))
    assert training.load_run(directory).step("last") == 4

    jaxop("resume", directory)
    run = training.load_run(directory)
    assert [row["step"] for row in run.metrics if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (directory / "evaluation" / "test.csv").exists()

    model = run.model(checkpoint="last")
    parameters = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    values = np.load(EARLIER / "pairs.npz")["x"][:3, :, None]
    outputs = model(values, domains.box((16,), rule="midpoint"))
    with np.load(EARLIER / operator / "final.npz") as final:
        assert {jax.tree_util.keystr(path) for path, _ in parameters} == set(final.files) - {"outputs"}
        for path, leaf in parameters:
            expected = final[jax.tree_util.keystr(path)]
            np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))
        np.testing.assert_allclose(outputs, final["outputs"], rtol=1e-4, atol=1e-5)
