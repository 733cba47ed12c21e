"""Region latency as a function of widths: non-negative least squares on extents, on the steps that hardware has.

A kernel works in blocks of channels, so latency climbs a staircase in the extents it reads and writes; where an
extent does not fit the blocks, some runtimes take another path, which costs extra; and what exceeds a cache costs
more from there on. Which block, and which extra, is chosen by cross-validation, for all regions of one operator
together and for a single one where that is clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from cpd_edge.layout import Layout, Leaf, Sum
from cpd_edge.types import Region

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Columns: TypeAlias = Mapping[str, Ints]
"""Widths by axis; all arrays broadcast against each other."""

BLOCKS = (1, 4, 8, 16, 32, 64, 128)
FOLDS = 4
CLEARLY = 0.85
"""A region leaves the form of its operator when its own form's error is this share of it, or less."""
WORTH = 0.98
"""A form takes one more extra when the error falls to this share, or less."""
MOST_EXTRAS = 3
EXACT = 1e-4
"""An error below this is none: what is left is arithmetic, which no extra explains."""
LEAN = 0.3
"""Pull towards the operator's coefficients: being twice as large weighs like a relative error of this size."""
HEARSAY = 0.1
"""The same towards what fits the region in another network."""
RIDGE = 1e-9
"""Added to normal equations in which columns have length 1: some features are the same at all samples."""
FLOOR = 0.15
"""Errors count relative to a latency, but to no less than this share of the region's largest."""


@dataclass(frozen=True)
class Extra:
    """A condition on a region's extents under which it costs more.

    Attributes:
        side: the extent read, written, or each part of the concat that is read; for `beyond` also the weight.
        kind: `indivisible` by `by`, or `below` it; `beyond`: by the share of its elements that exceeds `by`.
        by: the divisor, or the bound.
        least: smallest extent for which being indivisible matters.
    """

    side: Literal["reads", "writes", "parts", "weight"]
    kind: Literal["indivisible", "below", "beyond"]
    by: int
    least: int = 0


