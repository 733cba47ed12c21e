"""From regions to the whole network, which is timed more exactly than any kernel in it.

What all regions of an operator were given too much or too little of shows in the whole alone, and so does that large
networks are slow as a whole. Both are found on the samples' sums, and believed as far as these tell them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import linregress

from cpd_edge.profile.fit import Samples, fit, kind_of
from cpd_edge.profile.forms import Columns, Design, Fitted, Floats, Model, parts_of
from cpd_edge.types import STRAIGHT, Bend, Region

FEWEST = 12
"""Networks without which regions are left to themselves."""
ROUNDS, USUAL = 3, 0.05
"""Fits that look for the bend; how far exponents differ from 1 where one was measured well."""
LEVEL, UNTOLD = 0.1, 0.03
"""How far an operator's feature is usually off; what models leave open of a whole network."""


def fit_whole(
    measured: Sequence[Fitted], samples: Samples, fixed_ms: float, known: Mapping[str, Model]
) -> tuple[dict[str, Model], Bend]:
    """A model for each region, and the bend, such that together they tell the whole networks.

    The bend is the slope of the whole against the sum, in logarithms: steeper than 1 where large networks are slow as
    a whole. The smallest network of all is far from every plan, and does not count. Where nothing changes with widths
    there is no slope.

    Args:
        measured: what has a time of its own.
        samples: what was measured, regions and `fixed_ms` adding up to the whole.
        fixed_ms: what belongs to no region [ms].
        known: as for `fit`.
    """
    models, bend = fit(measured, samples, known), STRAIGHT
    totals = fixed_ms + np.sum(list(samples.ms.values()), axis=0)
    counts = np.flatnonzero(totals > totals.min())
    if len(counts) < FEWEST:
        return models, bend
    regions = [part for one in measured for part in parts_of(one)]
    widths = {g: w[counts] for g, w in samples.widths.items()}
    forms = {r.name: models[r.name].form for r in measured}
    anchor, straight = float(totals.max()), samples
    for _ in range(ROUNDS):
        models = levelled(regions, models, widths, bend.total(totals[counts]) - fixed_ms)
        told = np.broadcast_to(fixed_ms + sum(models[r.name].ms(r, widths) for r in regions), counts.shape)
        if np.ptp(told) == 0:
            break
        found = linregress(np.log(told), np.log(totals[counts]))
        believed = USUAL**2 / (USUAL**2 + float(found.stderr) ** 2)
        bend = Bend(1 + believed * (float(found.slope) - 1), anchor)
        pace = bend.total(totals) / totals
        straight = Samples(samples.widths, {name: ms * pace for name, ms in samples.ms.items()})
        models = fit(measured, straight, known, forms)
    return levelled(regions, models, widths, bend.total(totals[counts]) - fixed_ms), bend


def levelled(
    regions: Sequence[Region], models: Mapping[str, Model], widths: Columns, wholes: Floats
) -> dict[str, Model]:
    """The models, each feature of an operator raised or lowered in all its regions alike, to add up to the wholes.

    A ridge regression of the relative errors of the sums.

    Args:
        regions: all that the sums are of.
        models: by region.
        widths: by group `[samples]`.
        wholes: what the regions should add up to `[samples]` [ms].
    """
    columns: dict[tuple[object, int], Floats] = {}
    for region in regions:
        model = models[region.name]
        parts = Design(region, widths).features(model.form) * np.asarray(model.coefficients)
        for k in np.flatnonzero(model.coefficients):
            at = kind_of(region), int(k)
            columns[at] = columns.get(at, np.zeros(len(wholes))) + parts[..., k]
    if not columns:
        return dict(models)
    amounts = np.stack(list(columns.values()), axis=1)
    told = amounts.sum(axis=1)
    rows, off = amounts / told[:, None], wholes / told - 1
    gram = rows.T @ rows / UNTOLD**2 + np.eye(len(columns)) / LEVEL**2
    level = dict(zip(columns, np.maximum(1 + np.linalg.solve(gram, rows.T @ off / UNTOLD**2), 0.0), strict=True))
    out = dict(models)
    for region in regions:
        model, kind = models[region.name], kind_of(region)
        new = tuple(c * float(level.get((kind, k), 1.0)) for k, c in enumerate(model.coefficients))
        out[region.name] = replace(model, coefficients=new)
    return out
