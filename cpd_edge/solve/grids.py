"""What a region costs over candidates: an exact grid where it touches few groups, else bins of summed extents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TypeAlias

import numpy as np

from cpd_edge.layout import Layout, Leaf, Sum, axes
from cpd_edge.solve.problem import Concat, Floats, Ints, RegionCost

GRID_LIMIT = 20_000
"""Most cells of one region's exact grid; above, the region is described over sums."""
DIMS = 3
"""Most groups and sums of one grid."""
BINS = 32
"""Bins of a summed extent."""

At: TypeAlias = Callable[[Mapping[str, Ints]], Floats]
"""An amount at width vectors of one length, by group."""


def left(within: Sequence[str], candidates: Mapping[str, Ints]) -> tuple[str, ...] | None:
    """The branches that may still go, of those that something stands within; None where one has gone already."""
    if any(candidates[d][-1] == 0 for d in within if d in candidates):
        return None
    return tuple(d for d in within if len(candidates.get(d, ())) == 2)


def grid_of(
    name: str, dims: Sequence[Layout], at: At, candidates: Mapping[str, Ints], over: Sequence[str] = ()
) -> tuple[RegionCost, dict[str, Concat]]:
    """A region's grid: over its groups where they are few, else over sums of its dims and what is beside them.

    Of more than a grid can have, those that change the cost least are taken at what costs most.

    Args:
        name: the region.
        dims: layouts that its cost depends on.
        at: its cost.
        candidates: widths by group; groups that are not there are dense.
        over: groups and sums that another grid of the region has, where this one is to have the same.
    """
    names = tuple(g for g in axes(*dims) if g in candidates)
    if len(names) <= DIMS and np.prod([len(candidates[g]) for g in names]) <= GRID_LIMIT:
        shape = tuple(len(candidates[g]) for g in names)
        mesh = np.meshgrid(*(candidates[g] for g in names), indexing="ij")
        amounts = at({g: m.reshape(-1) for g, m in zip(names, mesh, strict=True)})
        return RegionCost(name, names, np.array(np.broadcast_to(amounts, int(np.prod(shape))).reshape(shape))), {}
    single: list[str] = []
    sums: dict[str, Concat] = {}
    for dim in dict.fromkeys(dims):
        here = tuple(g for g in axes(dim) if g in candidates)
        parts = linear(dim)
        if len(here) > 1 and parts is not None:
            concat = _concat(parts, candidates)
            if not any(s.parts == concat.parts for s in sums.values()):
                sums["+".join(f"{t}*{g}" for g, t in concat.parts) + f"+{concat.offset}"] = concat
        else:
            single += [g for g in here if g not in single]
    inside = {g for s in sums.values() for g, _ in s.parts}
    beside = [g for g in single if g not in inside]
    told = [g for g in beside if g in over] if over else _telling(beside, at, sums, candidates)
    return _binned(name, at, told, sums, candidates, names), sums


def _telling(groups: Sequence[str], at: At, sums: Mapping[str, Concat], candidates: Mapping[str, Ints]) -> list[str]:
    """Those of the groups that change the cost most, as many as a grid beside the sums has dims and cells for."""
    dense = {g: c[-1:] for g, c in candidates.items()}
    least = {g: float(at({**dense, g: candidates[g][:1]})[0]) for g in groups}
    cells = int(np.prod([len(s.lower) for s in sums.values()]))
    told: list[str] = []
    for group in sorted(groups, key=lambda g: least[g]):
        if len(sums) + len(told) < DIMS and cells * len(candidates[group]) <= GRID_LIMIT:
            cells *= len(candidates[group])
            told.append(group)
    return [g for g in groups if g in told]


