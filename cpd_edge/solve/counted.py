"""What counted quantities take of candidate widths: exact where a term is linear or touches few groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

from cpd_edge.layout import Layout, axes, size
from cpd_edge.solve.grids import grid_of, left, linear
from cpd_edge.solve.problem import Concat, Ints, Load, RegionCost
from cpd_edge.types import Amount, Quantity


def loads_of(quantity: Quantity, candidates: Mapping[str, Ints]) -> tuple[tuple[Load, ...], dict[str, Concat]]:
    """A quantity's loads, and the sums that they use; moments that another one outweighs are left out.

    Args:
        quantity: what is counted.
        candidates: widths by group; groups that are not there are dense.
    """
    moments = [_terms(moment, candidates) for moment in quantity.moments]
    stay: list[dict[_Key, Amount]] = []
    for terms in sorted(moments, key=lambda terms: -sum(a.times for a in terms.values())):
        if not any(_outweighs(more, terms) for more in stay):
            stay.append(terms)
    sums: dict[str, Concat] = {}
    loads = []
    for terms in stay:
        costs, fixed = list[RegionCost](), 0.0
        for amount in terms.values():
            cost, used = _grid(amount, candidates)
            if cost.groups or cost.within:
                costs.append(cost)
                sums |= used
            else:
                fixed += float(cost.grid)
        loads.append(Load(tuple(costs), fixed))
    return tuple(loads), sums


_Key: TypeAlias = tuple[tuple[Layout, ...], tuple[str, ...]]
"""Dims and branches: amounts with equal ones add up to one."""


def _terms(moment: Sequence[Amount], candidates: Mapping[str, Ints]) -> dict[_Key, Amount]:
    """A moment's distinct amounts; what is linear in widths is taken apart by group.

    Dims that no candidate changes go into the number.
    """
    out: dict[_Key, Amount] = {}
    for amount in moment:
        within = left(amount.within, candidates)
        if within is None:
            continue
        moving = tuple(d for d in amount.dims if any(a in candidates for a in axes(d)))
        times = amount.times * prod(d.extent for d in amount.dims if d not in moving)
        parts = linear(moving[0]) if len(moving) == 1 else None
        for dims, count in [((leaf,), t) for leaf, t in parts] if parts is not None else [(moving, 1)]:
            fixed = prod(d.extent for d in dims if not any(a in candidates for a in axes(d)))
            here = tuple(sorted((d for d in dims if any(a in candidates for a in axes(d))), key=repr))
            before = out.get((here, within), Amount(0.0, here, within, amount.name))
            out[here, within] = replace(before, times=before.times + times * count * fixed)
    return out


def _outweighs(more: Mapping[_Key, Amount], less: Mapping[_Key, Amount]) -> bool:
    """Whether a moment is at least another one at all widths, seen term by term."""
    total: dict[tuple[Layout, ...], float] = {}
    for (dims, _), amount in less.items():
        total[dims] = total.get(dims, 0.0) + amount.times
    return all(
        sum(a.times for (d, w), a in more.items() if d == dims and set(w) <= set(within)) >= total[dims]
        for dims, within in less
    )


def _grid(amount: Amount, candidates: Mapping[str, Ints]) -> tuple[RegionCost, dict[str, Concat]]:
    """The grid of one amount."""

    def at(widths: Mapping[str, Any]) -> Any:
        return amount.times * prod(size(dim, widths) for dim in amount.dims)

    cost, sums = grid_of(amount.name, amount.dims, at, candidates)
    return replace(cost, within=amount.within), sums
