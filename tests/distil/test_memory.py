"""How a network lies in memory while it trains: channels last wherever that is safe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cpd_edge.distil import memory

CPU = torch.device("cpu")


def strided(channels: int, kernel: int = 1, stride: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, kernel, stride))


class Viewing(nn.Module):
    """A network that views its features, which only contiguous ones bear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(y.shape[0], -1)


@pytest.mark.parametrize(
    ("network", "avx512", "expected"),
    [
        (strided(5), False, torch.contiguous_format),
        (strided(5), True, torch.channels_last),
        (strided(16), False, torch.channels_last),
        (strided(5, stride=1), False, torch.channels_last),
        (strided(5, kernel=3), False, torch.channels_last),
        (Viewing(), True, torch.contiguous_format),
    ],
)
def test_channels_last_unless_a_network_cannot_take_it(
    network: nn.Module, avx512: bool, expected: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strided convolution of one pixel over uneven channels is left contiguous where torch would overrun memory."""
    monkeypatch.setattr(memory, "_has_avx512", lambda: avx512)
    assert expected == memory.memory_format([network], torch.randn(2, 3, 8, 8), CPU)
