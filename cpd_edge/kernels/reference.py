"""What each kernel computes, in NumPy: the definition that the CUDA sources are tested against, bit for bit.

It runs on the CPU, at NumPy's speed, and is no stand-in for a kernel in a measurement of latency.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import UsageError
from cpd_edge.kernels.recipe import Preprocess

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_HALF = np.float32(0.5)


def preprocess(recipe: Preprocess, images: Bytes) -> npt.NDArray[np.generic]:
    """The network's input `[n, channels, h, w]` in `recipe.dtype`, of images `[n, src_h, src_w, bytes a pixel]`.

    Three-channel images may have four bytes a pixel; the fourth is not read.

    Raises:
        UsageError: images of another shape or type.
    """
    wanted = (3, 4) if recipe.channels == 3 else (1,)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in wanted:
        raise UsageError(
            f"images are {images.dtype} {list(images.shape)}",
            hint=f"give uint8 [n, h, w, {' or '.join(map(str, wanted))}]",
        )
    order = slice(None, None, -1) if recipe.reverse else slice(None)
    pixels = images[..., : recipe.channels][..., order].astype(np.float32)
    box = recipe.box(*images.shape[1:3])
    resize = _filtered if recipe.antialias else _bilinear
    canvas = np.full((len(images), recipe.h, recipe.w, recipe.channels), recipe.pad, np.float32)
    canvas[:, box.top : box.top + box.h, box.left : box.left + box.w] = resize(pixels, box.h, box.w)
    value = np.ascontiguousarray((canvas * recipe.a + recipe.b).transpose(0, 3, 1, 2))
    return value.astype(recipe.dtype) if recipe.dtype != "int8" else quantise(value, recipe.scale, recipe.zero)


def quantise(value: Floats, scale: float, zero: int) -> npt.NDArray[np.int8]:
    """`clamp(round_half_even(value / scale) + zero, -128, 127)` in float32, as ONNX QuantizeLinear."""
    steps: Floats = np.rint(value / np.float32(scale)) + np.float32(zero)
    return steps.clip(-128, 127).astype(np.int8)


def argmax(logits: npt.NDArray[np.floating]) -> Bytes:
    """Class map `[n, h, w]` of logits `[n, classes, h, w]`: the lowest class among equals, the first NaN before all."""
    winners: npt.NDArray[np.intp] = np.argmax(logits, axis=1)
    return winners.astype(np.uint8)


def palette(classes: Bytes, table: Bytes, pixel_bytes: int = 3) -> Bytes:
    """Image `[n, h, w, pixel_bytes]` of a class map `[n, h, w]` and colours `[256, 3]`; a fourth byte is 255."""
    image = np.full((*classes.shape, pixel_bytes), 255, np.uint8)
    image[..., :3] = table[classes]
    return image


def topk(logits: npt.NDArray[np.floating], k: int) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Values `[rows, k]` and indices `[rows, k]` of the largest of `[rows, classes]`, largest first.

    The lower index comes first among equals, and every NaN before every number. Places beyond the classes hold minus
    infinity and index -1.
    """
    value = logits.astype(np.float32)
    number = np.where(np.isnan(value), 0, value)
    order = np.lexsort((-number, ~np.isnan(value)), axis=1)[:, :k]  # stable: equals stay in the order of indices
    beyond = ((0, 0), (0, k - order.shape[1]))
    found = np.take_along_axis(value, order, 1)
    return np.pad(found, beyond, constant_values=-np.inf), np.pad(order, beyond, constant_values=-1).astype(np.int32)


def l2_flush(words: npt.NDArray[np.uint32], threads: int) -> npt.NDArray[np.uint32]:
    """What each of `threads` threads leaves: the exclusive or of every `threads`-th word from its own on."""
    rounds = np.pad(words, (0, -len(words) % threads)).reshape(-1, threads)
    sums: npt.NDArray[np.uint32] = np.bitwise_xor.reduce(rounds, axis=0)
    return sums


def _bilinear(pixels: Floats, h: int, w: int) -> Floats:
    """`[n, src_h, src_w, c]` to `[n, h, w, c]`, half-pixel centres, two taps a side."""
    top, bottom, down = _pair(h, pixels.shape[1])
    left, right, along = _pair(w, pixels.shape[2])
    along, down = along[:, None], down[:, None, None]
    rows_above, rows_below = pixels[:, top], pixels[:, bottom]
    above = rows_above[:, :, left] + (rows_above[:, :, right] - rows_above[:, :, left]) * along
    below = rows_below[:, :, left] + (rows_below[:, :, right] - rows_below[:, :, left]) * along
    return above + (below - above) * down


def _pair(extent: int, src: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Floats]:
    """Two neighbouring source indices of each output index, and the weight of the second."""
    scale = np.float32(src) / np.float32(extent)
    at = np.maximum((np.arange(extent, dtype=np.float32) + _HALF) * scale - _HALF, np.float32(0))
    first = np.minimum(at.astype(np.int32), src - 1)
    return first, np.minimum(first + 1, src - 1), at - first.astype(np.float32)


def _filtered(pixels: Floats, h: int, w: int) -> Floats:
    """`[n, src_h, src_w, c]` to `[n, h, w, c]` by a triangle filter as wide as the scale, at least one pixel."""
    total = np.zeros((pixels.shape[0], h, w, pixels.shape[3]), np.float32)
    rows, row_weights = _taps(h, pixels.shape[1])
    columns, column_weights = _taps(w, pixels.shape[2])
    for row, row_weight in zip(rows, row_weights, strict=True):
        along = np.zeros_like(total)
        for column, column_weight in zip(columns, column_weights, strict=True):
            along += column_weight[:, None] * pixels[:, row][:, :, column]
        total += row_weight[:, None, None] * along
    return total / (_summed(row_weights)[:, None] * _summed(column_weights))[..., None]


def _taps(extent: int, src: int) -> tuple[npt.NDArray[np.int32], Floats]:
    """Source indices `[taps, extent]` and weights; a tap beyond an output's own range has weight 0."""
    scale = np.float32(src) / np.float32(extent)
    support = np.maximum(scale, np.float32(1))
    centre = (np.arange(extent, dtype=np.float32) + _HALF) * scale
    low = np.maximum((centre - support + _HALF).astype(np.int32), 0)
    high = np.minimum((centre + support + _HALF).astype(np.int32), src)
    index = low + np.arange((high - low).max(), dtype=np.int32)[:, None]
    distance = np.abs((index.astype(np.float32) - centre + _HALF) / support)
    weight = np.where(index < high, np.maximum(np.float32(1) - distance, np.float32(0)), np.float32(0))
    return np.minimum(index, src - 1), weight


def _summed(weights: Floats) -> Floats:
    """Sum over taps in their order, as a thread adds them."""
    total: Floats = np.zeros_like(weights[0])
    for weight in weights:
        total += weight
    return total
