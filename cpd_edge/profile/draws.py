"""Which networks are measured: at first all over the ranges, then where the table is unsure and where plans lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cpd_edge.profile.table import LatencyTable
from cpd_edge.types import Widths

FIT_STEPS = {1: 0.35, 4: 0.2, 8: 0.15, 16: 0.3}
PLAN_STEPS = {1: 0.15, 4: 0.2, 8: 0.25, 16: 0.4}
"""What widths are rounded to, and how often. A width that fits no block of the hardware costs most, and what it costs
is seen at such widths alone: the fit gets more of them than plans have."""
LEFT_OUT = 0.15
"""Share of branches that a held-out plan lacks."""
SPREAD, LEVELS = 0.15, (0.1, 0.95)
"""Standard deviation of a plan's shares about its level; the levels themselves."""
POOL = 6
"""Networks that are considered for each one that is chosen."""

Looks: TypeAlias = Callable[[LatencyTable], Sequence[Widths]]
"""Plans that a solver finds on a table: it picks what the table thinks cheap, rightly or wrongly."""


@dataclass(frozen=True)
class Draw:
    """Widths to measure, and whether the fit may see them."""

    widths: Mapping[str, int]
    held_out: bool


def draws(groups: Mapping[str, int], samples: int, holdout: int, seed: int) -> tuple[Draw, ...]:
    """What to measure first, in order: the dense and the smallest network, then fit samples with held-out ones between.

    Every other fit sample is of a Latin hypercube, so every group visits every part of its range; those between are
    plans: one share for the network, spread over groups. So are held-out ones, of which some branches (groups of one
    unit) are left out; what is fitted has all of them.
    """
    rng = np.random.default_rng(seed)
    strata = max(samples - 2, 1)
    share = {g: (rng.permutation(strata) + rng.uniform(size=strata)) / strata for g in groups}
    fit = [
        {g: _rounded(n, float(share[g][i]), rng, FIT_STEPS) for g, n in groups.items()}
        if i % 2 == 0
        else _plan(groups, rng, FIT_STEPS)
        for i in range(strata)
    ]
    held = [_plan(groups, rng, PLAN_STEPS) for _ in range(holdout)]
    held = [w | {g: int(rng.uniform() > LEFT_OUT) for g, n in groups.items() if n == 1} for w in held]
    mixed: list[Draw] = []
    plans = [Draw(widths, True) for widths in held]
    for i, widths in enumerate(fit):
        mixed.append(Draw(widths, False))
        while plans and (i + 1) * holdout >= (holdout - len(plans) + 1) * strata:
            mixed.append(plans.pop(0))
    ends = [Draw(dict(groups), False), Draw(dict.fromkeys(groups, 1), False)]
    return (*ends[: max(samples, 1)], *(mixed if samples > 2 else []), *plans)


def further(table: LatencyTable, count: int, seed: int, looks: Looks | None = None) -> tuple[Draw, ...]:
    """What to measure next: plans that a solver finds on the table, then networks that it is least sure of.

    Of the latter each is chosen knowing those before it, so that they do not all ask the same.

    Args:
        table: fitted to what was measured so far.
        count: how many.
        seed: of the networks to choose from.
        looks: gives the solver's plans; at most a third of `count` are taken.
    """
    rng = np.random.default_rng([seed, len(table.samples)])
    seen = [dict(s.widths) for s in table.samples]
    found: list[dict[str, int]] = []
    for widths in looks(table) if looks else ():
        whole = {g: max(widths.get(g, n), 1) for g, n in table.groups.items()}
        if whole not in seen + found and len(found) < count // 3:
            found.append(whole)
    pool = [
        _plan(table.groups, rng, FIT_STEPS)
        if i % 2
        else {g: _rounded(n, float(rng.uniform()), rng, FIT_STEPS) for g, n in table.groups.items()}
        for i in range(POOL * count)
    ]
    found += [pool[i] for i in table.unsure(pool, count - len(found), found)]
    return tuple(Draw(widths, False) for widths in found)


def _plan(groups: Mapping[str, int], rng: np.random.Generator, steps: Mapping[int, float]) -> dict[str, int]:
    """Widths about one level."""
    level = rng.uniform(*LEVELS)
    share = {g: float(np.clip(level + rng.normal(0, SPREAD), 0.05, 1)) for g in groups}
    return {g: _rounded(n, share[g], rng, steps) for g, n in groups.items()}


def _rounded(units: int, share: float, rng: np.random.Generator, steps: Mapping[int, float]) -> int:
    """A width near `share` of the units, rounded to one of the steps where the group has several of them."""
    width = share * units
    step = int(rng.choice(list(steps), p=list(steps.values())))
    if units >= 2 * step:
        width = round(width / step) * step
    return int(np.clip(round(width), 1, units))
