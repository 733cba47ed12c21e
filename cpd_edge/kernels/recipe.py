"""What preprocessing does, as a value: the kernels and their NumPy reference are both made from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import UsageError

Dtype = Literal["float32", "float16", "int8"]

LARGEST_EXTENT = 1 << 30
"""Rows, columns and images must be fewer: loops count them in 32 bits. Bytes and offsets have 64."""


@dataclass(frozen=True)
class Box:
    """Where the resized image lies inside the output, in output pixels."""

    top: int
    left: int
    h: int
    w: int

    def to_source(
        self, points: npt.NDArray[np.floating], src_h: int, src_w: int, *, clip: bool = True
    ) -> npt.NDArray[np.float64]:
        """Points of the network's input, in the coordinates of the source image: undoes resize and letterbox.

        Coordinates are continuous: pixel `i` covers `[i, i + 1)` and its centre is `i + 0.5`.

        Args:
            points: `[..., 2]`, each x then y.
            src_h, src_w: of the source image.
            clip: keep them inside the source image.
        """
        scale = np.array([src_w / self.w, src_h / self.h])
        moved: npt.NDArray[np.float64] = (np.asarray(points, np.float64) - np.array([self.left, self.top])) * scale
        return moved.clip(0, np.array([src_w, src_h])) if clip else moved


@dataclass(frozen=True)
class Preprocess:
    """uint8 pixels to a network's input: resize, letterbox, normalise, lay out, convert.

    `value = (pixel / 255 - mean) / std`, as one multiplication and one addition in float32.

    Attributes:
        h, w: of the network's input.
        channels: of the network's input, 1 or 3.
        mean, std: per output channel, of pixels in 0..1; one number for all is allowed.
        reverse: the image's channel order is the other one (a BGR image for an RGB network).
        antialias: filter when shrinking, as PIL and torchvision do in training; without it the resize is that of
            OpenCV and of torch's `interpolate`, which takes two pixels a side however much it shrinks. Use what the
            network was trained with: the two differ by tens of grey levels on detail.
        letterbox: keep the aspect ratio and pad, instead of stretching.
        pad: grey level around a letterboxed image.
        dtype: of the network's input.
        scale, zero: of the int8 input, as in ONNX: `q = clamp(round_half_even(value / scale) + zero, -128, 127)`.

    Raises:
        UsageError: a number that is none, or that the kernels cannot carry.
    """

    h: int
    w: int
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    reverse: bool = False
    antialias: bool = False
    letterbox: bool = False
    pad: int = 114
    dtype: Dtype = "float32"
    scale: float = 1.0
    zero: int = 0

    def __post_init__(self) -> None:
        _require_extents(height=self.h, width=self.w)
        if self.channels not in (1, 3):
            raise UsageError(f"{self.channels} channels: the kernels make 1 or 3", hint="channels=3")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise UsageError(
                    f"{name} has {len(values)} values for {self.channels} channels", hint="give one, or one a channel"
                )
        if not 0 <= self.pad <= 255:
            raise UsageError(f"pad {self.pad} is no grey level", hint="0 to 255; 114 is customary")
        if self.dtype not in ("float32", "float16", "int8"):
            raise UsageError(f"dtype {self.dtype!r} is none the kernels make", hint="float32, float16 or int8")
        if not -128 <= self.zero <= 127:
            raise UsageError(f"zero point {self.zero} is no int8", hint="-128 to 127; TensorRT wants 0")
        if not (min(self.std) > 0 and 0 < self.scale < math.inf and self._representable()):
            raise UsageError(
                f"mean {self.mean}, std {self.std}, scale {self.scale}: a pixel would become no finite {self.dtype}",
                hint="std and scale lie above 0, for example std=(0.229, 0.224, 0.225)",
            )

    def _representable(self) -> bool:
        """Whether black and white, which every other value lies between, become finite numbers of the type."""
        with np.errstate(all="ignore"):
            ends = np.concatenate([np.float32(255) * self.a + self.b, self.b])
            ends = ends / np.float32(self.scale) if self.dtype == "int8" else ends.astype(self.dtype)
        return bool(np.isfinite(ends).all())

    @property
    def a(self) -> npt.NDArray[np.float32]:
        """Factor of each output channel, `1 / (255 * std)`; shape `[channels]`."""
        return np.broadcast_to(1 / (255 * np.asarray(self.std, np.float64)), (self.channels,)).astype(np.float32)

    @property
    def b(self) -> npt.NDArray[np.float32]:
        """Summand of each output channel, `-mean / std`; shape `[channels]`."""
        ratio = -np.asarray(self.mean, np.float64) / np.asarray(self.std, np.float64)
        return np.broadcast_to(ratio, (self.channels,)).astype(np.float32)

    def box(self, src_h: int, src_w: int) -> Box:
        """Where an image of `src_h` x `src_w` lies in the output: all of it, or centred when letterboxed.

        The side that limits fits exactly; the other is rounded, half to even, and is at least one pixel. An odd rest
        leaves the larger half below and to the right.

        Raises:
            UsageError: an image without pixels, or too large for 32-bit loops.
        """
        _require_extents(**{"image height": src_h, "image width": src_w})
        if not self.letterbox:
            return Box(0, 0, self.h, self.w)
        if self.h * src_w <= self.w * src_h:
            h, w = self.h, max(1, round(Fraction(src_w * self.h, src_h)))
        else:
            h, w = max(1, round(Fraction(src_h * self.w, src_w))), self.w
        return Box((self.h - h) // 2, (self.w - w) // 2, h, w)


def _require_extents(**extents: int) -> None:
    for name, extent in extents.items():
        if not 0 < extent < LARGEST_EXTENT:
            raise UsageError(f"{name} {extent}: it must be at least 1 and below {LARGEST_EXTENT}", hint="check h and w")
