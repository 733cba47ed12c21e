"""Networks over tokens and maps drawn at random: attention in every spelling, and what stands around it."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT = (3, 8, 8)

ATTENTIONS = ("fused", "spelled", "packed", "chunked", "module", "einsum")
STEPS = ("attend", "feed", "gate", "scale", "window", "shuffle", "conv", "pixels", "squeeze", "patches", "norm", "mix")


class Attention(nn.Module):
    """Self-attention of `heads` over tokens `[b, n, dim]`, written in one of several ways."""

    def __init__(self, dim: int, heads: int, width: int, kind: str) -> None:
        super().__init__()
        self.heads, self.width, self.kind = heads, width, kind
        inner = heads * width
        if kind == "module":
            self.packed = nn.MultiheadAttention(dim, heads, batch_first=True)
        elif kind in ("packed", "chunked"):
            self.qkv = nn.Linear(dim, 3 * inner)
        else:
            self.q, self.k, self.v = (nn.Linear(dim, inner) for _ in range(3))
        if kind == "spelled":
            self.table = nn.Parameter(torch.zeros(49, heads))
            self.register_buffer("index", torch.arange(17 * 17).view(17, 17) % 49)
        if kind != "module":
            self.out = nn.Linear(inner, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if self.kind == "module":
            return self.packed(x, x, x, need_weights=False)[0]
        if self.kind == "packed":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.kind == "chunked":
            q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, -1))
        else:
            q, k, v = (self._split(layer(x)) for layer in (self.q, self.k, self.v))
        if self.kind == "spelled":
            logits = q @ k.transpose(-2, -1) * 0.5
            logits = logits + self.table[self.index.view(-1)].view(17, 17, -1).permute(2, 0, 1)[:, :n, :n]
            x = logits.softmax(-1) @ v
        elif self.kind == "einsum":
            x = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(b, n, self.heads * self.width))


class Tokens(nn.Module):
    """Patches, a class token and positions, then steps drawn by a seed; no two seeds give the same network."""

    def __init__(self, seed: int, steps: tuple[str, ...] | None = None) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.dim = 4 * rng.randint(2, 3)
        self.steps = steps or tuple(rng.sample(STEPS, 4))
        self.patch = nn.Conv2d(3, self.dim, 2, stride=2)
        self.leading = rng.random() < 0.5
        if self.leading:
            self.token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.position = nn.Parameter(torch.zeros(1, 16 + self.leading, self.dim))
        self.layers = nn.ModuleDict()
        for i, kind in enumerate(self.steps):
            self.layers[f"{kind}{i}"] = getattr(self, f"_{kind}")(rng)
        self.head = nn.Linear(self.dim, 5)
        self.tied = rng.random() < 0.3
        if self.tied:
            self.again = nn.Linear(self.dim, self.dim)

    def _attend(self, rng: random.Random) -> nn.Module:
        kind = rng.choice(ATTENTIONS)
        heads = rng.choice([1, 2, 4])
        return Attention(self.dim, heads, self.dim // heads if kind == "module" else rng.randint(2, 5), kind)

    def _feed(self, rng: random.Random) -> nn.Module:
        inner = rng.randint(3, 9)
        return nn.Sequential(nn.Linear(self.dim, inner), rng.choice([nn.GELU, nn.ReLU])(), nn.Linear(inner, self.dim))

    def _gate(self, rng: random.Random) -> nn.Module:
        inner = rng.randint(3, 6)
        return nn.Sequential(nn.Linear(self.dim, 2 * inner), nn.GLU(), nn.Linear(inner, self.dim))

    def _scale(self, rng: random.Random) -> nn.Module:
        return nn.ParameterDict(
            {"gamma": nn.Parameter(torch.zeros(self.dim)), "w": nn.Parameter(torch.zeros(self.dim, self.dim))}
        )

    def _window(self, rng: random.Random) -> nn.Module:
        return Attention(self.dim, rng.choice([1, 2]), rng.randint(2, 4), "fused")

    def _shuffle(self, rng: random.Random) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(self.dim, self.dim, 1, groups=2), nn.ChannelShuffle(2),
            nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim),
        )  # fmt: skip

    def _conv(self, rng: random.Random) -> nn.Module:
        c_out = self.dim // 2
        self.standardised = rng.random() < 0.3
        return nn.ModuleList(
            [nn.Conv2d(self.dim, c_out, 3, padding=1, bias=False), nn.ConvTranspose2d(c_out, c_out, 3, padding=1)]
        )

    def _pixels(self, rng: random.Random) -> nn.Module:
        return nn.Sequential(nn.Conv2d(self.dim, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, self.dim, 2, stride=2))

    def _squeeze(self, rng: random.Random) -> nn.Module:
        return nn.Sequential(nn.Linear(self.dim, 3), nn.ReLU(), nn.Linear(3, self.dim), nn.Hardsigmoid())

    def _patches(self, rng: random.Random) -> nn.Module:
        return nn.Linear(4 * self.dim, 4 * self.dim)

    def _norm(self, rng: random.Random) -> nn.Module:
        return rng.choice([nn.LayerNorm(self.dim), nn.BatchNorm1d(self.dim), nn.GroupNorm(self.dim // 4, self.dim)])

    def _mix(self, rng: random.Random) -> nn.Module:
        return nn.ModuleDict({"up": nn.Linear(16, 6), "down": nn.Linear(6, 16)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.leading:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position
        for name, layer in self.layers.items():
            kind = name.rstrip("0123456789")
            if kind in ("attend", "feed", "gate"):
                x = x + layer(x)
            elif kind == "norm":
                x = layer(x) if isinstance(layer, nn.LayerNorm) else layer(x.transpose(1, 2)).transpose(1, 2)
            elif kind == "scale":
                w = layer["w"] / layer["w"].norm(dim=1, keepdim=True)
                x = x + F.linear(x, w) * layer["gamma"]
            elif kind == "squeeze":
                x = x * layer(x.mean(1, keepdim=True))
            else:
                x = self._on_map(kind, layer, x)
        x = x[:, 0] if self.leading else x.mean(1)
        if self.tied:
            x = F.linear(F.relu(self.again(x)), self.again.weight.t())
        return self.head(x)

    def _on_map(self, kind: str, layer: Any, x: Tensor) -> Tensor:
        """What needs a map of 4 x 4 takes the patches' tokens as one; the class token waits."""
        first, x = (x[:, :1], x[:, 1:]) if self.leading else (None, x)
        if kind == "mix":
            x = x + layer["down"](F.gelu(layer["up"](x.transpose(1, 2)))).transpose(1, 2)
        elif kind == "window":
            x = x + self._windows(layer, x)
        else:
            y = x.transpose(1, 2).unflatten(2, (4, 4))
            if kind == "conv":
                weight = layer[0].weight
                if self.standardised:
                    flat = weight.reshape(1, weight.shape[0], -1)
                    weight = F.batch_norm(flat, None, None, training=True).reshape_as(weight)
                small = F.relu(F.conv2d(y, weight, padding=1))
                left = (y.shape[1] - small.shape[1]) // 2
                right = y.shape[1] - small.shape[1] - left
                y = torch.cat([small, layer[1](small)], 1) + F.pad(small, (0, 0, 0, 0, left, right)) + y
            elif kind == "patches":
                z = layer(F.unfold(y, 2, stride=2).transpose(1, 2)).transpose(1, 2)
                y = y + F.fold(z, 4, 2, stride=2)
            else:
                y = y + layer(y)
            x = y.flatten(2).transpose(1, 2)
        return x if first is None else torch.cat([first, x], 1)

    def _windows(self, layer: Any, x: Tensor) -> Tensor:
        """Attention within windows of 2 x 2 over a rolled map."""
        y = torch.roll(x.unflatten(1, (4, 4)), (1, 1), (1, 2))
        y = y.view(-1, 2, 2, 2, 2, self.dim).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, self.dim)
        y = layer(y).view(-1, 2, 2, 2, 2, self.dim).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, self.dim)
        return torch.roll(y, (-1, -1), (1, 2)).flatten(1, 2)