EXTRAS = (
    *(Extra(side, "indivisible", by) for side in ("reads", "writes") for by in (4, 8, 16)),
    *(Extra(side, "indivisible", 4, 16) for side in ("reads", "writes")),
    *(Extra("parts", "indivisible", by) for by in (4, 16)),
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
        units = np.stack([_units(part, form) * _present(part, form) for part in self.parts])
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
        features = design(region, widths, self.form)
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
        """See `design`."""
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
        """Whether an extra's condition holds to another degree at some widths than at others."""
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


def design(region: Region, widths: Columns, form: Form) -> Floats:
    """Features `[..., k]`: 1, weights touched, extents read and written; the same again for each extra."""
    return _Columns(region, widths).features(form)


@dataclass(frozen=True)
class Samples:
    """Latencies of all regions at sampled widths.

    Attributes:
        widths: by group `[samples]`.
        ms: by region `[samples]` [ms].
    """

    widths: Columns
    ms: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(next(iter(self.ms.values())))


def fit(
    regions: Sequence[Fitted],
    samples: Samples,
    known: Mapping[str, Model] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> dict[str, Model]:
    """One model a region, forms chosen by cross-validation; of regions that are fused, one for each part.

    Forms are tried on the regions that take most of the time of each operator, at most ten of them. What one
    region's samples leave open is taken from the others: coefficients lean towards the operator's, which are
    fitted on all of them in units of work.

    Args:
        regions: what to fit.
        samples: what was measured.
        known: by region, what fits the same work in another network, at this one's level: its form is taken, and the
            coefficients lean towards its own.
        forms: by region, forms that were chosen before, on much the same samples.
    """
    known = known or {}
    models: dict[str, Model] = {}
    for region in regions:
        if isinstance(region, Region) and region.name in known:
            there = known[region.name]
            prior = np.asarray(there.coefficients, np.float64)
            found = _Family([region], samples).leaning(region, there.form, prior, HEARSAY)
            models[region.name] = Model(there.form, tuple(float(c) for c in found))
    regions = [r for r in regions if r.name not in models]
    for kind in dict.fromkeys(_kind(r) for r in regions):
        alike = [r for r in regions if _kind(r) == kind]
        heavy = sorted(alike, key=lambda r: -float(samples.ms[r.name].mean()))[:10]
        family = _Family(heavy, samples)
        chosen = {r: forms[r.name] for r in alike} if forms else _chosen(family, alike)
        weighed = _Family(heavy, samples, {r.name: family.predicted(r, form) for r, form in chosen.items()})
        for region, form in chosen.items():
            models |= _models(region, form, weighed.fitted(region, form))
    return models


def _chosen(family: _Family, alike: Sequence[Fitted]) -> dict[Fitted, Form]:
    """The form of each region: that of all of them together, or its own where it is heavy and clearly better."""
    shared = family.best(family.heavy)
    forms = dict.fromkeys(alike, shared)
    for region in family.heavy if len(family.heavy) > 1 else ():
        own = family.best([region])
        if family.error([region], own) < CLEARLY * family.error([region], shared):
            forms[region] = own
    return forms


def _models(region: Fitted, form: Form, found: Floats) -> dict[str, Model]:
    if isinstance(region, Region):
        return {region.name: Model(form, tuple(float(c) for c in found))}
    shared = zip(region.parts, region.shares(form), strict=True)
    return {part.name: Model(form, tuple(float(c) for c in found * share)) for part, share in shared}


def _kind(region: Fitted) -> tuple[str, bool, bool]:
    """Operator, whether it has weights, and whether they join all it reads to all it writes (not when grouped)."""
    if isinstance(region, Fused):
        return region.op, True, True
    spanned = int(np.prod([d.extent for d in region.weight[:2]]))
    return region.op, bool(region.weight), spanned >= region.reads.extent * region.writes.extent


EVERY = FOLDS
"""Where `_Sums` has the sums over all samples."""


@dataclass(frozen=True)
class _Sums:
    """A region's samples under a form, errors relative to the latency that is expected, as normal equations.

    Attributes:
        weight: of each sample's error `[samples]` [1/ms].
        rows, values: features `[samples, k]` and latencies `[samples]`, times the weight.
        gram, moment: `rowsᵀ rows` `[FOLDS + 1, k, k]` and `rowsᵀ values` `[FOLDS + 1, k]` without each fold, and of
            all.
        units: dense amount behind each feature `[k]`.
    """

    weight: Floats
    rows: Floats
    values: Floats
    gram: Floats
    moment: Floats
    units: Floats

    @classmethod
    def of(cls, features: Floats, ms: Floats, units: Floats, expected: Floats) -> _Sums:
        weight = 1.0 / (expected + FLOOR * max(float(ms.max()), 1e-9))
        rows, values = features * weight[:, None], ms * weight
        gram = np.stack([rows[k::FOLDS].T @ rows[k::FOLDS] for k in range(FOLDS)])
        moment = np.stack([rows[k::FOLDS].T @ values[k::FOLDS] for k in range(FOLDS)])
        return cls(weight, rows, values, _left_out(gram), _left_out(moment), units)


def _left_out(by_fold: Floats) -> Floats:
    """Sums over all folds but one, for each `[FOLDS + 1, ...]`; the last leaves out none."""
    whole = by_fold.sum(axis=0)
    return np.concatenate([whole - by_fold, whole[None]])


class _Family:
    """Regions of one operator, and the features of every form tried on them.

    Errors count relative to `expected`, by region `[samples]` [ms]; without it to what was measured, which draws a fit
    to the samples that came out low.
    """

    def __init__(self, heavy: Sequence[Fitted], samples: Samples, expected: Mapping[str, Floats] | None = None) -> None:
        self.heavy, self.samples, self.expected = heavy, samples, expected or samples.ms
        self._columns: dict[str, list[_Columns]] = {}
        self._sums: dict[tuple[str, Form], _Sums] = {}
        self._pooled: dict[tuple[Form, int], Floats] = {}

    def sums(self, region: Fitted, form: Form) -> _Sums:
        """The region's samples under a form."""
        key = region.name, form
        if key not in self._sums:
            shares = region.shares(form) if isinstance(region, Fused) else (np.ones(()),)
            parts = zip(self._parts_of(region), shares, strict=True)
            features = np.asarray(sum((part.features(form) * share for part, share in parts), np.zeros(())), np.float64)
            whole = np.broadcast_to(features, (len(self.samples), features.shape[-1]))
            name = region.name
            self._sums[key] = _Sums.of(whole, self.samples.ms[name], _units(region, form), self.expected[name])
        return self._sums[key]

    def _parts_of(self, region: Fitted) -> list[_Columns]:
        if region.name not in self._columns:
            self._columns[region.name] = [_Columns(part, self.samples.widths) for part in _parts(region)]
        return self._columns[region.name]

    def best(self, regions: Sequence[Fitted]) -> Form:
        """The form of least cross-validated error: steps first, then extras one at a time, then steps again."""
        if not any(self.samples.ms[r.name].any() for r in regions):
            return Form()
        best, error = self._stepped(regions, Form())
        seen = [e for e in EXTRAS if any(part.varies(e) for r in regions for part in self._parts_of(r))]
        for _ in range(MOST_EXTRAS):
            tried = [replace(best, extras=(*best.extras, e)) for e in seen if e not in best.extras]
            if error < EXACT or not tried:
                break
            form, lower = self._least(regions, tried)
            if not lower < WORTH * error:
                break
            best, error = form, lower
        return self._stepped(regions, best)[0] if best.extras else best

    def _stepped(self, regions: Sequence[Fitted], form: Form) -> tuple[Form, float]:
        """A form with the steps of least error: those read, then those written, and both once more."""
        reads = [(r, soft) for r, soft in product(BLOCKS, (False, True)) if not (soft and r == 1)]
        best, error = form, np.inf
        for _ in range(2):
            best, error = self._least(regions, [replace(best, reads=r, soft=soft) for r, soft in reads])
            best, error = self._least(regions, [replace(best, writes=w) for w in BLOCKS])
        return best, error

    def _least(self, regions: Sequence[Fitted], forms: Sequence[Form]) -> tuple[Form, float]:
        errors = [self.error(regions, form) for form in forms]
        at = int(np.argmin(errors))
        return forms[at], errors[at]

    def error(self, regions: Sequence[Fitted], form: Form) -> float:
        """Cross-validated relative error of a form, each region counted by its time."""
        wrong = 0.0
        for region in regions:
            sums = self.sums(region, form)
            off = [
                np.abs(sums.rows[k::FOLDS] @ self.fitted(region, form, k) - sums.values[k::FOLDS]).sum()
                for k in range(FOLDS)
            ]
            wrong += float(sum(off) * self.samples.ms[region.name].mean())
        return wrong / max(sum(float(self.samples.ms[r.name].mean()) for r in regions) * len(self.samples), 1e-300)

    def fitted(self, region: Fitted, form: Form, without: int = EVERY) -> Floats:
        """A region's coefficients from the samples without a fold, leaning towards those of all heavy regions."""
        pooled = self._pool(form, without)
        prior = None if pooled is None else pooled * self.sums(region, form).units
        return self.leaning(region, form, prior, LEAN, without)

    def predicted(self, region: Fitted, form: Form) -> Floats:
        """What the fit says of the samples `[samples]` [ms]."""
        sums = self.sums(region, form)
        return np.asarray((sums.rows @ self.fitted(region, form)) / sums.weight, np.float64)

    def leaning(self, region: Fitted, form: Form, prior: Floats | None, pull: float, without: int = EVERY) -> Floats:
        """A region's coefficients `[k]`, leaning towards `prior` [ms at dense extents] as strongly as `pull` says."""
        sums = self.sums(region, form)
        gram, moment = sums.gram[without], sums.moment[without]
        if prior is not None:
            lean = (pull / (prior + FLOOR * max(float(self.samples.ms[region.name].max()), 1e-9))) ** 2
            gram, moment = gram + np.diag(lean), moment + lean * prior
        return _least_squares(gram, moment)

    def _pool(self, form: Form, without: int) -> Floats | None:
        """One coefficient a feature for all heavy regions, per unit of work; None for a region alone."""
        if len(self.heavy) == 1:
            return None
        key = form, without
        if key not in self._pooled:
            every = [self.sums(region, form) for region in self.heavy]
            gram = np.sum([s.gram[without] * np.outer(s.units, s.units) for s in every], axis=0)
            self._pooled[key] = _least_squares(gram, np.sum([s.moment[without] * s.units for s in every], axis=0))
        return self._pooled[key]


def _least_squares(gram: Floats, moment: Floats) -> Floats:
    """Non-negative least squares from normal equations, each unknown scaled to its column."""
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    root = np.linalg.cholesky(gram / np.outer(scale, scale) + RIDGE * np.eye(len(scale)))
    return np.asarray(nnls(root.T, np.linalg.solve(root, moment / scale))[0] / scale, np.float64)


def _parts(region: Fitted) -> tuple[Region, ...]:
    return region.parts if isinstance(region, Fused) else (region,)


def _present(region: Region, form: Form) -> Floats:
    """1 for each feature that a region has, 0 for the work of one without weights."""
    return np.tile(np.asarray([1.0, float(bool(region.weight)), 1.0, 1.0]), 1 + len(form.extras))


def _units(region: Fitted, form: Form) -> Floats:
    """Dense amount behind each feature: one, multiply-accumulates, elements read and written; again for extras."""
    if isinstance(region, Fused):
        return np.asarray(sum(_units(part, form) * _present(part, form) for part in region.parts), np.float64)
    weights = float(np.prod([d.extent for d in region.weight])) if region.weight else 1.0
    places = region.dense_macs / weights if region.dense_macs else 1.0
    features = region.reads.extent * places * 1e-3, region.writes.extent * places * 1e-3
    return np.tile(np.asarray([1.0, max(region.dense_macs, 1) * 1e-6, *features]), 1 + len(form.extras))
