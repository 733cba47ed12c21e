"""Launches: function, grid, block and arguments of each kernel, as plain data that any CUDA binding can take.

Pointers are device addresses as integers. Arguments are NumPy scalars of exactly the kernel's parameter types, which
is what PyCUDA wants; `cpd_edge.kernels.driver` hands them to the driver, and `docs/kernels.md` shows both ways.
A builder looks at shapes and pitches and refuses what a kernel would read or write outside of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cpd_edge.errors import UsageError
from cpd_edge.kernels.recipe import LARGEST_EXTENT, Preprocess

LogitType = Literal["float32", "float16"]
Extent3 = tuple[int, int, int]
Arguments = tuple[np.generic, ...]

_TILE = (32, 8, 1)
_TOPK_BLOCK = 128
_FLUSH_BLOCK = 256
_LARGEST_GRID_YZ = 65535
_SUFFIX = {"float32": "f32", "float16": "f16", "int8": "i8"}


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        function: name in the module.
        grid, block: extents as (x, y, z).
        arguments: NumPy scalars in the order of the kernel's parameters.
    """

    function: str
    grid: Extent3
    block: Extent3
    arguments: Arguments


@dataclass(frozen=True)
class Frames:
    """uint8 images `[n, h, w, bytes a pixel]` in device memory, with any pitch.

    Attributes:
        data: address of the first byte.
        n, h, w: images, rows, columns.
        pixel_bytes: 1, 3 or 4.
        row_bytes: from one row to the next; 0 for rows without a gap.
        image_bytes: from one image to the next; 0 for images without a gap.
    """

    data: int
    n: int
    h: int
    w: int
    pixel_bytes: int = 3
    row_bytes: int = 0
    image_bytes: int = 0

    @property
    def pitch(self) -> tuple[int, int]:
        """Bytes from row to row and from image to image.

        Raises:
            UsageError: rows or images that overlap.
        """
        _require_extents(images=self.n, height=self.h, width=self.w)
        row = self.row_bytes or self.w * self.pixel_bytes
        image = self.image_bytes or self.h * row
        if row < self.w * self.pixel_bytes or image < (self.h - 1) * row + self.w * self.pixel_bytes:
            raise UsageError(
                f"row_bytes {row}, image_bytes {image}: too few for {self.h} x {self.w} pixels of {self.pixel_bytes}",
                hint="both count bytes from one beginning to the next",
            )
        return row, image


def preprocess(recipe: Preprocess, frames: Frames, dst: int) -> Launch:
    """`preprocess_f32`, `_f16` or `_i8`: frames to the contiguous tensor `[n, channels, h, w]` at `dst`.

    Raises:
        UsageError: frames that do not fit the recipe.
    """
    allowed = (3, 4) if recipe.channels == 3 else (1,)
    if frames.pixel_bytes not in allowed:
        raise UsageError(
            f"{frames.pixel_bytes} bytes a pixel for {recipe.channels} channels", hint=f"it takes {allowed}"
        )
    box, (row, image) = recipe.box(frames.h, frames.w), frames.pitch
    a, b = (np.resize(values, 3) for values in (recipe.a, recipe.b))
    arguments: Arguments = (
        _pointer(frames.data), _pointer(dst), *_ints(frames.n, frames.h, frames.w), *_longs(row, image),
        *_ints(frames.pixel_bytes, recipe.channels, recipe.reverse, recipe.h, recipe.w),
        *_ints(box.top, box.left, box.h, box.w, recipe.pad, recipe.antialias), *a, *b,
    )  # fmt: skip
    if recipe.dtype == "int8":
        arguments = (*arguments, np.float32(recipe.scale), np.int32(recipe.zero))
    return Launch(f"preprocess_{_SUFFIX[recipe.dtype]}", _tiles(frames.n, recipe.h, recipe.w), _TILE, arguments)


def argmax(
    logits: int, shape: tuple[int, int, int, int], classes: Frames, *, dtype: LogitType = "float32",
    class_elems: int = 0, image_elems: int = 0,
) -> Launch:  # fmt: skip
    """`argmax_f32` or `_f16`: logits to a class map.

    Args:
        logits: address of the first.
        shape: `(n, classes, h, w)`.
        classes: where the map goes, one byte a pixel, with any pitch.
        dtype: of the logits.
        class_elems, image_elems: from one class, and one image, to the next, in elements; 0 for no gap.

    Raises:
        UsageError: shapes that do not fit each other, or more than 256 classes.
    """
    n, count, h, w = shape
    if not 1 <= count <= 256:
        raise UsageError(f"{count} classes do not fit one byte", hint="1 to 256")
    _require_map(classes, n, h, w)
    class_elems = class_elems or h * w
    image_elems = image_elems or count * class_elems
    if class_elems < h * w or image_elems < (count - 1) * class_elems + h * w:
        raise UsageError(f"class_elems {class_elems}, image_elems {image_elems}: too few for {shape}", hint="give 0")
    arguments: Arguments = (
        _pointer(logits), _pointer(classes.data), *_ints(n, count, h, w), *_longs(class_elems, image_elems),
        *_longs(*classes.pitch),
    )  # fmt: skip
    return Launch(f"argmax_{_SUFFIX[dtype]}", _tiles(n, h, w), _TILE, arguments)


