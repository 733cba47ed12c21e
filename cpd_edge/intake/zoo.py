"""Small reference networks, each a few hundred thousand parameters, that train on one CPU core."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where stride or width changes (He et al., 2016)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[b, c_in, h, w]` to `[b, c_out, h/stride, w/stride]`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR-style residual network of depth 6n+2: n blocks a stage, width doubling twice (He et al., 2016)."""

    def __init__(self, depth: int, *, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        c_in = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                c_out = width * 2**stage
                blocks.append(Residual(c_in, c_out, stride=2 if stage > 0 and block == 0 else 1))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[b, c, h, w]` to logits `[b, classes]`."""
        x = F.relu(self.bn(self.conv(x)))
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        return self.fc(torch.flatten(x, 1))


class DoubleConv(nn.Sequential):
    """Two times 3x3 convolution, batch norm and ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """U-Net with batch norm, bilinear upsampling and concatenated skips (Ronneberger et al., 2015).

    The input's height and width must be divisible by `2 ** (depth - 1)`.
    """

    def __init__(self, *, num_classes: int = 2, in_channels: int = 3, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(
            DoubleConv(c_in, c_out) for c_in, c_out in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            DoubleConv(deep + skip, skip) for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[b, c, h, w]` to logits `[b, classes, h, w]`."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.head(x)


def resnet8(**options: int) -> ResNet:
    """ResNet-8: 78k parameters at width 16. Options: `num_classes`, `in_channels`, `width`."""
    return ResNet(8, **options)


def resnet20(**options: int) -> ResNet:
    """ResNet-20: 0.27M parameters at width 16. Options: `num_classes`, `in_channels`, `width`."""
    return ResNet(20, **options)


def unet(**options: int) -> UNet:
    """U-Net: 0.49M parameters at width 16. Options: `num_classes`, `in_channels`, `width`, `depth`."""
    return UNet(**options)


ZOO: Mapping[str, Callable[..., nn.Module]] = {"resnet8": resnet8, "resnet20": resnet20, "unet": unet}
"""The zoo's networks by the name used in `zoo:NAME`."""
