"""Fourier integral attention by KeOps' symbolic matrices, for the benchmarks to compare against.

    python scripts/benchmarks/keops_fourier.py --nodes 512 --depth 16 --repeats 5

prints, last, one line of JSON with the median seconds of attention and of attention with its gradient. KeOps compiles
its reductions with the C++ compiler of the machine when they are first used, which is not counted.
"""

import json

import torch
import torch_fourier
from pykeops.torch import LazyTensor
from timing import median_seconds
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, radius: float) -> Tensor:
    """Rows of Π_d sinc(R (q_d − k_d))⁴, as exp Σ_d 4 log|sinc|, divided by their sum plus 1e-6."""
    differences = LazyTensor(radius * query[..., :, None, :]) - LazyTensor(radius * key[..., None, :, :])
    matrix = (4 * differences.sinxdivx().abs().log().sum(-1)).exp()
    sums = matrix @ torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
    return sums[..., :-1] / (sums[..., -1:] + 1e-6)


def main() -> None:
    """Prints the measurements."""
    options = torch_fourier.parse(__doc__)
    query, key, value, cotangent = torch_fourier.operands(options)
    leaves = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()

    def gradient() -> object:
        return torch.autograd.grad(torch.sum(attention(*leaves, 1.0) * cotangent), leaves)

    with torch.no_grad():
        forward = median_seconds(lambda: attention(query, key, value, 1.0), options.repeats)
    print(json.dumps({"forward": forward, "gradient": median_seconds(gradient, options.repeats)}))


if __name__ == "__main__":
    main()