def palette(classes: Frames, image: Frames, table: int) -> Launch:
    """`palette`: a class map to a colour image of 3 or 4 bytes a pixel.

    Args:
        classes: the map, one byte a pixel.
        image: where the colours go.
        table: address of `[256, 3]` uint8.

    Raises:
        UsageError: map and image that do not fit each other.
    """
    _require_map(classes, image.n, image.h, image.w)
    if image.pixel_bytes not in (3, 4):
        raise UsageError(f"{image.pixel_bytes} bytes a pixel are no colour", hint="3, or 4 with a fourth of 255")
    arguments: Arguments = (
        _pointer(classes.data), _pointer(image.data), _pointer(table), *_ints(image.n, image.h, image.w),
        *_longs(*classes.pitch, *image.pitch), *_ints(image.pixel_bytes),
    )  # fmt: skip
    return Launch("palette", _tiles(image.n, image.h, image.w), _TILE, arguments)


def topk(
    logits: int, shape: tuple[int, int], values: int, indices: int, k: int, *, dtype: LogitType = "float32",
    row_elems: int = 0,
) -> Launch:  # fmt: skip
    """`topk_f32` or `_f16`: the `k` largest of each row to float32 values and int32 indices, both `[rows, k]`.

    Args:
        logits: address of the first.
        shape: `(rows, classes)`.
        values, indices: where they go.
        k: 1 to `classes`.
        dtype: of the logits.
        row_elems: from one row to the next, in elements; 0 for no gap.

    Raises:
        UsageError: more places than classes, or rows that overlap.
    """
    rows, classes = shape
    _require_extents(rows=rows, classes=classes)
    if not 1 <= k <= classes:
        raise UsageError(f"the {k} largest of {classes} classes", hint="k lies between 1 and the number of classes")
    row_elems = row_elems or classes
    if row_elems < classes:
        raise UsageError(f"row_elems {row_elems}: too few for {classes} classes", hint="give 0")
    pointers = (_pointer(logits), _pointer(values), _pointer(indices))
    grid, block = (min(rows, _LARGEST_GRID_YZ), 1, 1), (_TOPK_BLOCK, 1, 1)
    return Launch(f"topk_{_SUFFIX[dtype]}", grid, block, (*pointers, *_ints(rows, classes, k), *_longs(row_elems)))


def l2_flush(buffer: int, buffer_bytes: int, sums: int, *, blocks: int = 256) -> Launch:
    """`l2_flush`: reads `buffer` once, so that the L2 cache holds it and not the network.

    Args:
        buffer: address, 4-byte aligned; its content does not matter.
        buffer_bytes: at least twice the L2 size (`CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE`).
        sums: address of `blocks * 256` words.
        blocks: of the launch; a few for each multiprocessor.

    Raises:
        UsageError: a buffer of no whole words, or no block.
    """
    if buffer_bytes < 4 or buffer_bytes % 4 or buffer % 4 or not 1 <= blocks < LARGEST_EXTENT // _FLUSH_BLOCK:
        raise UsageError(f"buffer of {buffer_bytes} bytes, {blocks} blocks: nothing to read", hint="whole 4-byte words")
    arguments = (_pointer(buffer), *_longs(buffer_bytes // 4), _pointer(sums))
    return Launch("l2_flush", (blocks, 1, 1), (_FLUSH_BLOCK, 1, 1), arguments)


def spin(state: int, timeout_ms: float) -> Launch:
    """`spin`: holds the stream until the host writes 1 to the first word of `state`, or the time is out.

    Args:
        state: address of two words of pinned, mapped host memory, both 0; the second becomes 1 (let go) or 2 (timed
            out), and a measurement with 2 is not one.
        timeout_ms: above 0 and at most 10 s, since a kernel that never ends takes the GPU with it.

    Raises:
        UsageError: another timeout.
    """
    if not 0 < timeout_ms <= 10_000:
        raise UsageError(f"timeout of {timeout_ms} ms", hint="above 0, at most 10000 ms")
    return Launch("spin", (1, 1, 1), (1, 1, 1), (_pointer(state), np.uint64(round(timeout_ms * 1e6))))


def _tiles(n: int, h: int, w: int) -> Extent3:
    """Grid that covers `w`; y and z stride where a grid's limit is below what they need."""
    return (-(-w // _TILE[0]), min(-(-h // _TILE[1]), _LARGEST_GRID_YZ), min(n, _LARGEST_GRID_YZ))


def _require_map(classes: Frames, n: int, h: int, w: int) -> None:
    if (classes.n, classes.h, classes.w, classes.pixel_bytes) != (n, h, w, 1):
        raise UsageError(
            f"a class map of {classes.n} x {classes.h} x {classes.w}, {classes.pixel_bytes} bytes a pixel, "
            f"for {n} x {h} x {w}",
            hint="same extents, one byte a pixel",
        )


def _require_extents(**extents: int) -> None:
    for name, extent in extents.items():
        if not 0 < extent < LARGEST_EXTENT:
            raise UsageError(f"{name}: {extent}", hint=f"at least 1 and below {LARGEST_EXTENT}")


def _pointer(address: int) -> np.uint64:
    if address <= 0:
        raise UsageError(f"address {address} is nowhere", hint="give a device pointer as an integer")
    pointer: np.uint64 = np.uint64(address)
    return pointer


def _ints(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(value) for value in values)


def _longs(*values: int) -> tuple[np.int64, ...]:
    return tuple(np.int64(value) for value in values)
