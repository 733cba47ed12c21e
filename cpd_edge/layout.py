"""The axis algebra's one data structure: how the indices of a tensor dim are made of units.

A layout is a tree. A leaf is an axis; a `Sum` lays its parts one behind the other (concat, chunk,
split); a `Prod` nests its parts row-major (reshape, heads x head_dim, groups x channels). An index
of the dim goes when any unit it belongs to goes, at any depth of the tree.

Nothing here knows torch. Sizes and index lists after a cut are pure functions of the tree and of
the kept units per axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, Union

import numpy as np
import numpy.typing as npt

Keep: TypeAlias = Mapping[str, npt.NDArray[np.int64]]
"""Kept units, ascending, by axis name. An axis that is absent keeps all its units."""

Widths: TypeAlias = Mapping[str, int]
"""Number of kept units by axis name. An axis that is absent keeps all its units."""

Layout: TypeAlias = Union["Leaf", "Sum", "Prod"]


@dataclass(frozen=True)
class Leaf:
    """One axis of `extent` units. Axes with equal names are the same axis."""

    axis: str
    extent: int


@dataclass(frozen=True)
class Sum:
    """Parts one behind the other: extent is the sum of the parts' extents."""

    parts: tuple[Layout, ...]

    @cached_property
    def extent(self) -> int:
        """Indices of the dim at full width."""
        return sum(p.extent for p in self.parts)


@dataclass(frozen=True)
class Prod:
    """Parts nested row-major, outermost first: extent is the product of the parts' extents."""

    parts: tuple[Layout, ...]

    @cached_property
    def extent(self) -> int:
        """Indices of the dim at full width."""
        out = 1
        for p in self.parts:
            out *= p.extent
        return out


def leaves(layout: Layout) -> Iterator[Leaf]:
    """Yields every leaf of the tree in order; an axis that stands twice comes twice."""
    if isinstance(layout, Leaf):
        yield layout
    else:
        for part in layout.parts:
            yield from leaves(part)


def axes(*layouts: Layout) -> tuple[str, ...]:
    """The distinct axis names of some layouts, in order of first appearance."""
    return tuple(dict.fromkeys(leaf.axis for layout in layouts for leaf in leaves(layout)))


def size(layout: Layout, widths: Widths) -> int:
    """Extent of the dim once each axis keeps `widths[axis]` units."""
    if isinstance(layout, Leaf):
        return widths.get(layout.axis, layout.extent)
    if isinstance(layout, Sum):
        return sum(size(p, widths) for p in layout.parts)
    out = 1
    for p in layout.parts:
        out *= size(p, widths)
    return out


def narrowed(layout: Layout, widths: Widths) -> Layout:
    """The layout in a cut tensor's own coordinates: each axis has the units it keeps."""
    if isinstance(layout, Leaf):
        return Leaf(layout.axis, widths.get(layout.axis, layout.extent))
    parts = tuple(narrowed(p, widths) for p in layout.parts)
    return Sum(parts) if isinstance(layout, Sum) else Prod(parts)


def kept(layout: Layout, keep: Keep) -> npt.NDArray[np.int64]:
    """Ascending indices `[size]` of the dim that stay when each axis keeps `keep[axis]`."""
    if isinstance(layout, Leaf):
        return np.asarray(keep[layout.axis], np.int64) if layout.axis in keep else np.arange(layout.extent)
    if isinstance(layout, Sum):
        out, base = [], 0
        for part in layout.parts:
            out.append(kept(part, keep) + base)
            base += part.extent
        return np.concatenate(out) if out else np.zeros(0, np.int64)
    index = np.zeros(1, np.int64)
    for part in layout.parts:
        index = (index[:, None] * part.extent + kept(part, keep)[None, :]).reshape(-1)
    return index


def occupants(layout: Layout, axis: str) -> npt.NDArray[np.int64]:
    """Which indices each unit of `axis` occupies in the dim: an array `[units, k]`.

    `k` is the number of indices that share the unit (`head_dim` for a head, 1 for a plain channel).
    An axis that does not occur gives an array `[0, 0]`.
    """
    if isinstance(layout, Leaf):
        return np.arange(layout.extent)[:, None] if layout.axis == axis else np.zeros((0, 0), np.int64)
    if isinstance(layout, Sum):
        found, base = [], 0
        for part in layout.parts:
            here = occupants(part, axis)
            if here.size:
                found.append(here + base)
            base += part.extent
        return np.concatenate(found, axis=1) if found else np.zeros((0, 0), np.int64)
    total = layout.extent
    found = []
    outer = 1
    for part in layout.parts:
        here = occupants(part, axis)
        inner = total // (outer * part.extent)
        if here.size:
            before = np.arange(outer) * part.extent * inner
            after = np.arange(inner)
            index = before[None, :, None, None] + here[:, None, :, None] * inner + after[None, None, None, :]
            found.append(index.reshape(here.shape[0], -1))
        outer *= part.extent
    if not found:
        return np.zeros((0, 0), np.int64)
    return np.concatenate(found, axis=1) if len(found) > 1 else found[0]


def to_json(layout: Layout) -> object:
    """A leaf as `[axis, extent]`, a sum as `{"sum": [...]}`, a product as `{"prod": [...]}`."""
    if isinstance(layout, Leaf):
        return [layout.axis, layout.extent]
    return {"sum" if isinstance(layout, Sum) else "prod": [to_json(p) for p in layout.parts]}


def from_json(data: object) -> Layout:
    """Inverse of `to_json`."""
    if isinstance(data, list):
        return Leaf(str(data[0]), int(data[1]))
    if isinstance(data, dict):
        for word, kind in (("sum", Sum), ("prod", Prod)):
            if word in data:
                return kind(tuple(from_json(p) for p in data[word]))
    raise ValueError(f"not a layout: {data!r}")
