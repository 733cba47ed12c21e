"""The forms that a region's latency may have over widths: extents, on the steps that hardware has.

A kernel works in blocks of channels, so latency climbs a staircase in the extents it reads and writes; where an
extent does not fit the blocks, some runtimes take another path, which costs extra; and what exceeds a cache costs
more from there on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cpd_edge.layout import Layout, Leaf, Sum
from cpd_edge.types import Region

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Columns: TypeAlias = Mapping[str, Ints]
"""Widths by axis; all arrays broadcast against each other."""

BLOCKS = (1, 4, 8, 16, 32, 64, 128)
"""Blocks that are tried."""


@dataclass(frozen=True)
class Extra:
    """A condition on a region's extents under which it costs more.

    Attributes:
        side: the extent read, written, each part of the concat that is read, or all that is joined (see `Region`) and
            what the region convolves itself; for `beyond` also the weight.
        kind: `indivisible` by `by`, or `below` it; `beyond`: by the share of its elements that exceeds `by`.
        by: the divisor, or the bound.
        least: smallest extent for which being indivisible matters.
    """

    side: Literal["reads", "writes", "parts", "joined", "weight"]
    kind: Literal["indivisible", "below", "beyond"]
    by: int
    least: int = 0


EXTRAS = (
    *(Extra(side, "indivisible", by) for side in ("reads", "writes") for by in (4, 8, 16)),
    *(Extra(side, "indivisible", 4, 16) for side in ("reads", "writes")),
    *(Extra("parts", "indivisible", by) for by in (4, 16)),
    *(Extra("joined", "indivisible", by, least) for by, least in ((4, 8), (4, 16), (16, 16))),
    *(Extra(side, "below", 16) for side in ("reads", "writes")),
    *(Extra(side, "beyond", 1 << power) for side in ("reads", "writes", "weight") for power in range(15, 22)),
)  # fmt: skip
"""Conditions that are tried: those of ONNX Runtime's blocked layout, and caches of 128 KiB to 8 MiB of floats."""


@dataclass(frozen=True)
class Form:
    """The steps of a region's latency.

    Attributes:
        reads, writes: block that each extent is rounded up to.
        soft: extents read that are smaller than one block are not rounded.
        extras: conditions that add a cost.
    """

    reads: int = 1
    writes: int = 1
    soft: bool = False
    extras: tuple[Extra, ...] = ()


@dataclass(frozen=True)
class Fused:
    """Regions that a runtime runs as one kernel, so that only their sum is measured.

    Its features are the sums of its parts' features, each weighed by how much of it the part does: so the fit of the
    whole is a fit of every part as well, and what the parts cost adds up to what was measured.

    Attributes:
        name: of the first part.
        parts: the regions, in the network's order.
    """

    name: str
    parts: tuple[Region, ...]
    op: str = "Fused"

    def shares(self, form: Form) -> tuple[Floats, ...]:
        """Share of each part in each feature of a form `[k]`, which sum to 1 over the parts."""
        units = np.stack([amounts(part, form) * _present(part, form) for part in self.parts])
        whole = units.sum(axis=0)
        return tuple(units / np.where(whole > 0, whole, 1.0))


Fitted: TypeAlias = Region | Fused


@dataclass(frozen=True)
class Model:
    """A fitted region: its form and one coefficient a feature [ms at dense extents]."""

    form: Form
    coefficients: tuple[float, ...]

    def ms(self, region: Region, widths: Columns) -> Floats:
        """Latency at widths, of the shape that the widths broadcast to [ms]."""
        features = Design(region, widths).features(self.form)
        return np.asarray(features @ np.asarray(self.coefficients), np.float64)


def extent(layout: Layout, widths: Columns) -> Ints:
    """Extent of a layout at arrays of widths; an axis that is absent keeps its dense extent."""
    if isinstance(layout, Leaf):
        return np.asarray(widths.get(layout.axis, layout.extent), np.int64)
    parts = [extent(p, widths) for p in layout.parts]
    out = np.zeros((), np.int64) if isinstance(layout, Sum) else np.ones((), np.int64)
    for part in parts:
        out = out + part if isinstance(layout, Sum) else out * part
    return out


def addends(layout: Layout) -> tuple[Layout, ...]:
    """The parts of a sum, those of sums in it included; what is no sum is its own."""
    return tuple(a for part in layout.parts for a in addends(part)) if isinstance(layout, Sum) else (layout,)


def reached(layout: Layout, widths: Columns) -> Ints:
    """Every extent that a layout may have where each axis takes any of its widths, ascending; absent ones are dense.

    Parts that are equal have equal extents. Others that share an axis are seen each on its own: of these there may be
    extents that no widths give. Combinations are as many as extents, not as widths.
    """
    if isinstance(layout, Leaf):
        return np.unique(np.asarray(widths.get(layout.axis, layout.extent), np.int64))
    out = np.full(1, 0 if isinstance(layout, Sum) else 1, np.int64)
    for part, times in Counter(layout.parts).items():
        here = reached(part, widths)
        out = np.unique(
            np.add.outer(out, times * here) if isinstance(layout, Sum) else np.multiply.outer(out, here**times)
        )
    return out


