"""Plain PyTorch implementations of the neural operators, for the benchmarks to compare against.

The code is what a PyTorch user would write: `rfft2` and `irfft2` with complex multipliers on the low modes, einsum
and softmax, `scaled_dot_product_attention`, `torch.nn.LayerNorm`, exact GELU, Adam. Queries, keys and values share one
projection, and so one FFT. It is run as a process of its own, so that every measurement can have its own allocator
settings:

    python scripts/benchmarks/torch_operators.py --model fano --side 64 --patch 16 --modes 8 --batch 4 --repeats 5
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 \\
        MALLOC_TOP_PAD_=268435456 \\
        python scripts/benchmarks/torch_operators.py --model tno --nodes 200 --width 128 --batch 64

prints one line of JSON with the median seconds of a training step.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a model."""

    width: int = 32
    heads: int = 8
    layers: int = 6
    feedforward: int = 128
    in_channels: int = 1
    out_channels: int = 1
    attention: str = (
        "fused"  # of the TNO: "fused" (scaled_dot_product_attention) or "einsum", the two ways it is written
    )
    modes: int = 8  # of ViTNO and FANO: Fourier modes kept along each axis of a patch
    patch: int = 16  # of ViTNO and FANO: nodes along each side of a patch
    smoothing: int = 0  # of ViTNO and FANO: modes of the global spectral smoothing of the output; 0 disables it


@dataclasses.dataclass(frozen=True)
class Batch:
    """Functions and their nodes.

    values and targets are (b, n, c) on nodes (b, n, 1) of an interval, or (b, n1, n2, c) on the nodes (b, n1, n2, 2)
    of an equally spaced grid of the unit square.
    """

    values: Tensor
    nodes: Tensor
    targets: Tensor


def trapezoid_weights(nodes: Tensor) -> Tensor:
    """Weights (b, n) of uneven nodes (b, n, 1) of an interval: half of both adjacent gaps."""
    gaps = torch.diff(nodes[..., 0])
    return (F.pad(gaps, (0, 1)) + F.pad(gaps, (1, 0))) / 2


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(b, n1, n2, c) to (b, patches, patch, patch, c)."""
    b, n1, n2, c = x.shape
    x = x.reshape(b, n1 // patch, patch, n2 // patch, patch, c)
    return x.transpose(2, 3).reshape(b, -1, patch, patch, c)


def from_patches(x: Tensor, n1: int, n2: int) -> Tensor:
    """The inverse of `to_patches`."""
    b, _, patch, _, c = x.shape
    x = x.reshape(b, n1 // patch, n2 // patch, patch, patch, c)
    return x.transpose(2, 3).reshape(b, n1, n2, c)


class SpectralConv2d(nn.Module):
    """Fourier integral operator on (…, n1, n2, c): complex multipliers on rows ±modes and columns < modes.

    The outputs come in ``blocks`` independent groups of channels, each initialised by its own size.
    """

    def __init__(self, in_channels: int, out_channels: int, modes: int, blocks: int = 1):
        super().__init__()
        self.modes = modes
        scale = blocks / (in_channels * out_channels)
        shape = (2, in_channels, out_channels, modes, modes)
        self.weight = nn.Parameter(scale * torch.rand(shape, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        n1, n2 = x.shape[-3:-1]
        m = self.modes
        if 2 * m > min(n1, n2):
            raise ValueError(f"modes={m} needs a grid of at least {2 * m} nodes a side, got {n1} x {n2}.")
        spectrum = torch.fft.rfft2(x, dim=(-3, -2))
        low = torch.zeros(*x.shape[:-3], n1, n2 // 2 + 1, self.weight.shape[2], dtype=torch.cfloat)
        low[..., :m, :m, :] = torch.einsum("...xyi,ioxy->...xyo", spectrum[..., :m, :m, :], self.weight[0])
        low[..., -m:, :m, :] = torch.einsum("...xyi,ioxy->...xyo", spectrum[..., -m:, :m, :], self.weight[1])
        return torch.fft.irfft2(low, s=(n1, n2), dim=(-3, -2))


class SelfAttention(nn.Module):
    """Softmax attention between nodes with quadrature weights on the keys."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads = config.heads
        self.is_fused = config.attention == "fused"
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.merge = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, log_weights: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        bias = log_weights[:, None, None, :]
        if self.is_fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = torch.einsum("bhnc,bhmc->bhnm", q, k) / math.sqrt(q.shape[-1])
            y = torch.einsum("bhnm,bhmc->bhnc", torch.softmax(scores + bias, dim=-1), v)
        return self.merge(y.transpose(1, 2).reshape(b, n, d))


