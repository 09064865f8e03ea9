"""What attention between functions on patches refuses."""

import re

import jax.numpy as jnp
import pytest

from jaxop import domains, kernels
from jaxop.attention.patch import patch_attention, patch_weights, spectral_patch_attention
from jaxop.spectral import Band
from tests.attention.patch_cases import SIZES, inputs, ones


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda q, k, v, w: (q[0], k, v, w), "query must have shape (patches, nodes of a patch, heads, channels)"),
            (lambda q, k, v, w: (q, k[:, :5], v, w), "nodes of query, (7,), got (4, 5, 2, 3); use Partition.split"),
            (lambda q, k, v, w: (q, k, v[:, :5], w), "value must have shape (patches, nodes of a patch, heads, chan"),
            (
                lambda q, k, v, w: (q, k, v, w[:5]),
                "weights must have shape (s,) = (7,), one per node of a patch, got (5,)",
            ),
            (
                lambda q, k, v, w: (q, k[:, :, :1], v, w),
                "key must have 2 heads of 3 channels to match query (3, 7, 2, 3), got (4, 7, 1, 3).",
            ),
            (
                lambda q, k, v, w: (q, k, v[:3], w),
                "value must have 4 patches and 2 heads to match key (4, 7, 2, 3), got (3, 7, 2, 2).",
            ),
            (lambda q, k, v, w: (q, k, v[:, :, :1], w), "value must have 4 patches and 2 heads"),
        ],
    )
    def test_shapes_that_do_not_fit_are_named(self, change, message, unchecked):
        arrays = inputs(SIZES["long tokens"], jnp.float32)
        with pytest.raises(ValueError, match=re.escape(message)):
            patch_attention(*change(*arrays))

    def test_coefficients_of_another_band_are_refused(self, unchecked):
        q = ones(2, 8, 3, 1, 2)
        with pytest.raises(ValueError, match=re.escape("coefficients must have shape (2, m, ..., c) with m = 4")):
            spectral_patch_attention(q, q, q, Band((12,), (4,)), 0.1)

    def test_uneven_patches_are_refused(self):
        cut = domains.partition(domains.interval(8), (2,))
        with pytest.raises(ValueError, match=r"same quadrature weights, but they differ .* rules \('trapezoid',\)"):
            patch_weights(cut)

    def test_signed_kernels_are_refused(self):
        kernel = kernels.from_pair(lambda q, k: jnp.dot(q, k), sign="signed")
        with pytest.raises(ValueError, match="a signed kernel cannot be normalised"):
            patch_attention(*map(jnp.asarray, inputs(SIZES["long tokens"], jnp.float32)), kernel=kernel)
