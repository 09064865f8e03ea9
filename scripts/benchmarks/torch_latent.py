"""Layers of latent attention in plain PyTorch, as the published code computes them, without weights.

    python scripts/benchmarks/torch_latent.py --name flare --nodes 16384 --repeats 5

prints one line of JSON with the median seconds of value and gradient, and the peak memory of the process.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from timing import median_seconds, peak_memory
from torch import Tensor, nn

WIDTH, HEADS, LATENTS = 64, 4, 64
DEPTH = WIDTH // HEADS


class Layer(nn.Module):
    """What both layers have: affine keys, values and outputs, and latents per head."""

    def __init__(self):
        super().__init__()
        self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.latents = nn.Parameter(0.1 * torch.randn(1, HEADS, LATENTS, DEPTH))

    def split(self, x: Tensor) -> Tensor:
        """(b, n, d) to (b, h, n, d/h)."""
        return x.reshape(*x.shape[:2], HEADS, DEPTH).transpose(1, 2)

    def joined(self, y: Tensor) -> Tensor:
        """(b, h, n, d/h) to the output (b, n, d)."""
        return self.output(y.transpose(1, 2).flatten(2))


class Flare(Layer):
    """Two calls of the fused attention: latents to nodes, and nodes to latents."""

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.split(self.key(x)), self.split(self.value(x))
        latents = self.latents.expand(len(x), -1, -1, -1)
        z = F.scaled_dot_product_attention(latents, key, value, scale=1.0)
        return self.joined(F.scaled_dot_product_attention(key, latents, z, scale=1.0))


class Transolver(Layer):
    """Physics attention on irregular nodes: slices, attention between their means, and back."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.full((1, HEADS, 1, 1), 0.5))
        self.matrices = nn.ModuleList(nn.Linear(DEPTH, DEPTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.split(self.key(x)), self.split(self.value(x))
        p = torch.softmax(key @ self.latents.transpose(-1, -2) / self.temperature, dim=-1)
        z = torch.einsum("bhnc,bhng->bhgc", value, p) / (p.sum(2) + 1e-5)[..., None]
        q, k, v = (matrix(z) for matrix in self.matrices)
        z = F.scaled_dot_product_attention(q, k, v)
        return self.joined(torch.einsum("bhgc,bhng->bhnc", z, p))


def main() -> None:
    """Measures one layer."""
    parser = argparse.ArgumentParser(description="Median seconds of a layer of latent attention.")
    parser.add_argument("--name", choices=("flare", "transolver"), required=True)
    parser.add_argument("--nodes", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    layer = Flare() if options.name == "flare" else Transolver()
    x = torch.randn(1, options.nodes, WIDTH, requires_grad=True)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).square().sum().backward()

    print(json.dumps({"seconds": median_seconds(step, options.repeats), "memory": peak_memory()}))


if __name__ == "__main__":
    main()