def _binned(
    name: str,
    at: At,
    single: list[str],
    sums: Mapping[str, Concat],
    candidates: Mapping[str, Ints],
    names: tuple[str, ...],
) -> RegionCost:
    """Cost over sums and single groups: a cell costs the most that any of its members costs.

    Members are all combinations where there are few; otherwise two for each reachable extent, and a cell then
    also costs no less than any smaller extent. That is never below the cost where it depends on extents.
    """
    members, complete = _members(names, candidates, sums)
    widths = {g: candidates[g][members[:, i]] for i, g in enumerate(names)}
    extents = [s.offset + sum(t * widths[g] for g, t in s.parts) for s in sums.values()]
    place = [np.searchsorted(s.upper, e) for s, e in zip(sums.values(), extents, strict=True)]
    shape = tuple(len(s.lower) for s in sums.values()) + tuple(len(candidates[g]) for g in single)
    flat = np.full(int(np.prod(shape)), -np.inf)
    for picks in product(*(range(len(candidates[g])) for g in single)):
        fixed = {g: np.full(len(members), candidates[g][i]) for g, i in zip(single, picks, strict=True)}
        index = [*place, *(np.full(len(members), i) for i in picks)]
        cells = np.ravel_multi_index(tuple(index), shape)
        np.maximum.at(flat, cells, at({**widths, **fixed}))
    worst = flat.reshape(shape)
    if not complete:
        for dim in range(len(sums)):
            worst = np.maximum.accumulate(worst, axis=dim)
    worst[~np.isfinite(worst)] = float(worst.max())
    return RegionCost(name, (*sums, *single), worst)


def _members(names: tuple[str, ...], candidates: Mapping[str, Ints], sums: Mapping[str, Concat]) -> tuple[Ints, bool]:
    """Candidate indices `[members, groups]`, and whether they are all there are.

    Where they are not, two members stand for every reachable extent of every sum; groups outside it are at both ends,
    as all of them are where there is no sum.
    """
    counts = np.asarray([len(candidates[g]) for g in names])
    if np.prod(counts.astype(float)) <= GRID_LIMIT:
        return np.asarray(np.indices(tuple(counts))).reshape(len(names), -1).T, True
    blocks = [np.stack([0 * counts, counts - 1])]
    for concat in sums.values():
        for last in (False, True):
            _, index = _reach(concat.parts, candidates, last)
            for rest in (0 * counts, counts - 1):
                block = np.tile(rest, (len(index), 1))
                block[:, [names.index(g) for g, _ in concat.parts]] = index
                blocks.append(block)
    return np.concatenate(blocks), False


def _reach(parts: Sequence[tuple[str, int]], candidates: Mapping[str, Ints], last: bool = False) -> tuple[Ints, Ints]:
    """Every value of `Σ times · width`, ascending `[n]`, and candidate indices that reach it `[n, parts]`.

    Of several ways to reach a value one is taken: the smallest width of the last part, or with `last` the largest.
    """
    value, index = np.zeros(1, np.int64), np.zeros((1, 0), np.int64)
    for group, times in parts:
        widths = candidates[group]
        choice = np.tile(np.arange(len(widths)), len(value))
        sums = np.repeat(value, len(widths)) + times * widths[choice]
        order = np.lexsort((-choice if last else choice, sums))
        first = np.flatnonzero(np.diff(sums[order], prepend=sums.min() - 1))
        picked = order[first]
        value, index = sums[picked], np.column_stack([index[picked // len(widths)], choice[picked]])
    return value, index


def linear(layout: Layout) -> list[tuple[Leaf, int]] | None:
    """The leaves of a sum of axes with their multiplicity, or None where axes multiply each other."""
    if isinstance(layout, Leaf):
        return [(layout, 1)]
    if isinstance(layout, Sum):
        found: list[tuple[Leaf, int]] = []
        for part in layout.parts:
            inner = linear(part)
            if inner is None:
                return None
            found += inner
        return found
    return None


def _concat(parts: list[tuple[Leaf, int]], candidates: Mapping[str, Ints]) -> Concat:
    """A sum's reachable extents in at most `BINS` bins."""
    times: dict[str, int] = {}
    offset = 0
    for leaf, t in parts:
        if leaf.axis in candidates:
            times[leaf.axis] = times.get(leaf.axis, 0) + t
        else:
            offset += t * leaf.extent
    reach = offset + _reach(tuple(times.items()), candidates)[0]
    bins = np.array_split(reach, min(BINS, len(reach)))
    lower, upper = (np.asarray([b[i] for b in bins], np.int64) for i in (0, -1))
    return Concat(tuple(times.items()), offset, lower, upper)
