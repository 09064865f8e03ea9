"""Checks of the arguments of layers, other than sizes and names."""

from flax import nnx

from jaxop._validation import check_dtype, check_name, check_type
from jaxop.attention import IMPLEMENTATIONS
from jaxop.kernels import Kernel, PerHead


def check_rngs(rngs: object) -> None:
    """Raises ``TypeError`` unless ``rngs`` is `flax.nnx.Rngs`; it must not be a seed or a key."""
    check_type(rngs, "rngs", nnx.Rngs, "flax.nnx.Rngs, such as rngs=nnx.Rngs(0) with a seed")


def check_dtypes(dtype: object, param_dtype: object) -> None:
    """Raises an error unless both are full names of floating dtypes; ``dtype`` may be None."""
    check_dtype(dtype, "dtype", optional=True)
    check_dtype(param_dtype, "param_dtype")


def check_kernel(kernel: object) -> None:
    """Raises ``TypeError`` unless ``kernel`` is a kernel; it must not be the settings or the name of a kernel."""
    if not isinstance(kernel, Kernel | PerHead) or isinstance(kernel, type):
        raise TypeError(
            f"kernel must be a Kernel, such as kernels.Gaussian(), got {kernel!r}; settings and names of kernels "
            "belong to nn.IntegralAttentionConfig(kernel=...), whose make(...) builds the layer."
        )


def check_implementation(implementation: str | None, *, is_linear: bool) -> None:
    """Raises ``ValueError`` unless attention has this implementation; None is always one, and the only linear one."""
    if implementation is None:
        return
    check_name(implementation, "implementation", IMPLEMENTATIONS)
    if is_linear:
        raise ValueError("linear attention has one implementation: leave implementation=None.")


def check_attention(attention: object) -> None:
    """Raises ``TypeError`` unless ``attention`` can be called."""
    if not callable(attention) or isinstance(attention, type):
        raise TypeError(
            f"attention must be a module that is called as attention(x, *args), such as nn.IntegralAttention(width, "
            f"heads, rngs=rngs), got {attention!r}."
        )
