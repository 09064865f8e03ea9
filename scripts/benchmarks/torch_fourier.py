"""Fourier integral attention as a PyTorch user would write it, with autograd, for the benchmarks to compare against.

    python scripts/benchmarks/torch_fourier.py --nodes 512 --depth 16 --repeats 5

prints one line of JSON with the median seconds of the kernel matrix, of attention, and of attention with its gradient.
"""

import argparse
import json

import torch
from timing import median_seconds
from torch import Tensor


def kernel(query: Tensor, key: Tensor, radius: float) -> Tensor:
    """Π_d sinc(R (q_d − k_d))⁴, (…, n, d) and (…, m, d) to (…, n, m)."""
    difference = radius * (query[..., :, None, :] - key[..., None, :, :])
    return torch.prod(torch.sinc(difference / torch.pi) ** 4, dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, radius: float) -> Tensor:
    """The published form: rows divided by their sum plus 1e-6."""
    matrix = kernel(query, key, radius)
    return (matrix @ value) / (matrix.sum(dim=-1, keepdim=True) + 1e-6)


def parse(description: str | None) -> argparse.Namespace:
    """The sizes, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in (("batch", 2), ("heads", 4), ("nodes", 512), ("depth", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def operands(options: argparse.Namespace) -> tuple[Tensor, ...]:
    """Queries, keys, values and the cotangent of the output."""
    torch.manual_seed(0)
    shape = (4, options.batch, options.heads, options.nodes, options.depth)
    return tuple(0.3 * torch.randn(shape))


def main() -> None:
    """Prints the measurements."""
    options = parse(__doc__)
    query, key, value, cotangent = operands(options)
    leaves = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()

    def gradient() -> object:
        return torch.autograd.grad(torch.sum(attention(*leaves, 1.0) * cotangent), leaves)

    with torch.no_grad():
        matrix = median_seconds(lambda: kernel(query, key, 1.0), options.repeats)
        forward = median_seconds(lambda: attention(query, key, value, 1.0), options.repeats)
    print(json.dumps({"matrix": matrix, "forward": forward, "gradient": median_seconds(gradient, options.repeats)}))


if __name__ == "__main__":
    main()
