import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jaxop._varying import varying_like


def test_outside_a_mesh_nothing_changes():
    tree = {"a": jnp.ones(3), "b": None, "c": 2.0}
    assert varying_like(tree, jnp.ones(2)) is tree


@pytest.mark.parametrize("axes", [("first",), ("first", "second")])
@pytest.mark.sample(1)
def test_leaves_take_the_marks_of_all_and_the_transpose_sums(axes):
    mesh = jax.make_mesh((1, 1), ("first", "second"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def body(x, shared):
        marked = varying_like({"zero": jnp.zeros(2), "shared": shared}, x)
        for leaf in jax.tree.leaves(marked):
            assert jax.typeof(leaf).manual_axis_type.varying == set(axes)
        return jax.grad(lambda s: jnp.sum(x * varying_like(s, x)))(shared)

    spec = PartitionSpec(axes)
    total = jax.shard_map(body, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=PartitionSpec())
    assert total(jnp.arange(4.0), jnp.float32(1)) == 6