class PatchAttention(nn.Module):
    """Attention between functions on patches (b, p, s, s, d); scores are L2 inner products over the patch."""

    def __init__(self, config: Config, qkv: nn.Module):
        super().__init__()
        self.heads = config.heads
        self.qkv = qkv
        self.merge = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        nodes = math.prod(x.shape[1:4])  # of the whole domain, whose measure is 1
        scores = torch.einsum("bjxyhc,bkxyhc->bhjk", q, k) / nodes
        y = torch.einsum("bhjk,bkxyhc->bjxyhc", torch.softmax(scores, dim=-1), v)
        return self.merge(y.flatten(-2))


class EncoderLayer(nn.Module):
    """x ← LN(x + Attention(x)); x ← LN(x + FeedForward(x))."""

    def __init__(self, config: Config, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.feedforward = nn.Sequential(
            nn.Linear(config.width, config.feedforward), nn.GELU(), nn.Linear(config.feedforward, config.width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(2))

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        x = self.norms[0](x + self.attention(x, *args))
        return self.norms[1](x + self.feedforward(x))


class TNO(nn.Module):
    """Transformer neural operator on an interval with uneven nodes."""

    def __init__(self, config: Config):
        super().__init__()
        self.lift = nn.Linear(config.in_channels + 1, config.width)
        self.encoder = nn.ModuleList(EncoderLayer(config, SelfAttention(config)) for _ in range(config.layers))
        self.project = nn.Linear(config.width, config.out_channels)

    def forward(self, values: Tensor, nodes: Tensor) -> Tensor:
        log_weights = trapezoid_weights(nodes).log()
        x = self.lift(torch.cat([values, nodes], dim=-1))
        for layer in self.encoder:
            x = layer(x, log_weights)
        return self.project(x)


class PatchOperator(nn.Module):
    """Base class of the two operators on patches of a grid: lift, encoder, output, smoothing."""

    def __init__(self, config: Config):
        super().__init__()
        self.patch = config.patch
        self.lift = self.make_lift(config)
        layers = (EncoderLayer(config, PatchAttention(config, self.make_qkv(config))) for _ in range(config.layers))
        self.encoder = nn.Sequential(*layers)
        self.project = nn.Linear(config.width, config.out_channels)
        self.smooth = (
            SpectralConv2d(config.out_channels, config.out_channels, config.smoothing) if config.smoothing else None
        )

    def make_lift(self, config: Config) -> nn.Module:
        raise NotImplementedError

    def make_qkv(self, config: Config) -> nn.Module:
        raise NotImplementedError

    def forward(self, values: Tensor, nodes: Tensor) -> Tensor:
        _, n1, n2, _ = values.shape
        x = to_patches(torch.cat([values, nodes], dim=-1), self.patch)
        x = from_patches(self.project(self.encoder(self.lift(x))), n1, n2)
        return x if self.smooth is None else x + self.smooth(x)


class ViTNO(PatchOperator):
    """Vision transformer neural operator: spectral lift on every patch, pointwise queries, keys and values."""

    def make_lift(self, config: Config) -> nn.Module:
        return SpectralConv2d(config.in_channels + 2, config.width, config.modes)

    def make_qkv(self, config: Config) -> nn.Module:
        return nn.Linear(config.width, 3 * config.width)


class FANO(PatchOperator):
    """Fourier attention neural operator: pointwise lift, queries, keys and values by Fourier integral operators."""

    def make_lift(self, config: Config) -> nn.Module:
        return nn.Linear(config.in_channels + 2, config.width)

    def make_qkv(self, config: Config) -> nn.Module:
        return SpectralConv2d(config.width, 3 * config.width, config.modes, blocks=3 * config.heads)


MODELS: dict[str, type[nn.Module]] = {"tno": TNO, "vitno": ViTNO, "fano": FANO}


def relative_l2(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of ‖prediction − target‖ / ‖target‖, the norms weighted by ``weights`` (b, n)."""

    def norm(u: Tensor) -> Tensor:
        return torch.einsum("bn,bnc->b", weights, u.flatten(1, -2) ** 2).sqrt()

    return (norm(prediction - target) / norm(target)).mean()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """One step on the relative L2 loss; returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    prediction = model(batch.values, batch.nodes)
    if batch.nodes.shape[-1] == 1:
        weights = trapezoid_weights(batch.nodes)
    else:
        count = math.prod(batch.nodes.shape[1:-1])
        weights = torch.full((len(batch.nodes), count), 1 / count)
    loss = relative_l2(prediction, batch.targets, weights)
    loss.backward()
    optimizer.step()
    return loss.detach()


def random_batch(name: str, config: Config, *, batch: int, side: int, nodes: int) -> Batch:
    """Smooth inputs and targets, on uneven nodes of (0, 2) for the TNO and on a midpoint grid for the others."""
    if name == "tno":
        gaps = 0.5 + torch.rand(batch, nodes - 1)
        x = 2 * F.pad(gaps.cumsum(1) / gaps.sum(1, keepdim=True), (1, 0))[..., None]
    else:
        axis = (torch.arange(side) + 0.5) / side
        x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).expand(batch, side, side, 2)
    phase = torch.rand(batch, *[1] * (x.ndim - 2), config.in_channels)
    values = torch.sin(2 * math.pi * (x.sum(-1, keepdim=True) + phase))
    return Batch(values, x, values.cumsum(1).mean(-1, keepdim=True).repeat_interleave(config.out_channels, -1))


def time_step(
    name: str, config: Config, *, batch: int, side: int = 64, nodes: int = 200, repeats: int = 5, seed: int = 0
) -> float:
    """Median seconds of a training step, after two that warm up.

    Args:
        name: one of `MODELS`.
        config: sizes of the model.
        batch: functions in a batch.
        side: nodes along each side of the grid (ViTNO and FANO).
        nodes: nodes of the interval (TNO).
        repeats: measured steps.
        seed: of parameters and data.
    """
    torch.manual_seed(seed)
    model = MODELS[name](config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = random_batch(name, config, batch=batch, side=side, nodes=nodes)
    for _ in range(2):
        train_step(model, optimizer, data)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = float(train_step(model, optimizer, data))
        seconds.append(time.perf_counter() - start)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of {name} is {loss}.")
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step of a PyTorch reference model.")
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    for field in dataclasses.fields(Config):
        choices = ("fused", "einsum") if field.name == "attention" else None
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, choices=choices)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="nodes along each side of the grid (vitno, fano)")
    parser.add_argument("--nodes", type=int, default=200, help="nodes of the interval (tno)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = vars(parser.parse_args())

    torch.set_num_threads(args["threads"])
    config = Config(**{field.name: args[field.name] for field in dataclasses.fields(Config)})
    sizes = {name: args[name] for name in ("batch", "side", "nodes", "repeats")}
    record = {
        "model": args["model"],
        "seconds": time_step(args["model"], config, **sizes),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "allocator": {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ},
        **dataclasses.asdict(config),
        **sizes,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