class _Columns:
    """What forms are made of, for one region at arrays of widths: each is computed once."""

    def __init__(self, region: Region, widths: Columns) -> None:
        self.region = region
        self._widths = widths
        self._shape = np.broadcast_shapes(*(np.shape(v) for v in widths.values()))
        self._extents: dict[Layout, Ints] = {}
        self._steps: dict[tuple[Layout, int, bool], Floats] = {}
        self._on: dict[Extra, Floats] = {}

    def features(self, form: Form) -> Floats:
        """See `Design`."""
        region = self.region
        reads = self._stepped(region.reads, form.reads, form.soft)
        writes = self._stepped(region.writes, form.writes)
        work = np.full((), float(bool(region.weight)))
        for dim in region.weight:
            if dim == region.writes:
                work = work * writes
            elif dim == region.reads:
                work = work * reads
            else:
                work = work * self._stepped(dim, 1)
        features = [np.ones(()), work, reads, writes]
        for extra in form.extras:
            on = self._holds(extra)
            features += [on, on * work, on * reads, on * writes]
        shape = np.broadcast_shapes(self._shape, *(p.shape for p in features))
        out = np.empty((*shape, len(features)))
        for i, feature in enumerate(features):
            out[..., i] = feature
        return out

    def _extent(self, layout: Layout) -> Ints:
        if layout not in self._extents:
            self._extents[layout] = extent(layout, self._widths)
        return self._extents[layout]

    def varies(self, extra: Extra) -> bool:
        """See `Design`."""
        return bool(np.ptp(self._holds(extra)) > 0)

    def _stepped(self, layout: Layout, block: int, soft: bool = False) -> Floats:
        """Extent rounded up to a block, as a share of the dense one's."""
        key = layout, block, soft
        if key not in self._steps:
            found, dense = (_up(x, block, soft) for x in (self._extent(layout), np.asarray(layout.extent)))
            self._steps[key] = np.asarray(found / max(int(dense), 1), np.float64)
        return self._steps[key]

    def _holds(self, extra: Extra) -> Floats:
        """1 where an extra's condition holds, else 0; of what is beyond a bound, the share."""
        if extra not in self._on:
            if extra.kind == "beyond":
                self._on[extra] = self._beyond(extra)
            else:
                self._on[extra] = _holds(extra, [self._extent(part) for part in _sides(self.region, extra)])
        return self._on[extra]

    def _beyond(self, extra: Extra) -> Floats:
        """Share of the elements of one side that exceeds a bound."""
        dims, dense = _tensor(self.region, extra.side)
        elements = np.full((), dense)
        for dim in dims:
            elements = elements * self._stepped(dim, 1)
        return np.asarray(np.maximum(1 - extra.by / np.maximum(elements, 1.0), 0.0), np.float64)


def _up(extents: Ints, block: int, soft: bool) -> Ints:
    rounded = -(-extents // block) * block
    return np.where(extents < block, extents, rounded) if soft else rounded


def _sides(region: Region, extra: Extra) -> tuple[Layout, ...]:
    """What an extra's condition is about."""
    if extra.side == "parts":
        return region.reads.parts if isinstance(region.reads, Sum) else ()
    if extra.side == "joined":
        return (*region.joined, *((region.reads,) if region.joined and region.weight else ()))
    return (region.reads if extra.side == "reads" else region.writes,)


def _tensor(region: Region, side: str) -> tuple[tuple[Layout, ...], float]:
    """Layouts that the size of what a region reads, writes or weighs follows, and its dense elements."""
    if side == "weight":
        return region.weight, float(np.prod([dim.extent for dim in region.weight])) if region.weight else 0.0
    read, written = region.dense_elements
    return ((region.reads,), read) if side == "reads" else ((region.writes,), written)


def _holds(extra: Extra, extents: Sequence[Ints]) -> Floats:
    out = np.zeros((), bool)
    for here in extents:
        out = out | (here < extra.by if extra.kind == "below" else (here % extra.by != 0) & (here >= extra.least))
    return out.astype(np.float64)


class Design:
    """Features of a region at arrays of widths, under any form; of regions that are fused, of all together."""

    def __init__(self, region: Fitted, widths: Columns) -> None:
        self.region = region
        self._parts = [_Columns(part, widths) for part in parts_of(region)]

    def features(self, form: Form) -> Floats:
        """Features `[..., k]`: 1, weights touched, extents read and written; the same again for each extra."""
        if not isinstance(self.region, Fused):
            return self._parts[0].features(form)
        shares = self.region.shares(form)
        weighed = [part.features(form) * share for part, share in zip(self._parts, shares, strict=True)]
        return np.asarray(sum(weighed, np.zeros(())), np.float64)

    def varies(self, extra: Extra) -> bool:
        """Whether an extra's condition holds to another degree at some widths than at others."""
        return any(part.varies(extra) for part in self._parts)


def parts_of(region: Fitted) -> tuple[Region, ...]:
    """The regions that a set of fused ones holds; a single one holds itself."""
    return region.parts if isinstance(region, Fused) else (region,)


def _present(region: Region, form: Form) -> Floats:
    """1 for each feature that a region has, 0 for the work of one without weights."""
    return np.tile(np.asarray([1.0, float(bool(region.weight)), 1.0, 1.0]), 1 + len(form.extras))


def amounts(region: Fitted, form: Form) -> Floats:
    """Dense amount behind each feature: one, multiply-accumulates, elements read and written; again for extras."""
    if isinstance(region, Fused):
        return np.asarray(sum(amounts(part, form) * _present(part, form) for part in region.parts), np.float64)
    weights = float(np.prod([d.extent for d in region.weight])) if region.weight else 1.0
    places = region.dense_macs / weights if region.dense_macs else 1.0
    features = region.reads.extent * places * 1e-3, region.writes.extent * places * 1e-3
    return np.tile(np.asarray([1.0, max(region.dense_macs, 1) * 1e-6, *features]), 1 + len(form.extras))
