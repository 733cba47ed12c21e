"""How images and kernels lie in memory while a network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 8
"""Channels that kernels for AVX2 take at a time."""


def memory_format(networks: Sequence[nn.Module], images: Tensor, device: torch.device) -> torch.memory_format:
    """Channels last, up to twice as fast for convolutions, unless a network cannot take it; leaves networks arranged.

    Some view their features as contiguous. And on CPUs without AVX-512, torch 2.14 writes past the end of memory in
    the backward pass of a strided convolution of one pixel that reads channels in other than whole blocks.

    Args:
        networks: in any mode, on any device; are put into eval mode, on the CPU.
        images: `[b, c, h, w]`.
        device: where they will train.
    """
    images = images.clone(memory_format=torch.channels_last)
    for network in networks:
        arrange(network.eval().to("cpu"), torch.channels_last)
        try:
            with torch.no_grad(), _StridedPixels() as seen:
                network(images)
        except RuntimeError as error:
            if "view" not in str(error):
                raise
            return torch.contiguous_format
        if seen.uneven and device.type == "cpu" and not _has_avx512():
            return torch.contiguous_format
    return torch.channels_last


def arrange(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Lays kernels out anew. `Module.to` leaves one of a single channel as it is, since it counts as both formats."""
    for kernel in network.parameters():
        if kernel.dim() == 4:
            kernel.data = kernel.data.clone(memory_format=memory_format)


class _StridedPixels(TorchDispatchMode):
    """Sees whether a strided convolution of one pixel reads channels in other than whole blocks."""

    uneven = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            kernel, strides = args[1].shape, args[3]
            strided = all(size == 1 for size in kernel[2:]) and any(step > 1 for step in strides)
            self.uneven = self.uneven or (strided and kernel[1] % BLOCK != 0)
        return func(*args, **(kwargs or {}))


def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
