"""A user's folder: `mine.py` with networks and data that train in a second, weights, and pictures with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

MINE = """
import torch
from torch import nn


def make_net():
    torch.manual_seed(0)
    return Net(nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.Linear(32, 4))


class Net(nn.Module):
    def __init__(self, stem, body, head):
        super().__init__()
        self.stem, self.norm, self.body, self.head = stem, nn.BatchNorm2d(24), body, head

    def forward(self, x):
        x = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def make_dense_head():
    net = make_net()
    net.head = nn.Conv2d(32, 3, 1)
    net.stem = nn.Conv2d(3, 24, 3, padding=1)
    return nn.Sequential(net.stem, nn.ReLU(), net.body, nn.ReLU(), net.head, nn.Upsample(scale_factor=2))


class Branching(Net):
    def forward(self, x):
        x = self.stem(x)
        if x.sum().item() > 0:
            x = x + 1
        return self.head(self.body(x).mean((2, 3)))


def make_branching():
    net = make_net()
    return Branching(net.stem, net.body, net.head)


def make_wide():
    net = make_net()
    net.head = nn.Linear(32, 7)
    return net


def make_coloured():
    net = make_net()
    net.stem = nn.Conv2d(3, 24, 3)
    return net


def make_broken():
    return nn.Linear(4, "four")


def make_data():
    drawn = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 4
    images = 0.3 * torch.randn(96, 1, 48, 48, generator=drawn) + targets.float().view(-1, 1, 1, 1)
    batches = list(zip(images.split(16), targets.split(16)))
    return batches[:4], batches[4:]
"""


def write_world(folder: Path) -> None:
    """Fills the folder."""
    (folder / "mine.py").write_text(MINE)
    (folder / "empty").mkdir()
    (folder / "samples.json").mkdir()
    (folder / "text.onnx").write_text("no engine")
    rng = np.random.default_rng(0)
    for side, count in (("train", 8), ("val", 4)):
        for part in ("images", "masks"):
            (folder / "shapes" / side / part).mkdir(parents=True)
        for i in range(count):
            mask = rng.integers(0, 3, (6, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            image = (mask[..., None] * 80 + rng.integers(0, 40, (48, 48, 3))).astype(np.uint8)
            mask[0, 0] = 255
            Image.fromarray(image).save(folder / f"shapes/{side}/images/{i}.png")
            Image.fromarray(mask).save(folder / f"shapes/{side}/masks/{i}.png")


PRUNE = ("prune", "mine.py:make_net", "--data", "mine.py:make_data")
QUICK = ("--steps", "1", "--epochs", "0.5", "--samples", "8", "--rounds", "2")
