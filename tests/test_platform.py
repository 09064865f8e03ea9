"""The branch of a program is that of the platform it is compiled for, not that of the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from jaxop import attention, domains, nn, operators
from jaxop._platform import compiled_for, platform
from jaxop.training.mesh import over_devices
from tests.jaxprs import equations

ROWS = jnp.ones((3 * nn.pointwise.ROWS, 2))


def loops(function, *arguments):
    return sum(equation.primitive.name == "scan" for equation in equations(function, *arguments))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="compares with the programs of a CPU")
class TestLoopsOverBlocks:
    """Blocks that fit the cache of a CPU core are loops, which an accelerator does not need."""

    def test_rows(self):
        def call(rows):
            return nn.in_blocks(lambda block: block + 1, rows)

        assert loops(call, ROWS) == 1
        with compiled_for("tpu"):
            assert loops(call, ROWS) == 0

    def test_heads(self):
        def call(query):
            return attention.integral_attention(query, query, query, implementation="chunked")

        query = jnp.ones((16, 3, 4))
        alone = loops(call, query)
        with compiled_for("gpu"):
            assert loops(call, query) == alone - 1

    def test_subdomains(self):
        schwarz = nn.SchwarzAttentionConfig(subdomains=4)
        config = operators.TransformerNeuralOperatorConfig(1, 1, width=4, heads=2, layers=1, schwarz=schwarz)
        operator, domain = operators.build(config, rngs=nnx.Rngs(0)), domains.interval(64)

        def call(values):
            return operator(values, domain)

        values = jnp.ones((2, 64, 1))
        alone = loops(call, values)
        with compiled_for("tpu"):
            assert loops(call, values) < alone


def test_a_program_is_traced_again_for_another_platform():
    names = []
    call = jax.jit(lambda x: names.append(platform()) or x)
    call(1.0)
    with compiled_for("tpu"):
        call(1.0)
    call(1.0)
    assert names == [jax.default_backend(), "tpu"]


def test_the_devices_of_a_mesh_decide(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    names = []
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    call = over_devices(lambda batch, params: names.append(platform()) or batch, mesh, mean=False)
    np.testing.assert_array_equal(jax.jit(call)(jnp.ones(2), {}), 1)
    assert names == [jax.devices()[0].platform]


def test_a_fused_kernel_is_judged_by_the_platform_of_the_program():
    query = jax.ShapeDtypeStruct((8, 1, 4), jnp.float16)

    def call(query):
        return attention.integral_attention(query, query, query, implementation="tpu")

    with compiled_for("gpu"), pytest.raises(NotImplementedError, match="needs a TPU, but JAX runs on gpu"):
        jax.eval_shape(call, query)
    with compiled_for("tpu"), pytest.raises(NotImplementedError, match="takes float32 or bfloat16, got float16"):
        jax.eval_shape(call, query)
