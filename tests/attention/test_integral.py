"""Validation, dispatch, memory and the fused backends of `integral_attention`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import attention, kernels
from jaxop.attention import IMPLEMENTATIONS, fused, integral, integral_attention
from jaxop.attention.operands import check_operands
from jaxop.kernels import ExpDotProduct


def arrays(n=4, m=6, heads=2, depth=8, channels=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(n, heads, depth), (m, heads, depth), (m, heads, channels)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("weighted", [True, False])
def test_epsilon_belongs_to_the_end(weighted):
    """In units of the mean weight, as the published kernel has it for equal ones."""
    q, k, v = arrays()
    weights = jnp.asarray(np.linspace(0.4, 1.6, 6) if weighted else np.ones(6), jnp.float32)

    @jax.jit
    def both(q, k, v, weights):
        whole = integral_attention(q, k, v, 3 * weights, kernel=kernels.FourierIntegral(0.5, epsilon=0.2))
        part = attention.accumulate(q, k, v, weights, kernel=kernels.FourierIntegral(0.5))
        return whole, attention.finish(part, epsilon=0.2)

    whole, ours = both(q, k, v, weights)
    np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda q, k, v: (q[0], k, v), "query must have shape (nodes, heads, channels), got (2, 8)"),
            (
                lambda q, k, v: (q, k[..., :5], v),
                "key must have shape (m, h, d) = (m, 2, 8) to match query, got (6, 2, 5)",
            ),
            (lambda q, k, v: (q, k, v[:5]), "value must have shape (m, h, c) = (6, 2, c) to match key, got (5, 2, 3)"),
            (lambda q, k, v: (q, k[:0], v[:0]), "key has no nodes"),
            (lambda q, k, v: (q[:0], k, v), "query has no nodes"),
            (lambda q, k, v: (q, k, v[..., :0]), "value has no channels"),
            (lambda q, k, v: (q, k, v, jnp.ones(5)), "weights must have shape (m,) = (6,), one per key, got (5,)"),
        ],
    )
    def test_shapes(self, change, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            integral_attention(*change(*arrays()))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"mask": jnp.ones(6)}, TypeError, "mask must be boolean with True = attend, got float32"),
            (
                {"mask": jnp.ones(4, bool)},
                ValueError,
                "mask must have shape (m,) = (6,), (n, m) = (4, 6) or (h, n, m) =",
            ),
            ({"is_causal": True}, ValueError, "is_causal needs as many queries as keys, got n=4 and m=6"),
            ({"implementation": "chunkd"}, ValueError, "implementation='chunkd' is unknown: did you mean 'chunked'"),
            ({"kernel_axis": 0}, TypeError, "kernel_axis"),
            (
                {"kernel": kernels.PerHead(ExpDotProduct(jnp.ones(3)))},
                ValueError,
                "kernel must have one entry per head of query, 2, got PerHead(ExpDotProduct) of 3 heads",
            ),
            ({"kernel": "exp"}, TypeError, "kernel must be a Kernel, such as kernels.ExpDotProduct(), got str"),
            (
                {"kernel": kernels.from_pair(lambda q, k: q - k)},
                ValueError,
                "kernel must map one query and one key of shape (8,) to a scalar, got shape (8,)",
            ),
            (
                {"kernel": kernels.Gaussian(jnp.ones(2))},
                ValueError,
                "got shape (2,); sum over the channels, or pass kernels.PerHead(kernel)",
            ),
            (
                {"kernel": ExpDotProduct(jnp.ones(2))},
                ValueError,
                "have an axis of heads, pass kernels.PerHead(kernel)",
            ),
            (
                {"kernel": kernels.from_pair(lambda q, k: q @ k, sign="signed")},
                ValueError,
                "a signed kernel cannot be normalised",
            ),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=re.escape(message)):
            integral_attention(*arrays(), **options)

    def test_accumulate_checks_too(self):
        q, k, v = arrays()
        with pytest.raises(ValueError, match=r"weights must have shape \(m,\) = \(6,\)"):
            attention.accumulate(q, k, v, jnp.ones(1), kernel=ExpDotProduct())

    def test_masks_may_be_lists_and_inputs_integers(self):
        q, k, v = arrays()
        masked = integral_attention(q, k, v, mask=[True] * 5 + [False])
        np.testing.assert_allclose(masked, integral_attention(q, k[:5], v[:5]), rtol=1e-5)
        integers = [jnp.ones_like(a, jnp.int32) for a in (q, k, v)]
        np.testing.assert_allclose(integral_attention(*integers), 1.0, rtol=1e-6)

    def test_complex_input(self):
        q, k, v = arrays()
        with pytest.raises(TypeError, match="value must be real, got dtype complex64"):
            integral_attention(q, k, v.astype(jnp.complex64))

    def test_float64_without_x64_warns_once(self, monkeypatch):
        from jaxop import _validation

        monkeypatch.setattr(_validation, "_warned_about_float64", set())
        q, k, v = (np.asarray(a, np.float64) for a in arrays())
        with pytest.warns(UserWarning, match="is float64 but JAX runs in 32 bits") as caught:
            [integral_attention(q, k, v) for _ in range(2)]
        assert len(caught) == 1


class TestNothingFallsBack:
    @pytest.mark.parametrize("implementation", ["xla", "cudnn", "tpu"])
    def test_other_kernels(self, implementation):
        kernel = kernels.from_pair(lambda q, k: -jnp.sum((q - k) ** 2), log=True)
        with pytest.raises(NotImplementedError, match="FunctionKernel per head"):
            integral_attention(*arrays(), kernel=kernel, implementation=implementation)

    @pytest.mark.parametrize("scale", [-0.5, 0.0, 2])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=["float32", "float16"])
    @pytest.mark.sample(2)
    def test_any_scale_with_a_weightless_key_far_above(self, scale, dtype):
        q, k, v = arrays(dtype=dtype)
        weights = jnp.ones(6).at[1].set(0.0)
        k = k.at[1].set(30 * jnp.sign(scale) * q[0])
        options = {"kernel": ExpDotProduct(scale)}
        out = integral_attention(q, k, v, weights, implementation="xla", **options)
        truth = integral_attention(q, k, v, weights, implementation="dense", **options)
        np.testing.assert_allclose(
            np.asarray(out, np.float32), np.asarray(truth, np.float32), atol=1e-5 if dtype == jnp.float32 else 1e-2
        )

    def test_half_precision_under_jit(self):
        q, k, v = arrays(dtype=jnp.float16)
        out, truth = (
            jax.jit(integral_attention, static_argnames="implementation")(q, k, v, implementation=i)
            for i in ("xla", "dense")
        )
        np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(truth, np.float32), atol=1e-2)

    def test_mixed_second_derivatives(self):
        q, k, v = arrays()

        def slope(w, q, implementation):
            return jnp.sum(jnp.sin(integral_attention(q, k, v, w, implementation=implementation)))

        def second(implementation):
            return jax.jit(jax.grad(lambda w: jnp.sum(jax.grad(slope, argnums=1)(w, q, implementation) ** 2)))(
                jnp.linspace(0.1, 1.0, 6)
            )

        assert np.abs(second("dense")).max() > 1e-3
        np.testing.assert_allclose(second("xla"), second("dense"), rtol=1e-4, atol=1e-5)

    def test_unnormalised(self):
        with pytest.raises(NotImplementedError, match="always normalises"):
            integral_attention(*arrays(), normalize=False, implementation="xla")

    def test_float64(self, x64):
        with pytest.raises(NotImplementedError, match="rounds logits to float32"):
            integral_attention(*arrays(dtype=jnp.float64), implementation="xla")

    @pytest.mark.parametrize(("implementation", "device"), [("cudnn", "GPU"), ("tpu", "TPU")])
    def test_device(self, implementation, device):
        if jax.default_backend() != "cpu":
            pytest.skip("an accelerator is present")
        with pytest.raises(NotImplementedError, match=f"needs a {device}, but JAX runs on cpu"):
            integral_attention(*arrays(), implementation=implementation)


class TestMemory:
    """The chunked path holds no n × m array, forward or backward."""

    @staticmethod
    def scratch(n, implementation):
        q, k, v = arrays(n, n, heads=1, depth=8, channels=8)

        def loss(q, k, v, w):
            return jnp.sum(integral_attention(q, k, v, w, implementation=implementation) ** 2)

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(q, k, v, jnp.ones(n)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def test_scratch_grows_linearly(self):
        small, large = self.scratch(4096, "chunked"), self.scratch(16384, "chunked")
        assert large < 4.5 * small
        assert large < 32 * 2**20 < self.scratch(4096, "dense")

    @pytest.mark.study
    def test_65536_nodes_in_two_gigabytes(self):
        assert self.scratch(65536, "chunked") < 2 * 2**30
        q, k, v = arrays(65536, 65536, heads=1, depth=8, channels=8)
        gradient = jax.jit(jax.grad(lambda v: jnp.sum(integral_attention(q, k, v))))(v)
        # the integral of every row is 1: each value receives the column sums of the attention matrix
        np.testing.assert_allclose(jnp.sum(gradient) / 8, 65536, rtol=1e-4)


class TestDefault:
    def test_second_call_compiles_nothing(self):
        from jaxop import testing

        call = jax.jit(integral_attention)
        call(*arrays())
        with testing.count_compilations() as compilations:
            call(*arrays())
        assert compilations() == 0

    def test_large_problems_are_chunked(self, monkeypatch):
        called = []
        monkeypatch.setitem(integral._RUN, "chunked", lambda operands, _: called.append(1) or operands.value)
        integral_attention(*arrays(300, 300))
        assert called
        assert set(IMPLEMENTATIONS) == {"dense", "chunked", "xla", "cudnn", "tpu"}


class TestBackends:
    """What cuDNN and the TPU kernel are fed, checked where they cannot run."""

    @pytest.mark.parametrize("backend", ["cudnn", "tpu"])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.sample(2)
    def test_augmented_operands_give_weighted_attention(self, backend, dtype, monkeypatch):
        monkeypatch.setitem(fused._SIZES, "xla", fused._SIZES[backend])
        q, k, v = arrays(n=5, m=7, dtype=dtype)
        weights = jnp.linspace(0.0, 3.0, 7) ** 3
        out = integral_attention(q, k, v, weights, implementation="xla")
        truth = integral_attention(q, k, v, weights, implementation="dense")
        tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
        np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(truth, np.float32), atol=tolerance)

    def test_tpu_kernel_in_interpret_mode(self, monkeypatch):
        from jax.experimental.pallas import tpu as pltpu

        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        q, k, v = arrays(n=5, m=7)
        weights = jnp.linspace(0.0, 3.0, 7)
        with pltpu.force_tpu_interpret_mode(), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            operands = check_operands(q, k, v, weights, mask=jnp.arange(7) != 3)
            out = fused.fused_attention("tpu", operands, normalize=True)
        monkeypatch.undo()
        truth = integral_attention(q, k, v, weights, mask=jnp.arange(7) != 3)
        np.testing.assert_allclose(out, truth, atol=1e-4)

    @pytest.mark.gpu
    @pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
    def test_cudnn_agrees_with_dense_in_value_and_gradient(self):
        q, k, v = arrays(n=64, m=96, depth=16, channels=16, dtype=jnp.bfloat16)
        weights = jnp.linspace(0.0, 3.0, 96)

        def loss(implementation):
            def of(q, k, v, w):
                out = integral_attention(q, k, v, w, implementation=implementation)
                return jnp.sum(jnp.sin(out.astype(jnp.float32)))

            return jax.jit(jax.grad(of, argnums=(0, 1, 2, 3)))(q, k, v, weights)

        for gradient, truth in zip(loss("cudnn"), loss("dense"), strict=True):
            gradient, truth = np.asarray(gradient, np.float32), np.asarray(truth, np.float32)
            assert np.linalg.norm(gradient - truth) < 3e-2 * np.linalg.norm(truth)


def test_epsilon_of_finish_is_refused_below_0_and_may_be_traced():
    part = attention.Partial(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.ones((2, 1, 3)))
    with pytest.raises(ValueError, match=r"epsilon must not be negative, got -1\.0"):
        attention.finish(part, epsilon=-1.0)
    np.testing.assert_allclose(jax.jit(lambda e: attention.finish(part, epsilon=e))(0.5), 1 / 1.5, rtol=1e-6)
