"""Networks drawn at random, with integer weights, so that equal means equal bit for bit."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT = (3, 8, 8)

KINDS = (
    "conv", "norm", "depthwise", "grouped", "residual", "concat", "dense", "split", "gate", "shortcut", "shuffle",
    "pixels", "transposed", "scale",
)  # fmt: skip


class Drawn(nn.Module):
    """A chain of steps over feature maps, drawn by a seed, then flatten and a linear head."""

    def __init__(self, seed: int, steps: int = 5) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.program: list[tuple[str, str]] = []
        self.channels = 4 * rng.randint(1, 3)
        self.layers["stem"] = nn.Conv2d(INPUT[0], self.channels, 3, padding=1)
        for i in range(steps):
            kind = rng.choice(KINDS)
            self.program.append((kind, f"{kind}{i}"))
            getattr(self, f"_make_{kind}")(f"{kind}{i}", rng)
        self.layers["head"] = nn.Linear(self.channels * 4, 5)

    def _make_conv(self, name: str, rng: random.Random) -> None:
        c_out = 4 * rng.randint(1, 3)
        self.layers[name] = nn.Conv2d(self.channels, c_out, 3, padding=1, bias=rng.random() < 0.5)
        self.channels = c_out

    def _make_norm(self, name: str, rng: random.Random) -> None:
        self.layers[name] = nn.BatchNorm2d(self.channels, eps=0.0)

    def _make_depthwise(self, name: str, rng: random.Random) -> None:
        self.layers[name] = nn.Conv2d(self.channels, self.channels, 3, padding=1, groups=self.channels)

    def _make_grouped(self, name: str, rng: random.Random) -> None:
        c_out = 4 * rng.randint(1, 3)
        self.layers[name] = nn.Conv2d(self.channels, c_out, 1, groups=rng.choice([2, 4]))
        self.channels = c_out

    def _make_residual(self, name: str, rng: random.Random) -> None:
        middle = rng.randint(2, 8)
        self.layers[name] = nn.Sequential(
            nn.Conv2d(self.channels, middle, 1), nn.BatchNorm2d(middle, eps=0.0), nn.ReLU(),
            nn.Conv2d(middle, self.channels, 3, padding=1),
        )  # fmt: skip

    def _make_concat(self, name: str, rng: random.Random) -> None:
        growth = 4 * rng.randint(1, 2)
        self.layers[name] = nn.Conv2d(self.channels, growth, 3, padding=1)
        self.channels += growth

    def _make_dense(self, name: str, rng: random.Random) -> None:
        self._make_concat(name, rng)

    def _make_split(self, name: str, rng: random.Random) -> None:
        self.layers[name] = nn.Conv2d(self.channels // 4, self.channels // 4, 1)

    def _make_gate(self, name: str, rng: random.Random) -> None:
        squeezed = rng.randint(2, 4)
        self.layers[name] = nn.Sequential(
            nn.Conv2d(self.channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, self.channels, 1)
        )

    def _make_shortcut(self, name: str, rng: random.Random) -> None:
        before, self.channels = self.channels, self.channels + 4
        self.layers[name] = nn.Conv2d(before, self.channels, 3, padding=1)

    def _make_shuffle(self, name: str, rng: random.Random) -> None:
        self.layers[name] = nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(self.channels, self.channels, 1, groups=2))

    def _make_pixels(self, name: str, rng: random.Random) -> None:
        self.layers[name] = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * self.channels, 4 * self.channels, 1), nn.PixelShuffle(2)
        )

    def _make_transposed(self, name: str, rng: random.Random) -> None:
        c_out = 4 * rng.randint(1, 3)
        self.layers[name] = nn.ConvTranspose2d(self.channels, c_out, 3, padding=1, groups=rng.choice([1, 2]))
        self.channels = c_out

    def _make_scale(self, name: str, rng: random.Random) -> None:
        self.layers[name] = nn.ModuleList(
            [nn.Conv2d(self.channels, self.channels, 1, bias=False), nn.PReLU(self.channels)]
        )
        self.layers[name].register_parameter("gamma", nn.Parameter(torch.zeros(self.channels, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers["stem"](x))
        for kind, name in self.program:
            layer = self.layers[name]
            if kind == "residual":
                x = F.relu(x + layer(x))
            elif kind == "concat":
                x = torch.cat([x, F.relu(layer(x))], 1)
            elif kind == "dense":
                x = torch.cat([layer(x), x], 1)
            elif kind == "split":
                first, second = x.split([x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1)
                x = torch.cat([second, layer(first)], 1)
            elif kind == "gate":
                x = x * F.relu(layer(F.adaptive_max_pool2d(x, 1)))
            elif kind == "shortcut":
                x = layer(x) + F.pad(x, (0, 0, 0, 0, 2, 2))
            elif kind == "scale":
                x = x + layer.gamma * layer[1](layer[0](x))
            elif kind == "norm":
                x = F.relu(layer(x))
            else:
                x = layer(x)
        return self.layers["head"](F.max_pool2d(x, 4).flatten(1))


def integer(module: nn.Module, seed: int) -> nn.Module:
    """The module in float64 with small integer parameters and statistics: sums and products are exact."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.fill_(1)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randint(-2, 3, tensor.shape, generator=generator))
    return module


def inputs(seed: int) -> Tensor:
    """Integer images `[2, c, h, w]`."""
    return torch.randint(-2, 3, (2, *INPUT), generator=torch.Generator().manual_seed(seed)).double()
