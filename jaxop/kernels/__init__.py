r"""Kernels of one pair, and their fast matrix forms.

Every kernel is a small pytree with trainable leaves. `jaxop.attention.integral_attention` takes kernels as well as sums
and products of kernels, such as ``kernels.Gaussian() + 2.0 * kernels.Quadratic()``.

| kernel | k(q, k') | sign | features |
|---|---|---|---|
| `ExpDotProduct` | exp(q·k'/√d) | positive | infinite |
| `Gaussian` | exp(−τ \|q − k'\|²/√d) | positive | infinite |
| `EuclideanDistance` | τ \|q − k'\|/√d | nonnegative | infinite |
| `Intersection` | exp(s Σ min(q_l, k'_l)) | positive | infinite |
| `Quadratic` | (q·k'/√d + γ)² | nonnegative | (d + 1)(d + 2)/2 |
| `TruncatedExponential` | Σ_{r ≤ p} (q·k'/√d)^r/r! | positive for even p | binomial(d + p, p) |
| `FourierIntegral` | Π sinc(R (q_l − k'_l))^power | nonnegative | infinite |
| `InverseMultiquadric` | (1 + τ \|q − k'\|²)^(−1/2) | positive | infinite |
| `DotProduct`, `Bilinear` | q·k'/√d, qᵀ A k' + c | signed | d, d + 1 |
| `LearnedFeatures` | ⟨Φ(q), Ψ(k')⟩ | signed | r |
| `from_pair` | any function | as given | |
| `Sum`, `Product`, `Scaled`, `Projected` | k₁ + k₂, k₁ k₂, c k₁, k₁(W_Qᵀ q, W_Kᵀ k') | from the parts | |

`PerHead` gives every attention head its own kernel: it wraps a kernel whose leaves have a leading axis of heads.

Attention normalises positive and nonnegative kernels, but not signed kernels. Under a nonnegative kernel a row may
have no mass; its result is then 0.
"""

from jaxop.kernels.base import SIGNS as SIGNS
from jaxop.kernels.base import BaseKernel as BaseKernel
from jaxop.kernels.base import FunctionKernel as FunctionKernel
from jaxop.kernels.base import Kernel as Kernel
from jaxop.kernels.base import Product as Product
from jaxop.kernels.base import Scaled as Scaled
from jaxop.kernels.base import Sum as Sum
from jaxop.kernels.base import from_pair as from_pair
from jaxop.kernels.base import matrix as matrix
from jaxop.kernels.distance import EuclideanDistance as EuclideanDistance
from jaxop.kernels.distance import Gaussian as Gaussian
from jaxop.kernels.distance import InverseMultiquadric as InverseMultiquadric
from jaxop.kernels.dot_product import Bilinear as Bilinear
from jaxop.kernels.dot_product import DotProduct as DotProduct
from jaxop.kernels.dot_product import ExpDotProduct as ExpDotProduct
from jaxop.kernels.features import LearnedFeatures as LearnedFeatures
from jaxop.kernels.fourier import FourierIntegral as FourierIntegral
from jaxop.kernels.intersection import Intersection as Intersection
from jaxop.kernels.logarithms import LOG_ZERO as LOG_ZERO
from jaxop.kernels.per_head import PerHead as PerHead
from jaxop.kernels.polynomial import Quadratic as Quadratic
from jaxop.kernels.polynomial import TruncatedExponential as TruncatedExponential
from jaxop.kernels.projected import Projected as Projected
