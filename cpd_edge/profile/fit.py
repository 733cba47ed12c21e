"""Region latency as a function of widths: non-negative least squares on the features of a form.

Which form is chosen by cross-validation, for all regions of one operator together and for a single one where that is
clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.optimize import nnls

from cpd_edge.profile.forms import (
    BLOCKS,
    EXTRAS,
    Columns,
    Design,
    Fitted,
    Floats,
    Form,
    Fused,
    Model,
    amounts,
)
from cpd_edge.types import Region

FOLDS = 4
CLEARLY = 0.85
"""A region leaves the form of its operator when its own form's error is this share of it, or less."""
WORTH = 0.98
"""A form takes one more extra when the error falls to this share, or less."""
MOST_EXTRAS, MOST_TRIED = 3, 10
"""Extras of a form; regions of an operator that forms are tried on, those that take most time."""
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
EVERY = slice(FOLDS, FOLDS + 1)
"""Where sums have all samples; before it, those without each fold."""


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

    Forms are tried on the regions that take most of the time of each operator. What one region's samples leave open is
    taken from the others: coefficients lean towards the operator's, which are fitted on all of them in units of work.

    Args:
        regions: what to fit.
        samples: what was measured.
        known: by region, what fits the same work in another network, at this one's level: its form is taken, and the
            coefficients lean towards its own.
        forms: by region, forms that were chosen before, on much the same samples.
    """
    models: dict[str, Model] = {}
    for name, there in (known or {}).items():
        alone = [r for r in regions if isinstance(r, Region) and r.name == name]
        if alone:
            prior = np.asarray(there.coefficients, np.float64)
            found = Family(alone, samples).leaning(there.form, prior, HEARSAY)
            models |= _models(alone[0], there.form, found[0, 0])
    left = [r for r in regions if r.name not in models]
    for kind in dict.fromkeys(kind_of(r) for r in left):
        alike = [r for r in left if kind_of(r) == kind]
        heavy = sorted(alike, key=lambda r: -float(samples.ms[r.name].mean()))[:MOST_TRIED]
        chosen = {r: forms[r.name] for r in alike} if forms else Family(heavy, samples).choose(alike)
        expected: dict[str, Floats] | None = None
        for _ in range(2):  # errors relative to the measured latency would draw the fit to samples that came out low
            coefficients, expected = _fitted(heavy, chosen, samples, expected)
        for region, form in chosen.items():
            models |= _models(region, form, coefficients[region])
    return models


def _fitted(
    heavy: Sequence[Fitted], chosen: Mapping[Fitted, Form], samples: Samples, expected: Mapping[str, Floats] | None
) -> tuple[dict[Fitted, Floats], dict[str, Floats]]:
    """Coefficients of regions of one operator under their forms, and what they say of the samples [ms]."""
    shared, out, told = Family(heavy, samples, expected), dict[Fitted, Floats](), dict[str, Floats]()
    for form in dict.fromkeys(chosen.values()):
        members = [r for r, own in chosen.items() if own == form]
        family = Family(members, samples, expected)
        found = family.leaning(form, shared.pool(form, family, EVERY), LEAN)[:, 0]
        for i, region in enumerate(members):
            out[region] = found[i]
            told[region.name] = family.features(form)[i] @ found[i]
    return out, told


def _models(region: Fitted, form: Form, found: Floats) -> dict[str, Model]:
    if isinstance(region, Region):
        return {region.name: Model(form, tuple(float(c) for c in found))}
    shared = zip(region.parts, region.shares(form), strict=True)
    return {part.name: Model(form, tuple(float(c) for c in found * share)) for part, share in shared}


def kind_of(region: Fitted) -> tuple[str, bool, bool, bool]:
    """Regions that one form is chosen for: by operator, whether they have weights, and whether they join anything.

    And by whether the weights join all that is read to all that is written: not those of a grouped convolution.
    """
    if isinstance(region, Fused):
        return region.op, True, True, False
    spanned = int(np.prod([d.extent for d in region.weight[:2]]))
    full = spanned >= region.reads.extent * region.writes.extent
    return region.op, bool(region.weight), full, bool(region.joined)


@dataclass(frozen=True)
class _Sums:
    """Regions' samples under a form, errors relative to the latency that is expected, as normal equations.

    Attributes:
        rows: features times the weight of each sample's error `[regions, samples, k]`.
        gram, moment: `rowsᵀ rows` `[regions, FOLDS + 1, k, k]` and `rowsᵀ values` `[regions, FOLDS + 1, k]`, without
            each fold and of all.
        amounts: dense amount behind each feature `[regions, k]`.
    """

    rows: Floats
    gram: Floats
    moment: Floats
    amounts: Floats


class Family:
    """Regions of one operator, and the fits of every form tried on them, all regions at once.

    Args:
        regions: the regions.
        samples: what was measured of them.
        expected: by region, latencies that errors count relative to `[samples]` [ms]; those measured if None.
    """

    def __init__(
        self, regions: Sequence[Fitted], samples: Samples, expected: Mapping[str, Floats] | None = None
    ) -> None:
        self.regions = tuple(regions)
        self.ms = np.stack([samples.ms[r.name] for r in regions])
        self.floor_ms = FLOOR * np.maximum(self.ms.max(axis=1), 1e-9)
        relative_to = self.ms if expected is None else np.stack([expected[r.name] for r in regions])
        self.weight = 1.0 / (relative_to + self.floor_ms[:, None])
        self._values = self.ms * self.weight
        self._designs = [Design(r, samples.widths) for r in regions]
        self._sums: dict[Form, _Sums] = {}
        self._errors: dict[Form, Floats] = {}

    def choose(self, alike: Sequence[Fitted]) -> dict[Fitted, Form]:
        """The form of each region of the operator: that of all of these, or of those that were tried its own best."""
        shared = self._best()
        forms = dict.fromkeys(alike, shared)
        if len(self.regions) == 1 or not self._errors:  # none was tried where nothing takes time
            return forms
        for i, region in enumerate(self.regions):
            own = min(self._errors, key=lambda form, at=i: float(self._errors[form][at]))  # type: ignore[misc]
            if self._errors[own][i] < CLEARLY * self._errors[shared][i]:
                forms[region] = own
        return forms

    def _best(self) -> Form:
        """The form of least cross-validated error: steps first, then extras one at a time, then steps again."""
        if not self.ms.any():
            return Form()
        best, error = self._climb(Form())
        seen = [e for e in EXTRAS if any(design.varies(e) for design in self._designs)]
        for _ in range(MOST_EXTRAS):
            tried = [replace(best, extras=(*best.extras, e)) for e in seen if e not in best.extras]
            if error < EXACT or not tried:
                break
            form, lower = self._least(tried)
            if not lower < WORTH * error:
                break
            best, error = form, lower
        return self._climb(best)[0] if best.extras else best

    def _climb(self, form: Form) -> tuple[Form, float]:
        """A form with the steps of least error: those read, then those written, and both once more."""
        reads = [(r, soft) for r, soft in product(BLOCKS, (False, True)) if not (soft and r == 1)]
        best, error = form, np.inf
        for _ in range(2):
            best, error = self._least([replace(best, reads=r, soft=soft) for r, soft in reads])
            best, error = self._least([replace(best, writes=w) for w in BLOCKS])
        return best, error

    def _least(self, forms: Sequence[Form]) -> tuple[Form, float]:
        errors = [self.error(form) for form in forms]
        at = int(np.argmin(errors))
        return forms[at], errors[at]

    def error(self, form: Form) -> float:
        """Cross-validated relative error of a form, each region counted by its time."""
        if form not in self._errors:
            rows = self.sums(form).rows
            found = self.leaning(form, self.pool(form, self, slice(FOLDS)), LEAN, slice(FOLDS))
            off = np.zeros(len(self.regions))
            for k in range(FOLDS):
                told = np.einsum("rsk,rk->rs", rows[:, k::FOLDS], found[:, k])
                off += np.abs(told - self._values[:, k::FOLDS]).sum(axis=1)
            self._errors[form] = off / rows.shape[1]
        means = self.ms.mean(axis=1)
        return float(self._errors[form] @ means / max(float(means.sum()), 1e-300))

    def features(self, form: Form) -> Floats:
        """Features of the regions `[regions, samples, k]`."""
        rows = [design.features(form) for design in self._designs]
        return np.stack([np.broadcast_to(x, (self.ms.shape[1], x.shape[-1])) for x in rows])

    def sums(self, form: Form) -> _Sums:
        """The regions' samples under a form."""
        if form not in self._sums:
            rows = self.features(form) * self.weight[..., None]
            folds = [(rows[:, k::FOLDS], self._values[:, k::FOLDS]) for k in range(FOLDS)]
            gram = _left_out(np.stack([x.swapaxes(1, 2) @ x for x, _ in folds], axis=1))
            moment = _left_out(np.stack([np.einsum("rsk,rs->rk", x, y) for x, y in folds], axis=1))
            self._sums[form] = _Sums(rows, gram, moment, np.stack([amounts(r, form) for r in self.regions]))
        return self._sums[form]

    def pool(self, form: Form, of: Family, folds: slice) -> Floats | None:
        """What regions `of` the operator would cost if all of these had one coefficient a feature and unit of work.

        `[regions of it, folds, k]`; None for a region alone.
        """
        if len(self.regions) == 1:
            return None
        sums = self.sums(form)
        gram = np.einsum("rfkl,rk,rl->fkl", sums.gram[:, folds], sums.amounts, sums.amounts)
        moment = np.einsum("rfk,rk->fk", sums.moment[:, folds], sums.amounts)
        return np.asarray(of.sums(form).amounts[:, None] * _least_squares(gram, moment)[None], np.float64)

    def leaning(self, form: Form, prior: Floats | None, pull: float, folds: slice = EVERY) -> Floats:
        """Coefficients `[regions, folds, k]`, leaning towards `prior` [ms at dense extents] as `pull` says."""
        sums = self.sums(form)
        gram, moment = sums.gram[:, folds], sums.moment[:, folds]
        if prior is not None:
            prior = np.broadcast_to(prior, moment.shape)
            lean = (pull / (prior + self.floor_ms[:, None, None])) ** 2
            gram, moment = gram + lean[..., None] * np.eye(moment.shape[-1]), moment + lean * prior
        return _least_squares(gram, moment)


def _left_out(by_fold: Floats) -> Floats:
    """Sums over all folds but one, for each `[regions, FOLDS + 1, ...]`; the last leaves out none."""
    whole = by_fold.sum(axis=1, keepdims=True)
    return np.concatenate([whole - by_fold, whole], axis=1)


def _least_squares(gram: Floats, moment: Floats) -> Floats:
    """Non-negative least squares from many normal equations `[..., k, k]`, each unknown scaled to its column."""
    scale = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 1e-300))
    k = scale.shape[-1]
    root = np.linalg.cholesky(gram / (scale[..., :, None] * scale[..., None, :]) + RIDGE * np.eye(k))
    right = np.linalg.solve(root, (moment / scale)[..., None])[..., 0]
    flat = zip(root.reshape(-1, k, k), right.reshape(-1, k), strict=True)
    found = np.stack([nnls(r.T, y)[0] for r, y in flat]).reshape(moment.shape)
    return np.asarray(found / scale, np.float64)
