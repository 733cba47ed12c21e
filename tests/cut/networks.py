"""Small networks whose forwards read extents in the ways that users write them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shuffle(nn.Module):
    """Channels of groups interleaved, the number of groups an attribute."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Cnn(nn.Module):
    """Batch norm, groups, a shuffle, a depthwise kernel, a concat, a transposed kernel, norms, a flatten."""

    SHAPE = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.shuffle = nn.Conv2d(8, 12, 1, groups=4), Shuffle(4)
        self.up = nn.ConvTranspose2d(20, 6, 2, stride=2)
        self.plain, self.norm = nn.InstanceNorm2d(6), nn.GroupNorm(3, 6)
        self.head = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, F.relu(self.shuffle(self.grouped(self.depthwise(x))))], 1)
        return self.head(F.max_pool2d(F.silu(self.norm(self.plain(self.up(x)))), 4).flatten(1))


class Attention(nn.Module):
    """Packed queries, keys and values; heads and widths are attributes, the scale too unless it is fused."""

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, dim // heads, dim
        self.scale, self.fused = self.head_dim**-0.5, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.inner))


class Transformer(nn.Module):
    """Two blocks with attention of its own, over patches."""

    SHAPE = (3, 8, 8)

    def __init__(self, dim: int = 24, fused: bool = False) -> None:
        super().__init__()
        self.hidden_dim = dim
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.blocks = nn.ModuleList(Attention(dim, 4, fused) for _ in range(2))
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(x.shape[0], self.hidden_dim, 4).transpose(1, 2)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x.mean(1))


class Packed(nn.Module):
    """An encoder around `nn.MultiheadAttention`."""

    SHAPE = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.norm, self.attention = nn.LayerNorm(24), nn.MultiheadAttention(24, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x)).mean(1))


class Tied(nn.Module):
    """One kernel under two names, one module called twice."""

    SHAPE = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.relu(self.stem(x)))
        return self.head(self.one(self.two(x)).mean((2, 3)))


@dataclass(frozen=True)
class Config:
    """What several modules share."""

    width: int = 8
    sizes: tuple[int, ...] = (4, 12)


class Configured(nn.Module):
    """Reads its widths from a shared object and from a tuple in it, and a table that is no buffer."""

    SHAPE = (3, 4, 4)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.table = config, torch.linspace(-1, 1, config.width)
        self.stem = nn.Conv2d(3, config.width, 1)
        self.wide = nn.Linear(config.width, sum(config.sizes))
        self.first, self.second = (nn.Linear(size, 3) for size in config.sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).view(-1, self.config.width, 16).mean(2) + self.table
        a, b = F.relu(self.wide(x)).split(self.config.sizes, 1)
        return self.first(a) + self.second(b)


class Halved(nn.Module):
    """Takes the two halves of what it is given, however wide that is."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * b.sigmoid().mean(1, keepdim=True)


class Gated(nn.Module):
    """Cannot be cut unevenly: its gate takes halves."""

    SHAPE = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 12, 1)
        self.gate = Halved()
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.body(x)))


class Helped(nn.Module):
    """In training, a second head looks at the stream; evaluation does not know of it."""

    SHAPE = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.helper = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x) + self.helper(x) if self.training else self.head(x)


class Residual(nn.Module):
    """Two residual branches: one a module that is added outside of it, one a block with the addition inside."""

    SHAPE = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.branch = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1))
        self.block = Block()
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        return self.head(self.block(x))


class Block(nn.Module):
    """A residual block whose shortcut is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x)))
