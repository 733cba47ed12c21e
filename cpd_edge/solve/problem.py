"""The choice of widths as data: candidates and losses by group, cost grids by region, a limit.

A region between two groups costs `T[width, width]`. A region that touches more groups than fit one
grid is described over *sums*: binned extents of a concat, which take part in grids as if they were
groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import BudgetError, TableError
from cpd_edge.layout import Layout, Leaf, Sum, Widths, axes
from cpd_edge.types import Importance, Plan, Region

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

GRID_LIMIT = 20_000
"""Most cells of one region's exact grid; above, the region is described over sums."""
BINS = 32
"""Bins of a summed extent."""


@dataclass(frozen=True)
class RegionCost:
    """Latency of one region over the candidates of the groups it touches.

    Attributes:
        name: the region.
        groups: names of groups or sums, one a dim of `ms`.
        ms: latency `[candidates of each group]` [ms].
        within: depth groups (candidates 0 and 1) without which it costs nothing.
    """

    name: str
    groups: tuple[str, ...]
    ms: Floats
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concat:
    """The extent `offset + Σ times · width` of several groups, in bins.

    Attributes:
        parts: `(group, times)`.
        offset: the part that no group changes.
        lower, upper: smallest and largest reachable extent of each bin, ascending `[bins]`.
    """

    parts: tuple[tuple[str, int], ...]
    offset: int
    lower: Ints
    upper: Ints

    def bin(self, widths: Widths) -> int:
        """Bin that holds the extent at some widths."""
        return int(np.searchsorted(self.upper, self.offset + sum(t * widths[g] for g, t in self.parts)))


@dataclass(frozen=True)
class Problem:
    """Choose one candidate width per group: least loss whose latency stays inside the limit.

    Attributes:
        candidates: widths by group, ascending; the last is the widest allowed.
        loss: loss expected when each candidate is kept, by group.
        costs: one grid a region.
        fixed_ms: what no width changes [ms].
        limit_ms: most that `Σ costs + fixed_ms` may be [ms].
        sums: binned extents that grids may refer to by name.
    """

    candidates: Mapping[str, Ints]
    loss: Mapping[str, Floats]
    costs: tuple[RegionCost, ...]
    fixed_ms: float
    limit_ms: float
    sums: Mapping[str, Concat] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order that index vectors use."""
        return tuple(self.candidates)

    @cached_property
    def dense(self) -> dict[str, int]:
        """Index of the widest candidate of each group."""
        return {g: len(c) - 1 for g, c in self.candidates.items()}

    def widths(self, choice: Mapping[str, int]) -> dict[str, int]:
        """Widths that candidate indices stand for."""
        return {g: int(self.candidates[g][i]) for g, i in choice.items()}

    def region_ms(self, choice: Mapping[str, int]) -> dict[str, float]:
        """Latency of each region at candidate indices [ms]."""
        index = dict(choice)
        if self.sums:
            widths = self.widths(choice)
            index |= {name: concat.bin(widths) for name, concat in self.sums.items()}
        return {
            c.name: float(c.ms[tuple(index[g] for g in c.groups)]) if all(index[d] for d in c.within) else 0.0
            for c in self.costs
        }

    def latency_ms(self, choice: Mapping[str, int]) -> float:
        """Predicted latency at candidate indices [ms]."""
        return sum(self.region_ms(choice).values()) + self.fixed_ms

    def removed(self, choice: Mapping[str, int]) -> float:
        """Importance removed at candidate indices."""
        return float(sum(self.loss[g][i] for g, i in choice.items()))


@dataclass(frozen=True)
class Solution:
    """Widths chosen for a problem, with the certificate of the choice.

    Attributes:
        choice: candidate index by group.
        widths: kept width by group.
        latency_ms: predicted latency [ms].
        objective: loss expected from what was removed.
        bound: proven lower bound of the objective (the objective itself proves nothing for a baseline: 0).
        gap: `(objective - bound) / objective`; 0 is proven optimal.
        seconds: time to solve.
        strategy: `milp` or a baseline's name.
    """

    choice: Mapping[str, int]
    widths: dict[str, int]
    latency_ms: float
    objective: float
    bound: float
    gap: float
    seconds: float
    strategy: str


def solution(problem: Problem, choice: Mapping[str, int], *, bound: float, seconds: float, strategy: str) -> Solution:
    """The solution that candidate indices stand for."""
    objective = problem.removed(choice)
    scale = max(abs(objective), 1e-12 * sum(float(np.ptp(v)) for v in problem.loss.values()))
    bound = min(max(bound, 0.0), objective)
    return Solution(
        choice=dict(choice), widths=problem.widths(choice), latency_ms=problem.latency_ms(choice), objective=objective,
        bound=bound, gap=(objective - bound) / scale if scale else 0.0, seconds=seconds, strategy=strategy,
    )  # fmt: skip


class Table(Protocol):
    """What a latency table must offer: `Σ cost + fixed_ms` is the latency it predicts.

    `cost` gives a grid, one dim a group; `points` gives one latency per row of equally long width vectors.
    """

    @property
    def regions(self) -> Sequence[Region]:
        """The regions whose costs add up."""

    @property
    def fixed_ms(self) -> float:
        """What no region accounts for [ms]."""

    @property
    def ranges(self) -> Mapping[str, tuple[int, int]]:
        """Smallest and dense width by group."""

    def cost(self, name: str, groups: Mapping[str, Ints]) -> Floats:
        """Latency of a region over a grid of widths [ms]."""

    def points(self, name: str, widths: Mapping[str, Ints]) -> Floats:
        """Latency of a region at width vectors [ms]."""


def candidate_widths(low: int, high: int, most: int, multiple_of: int = 1) -> Ints:
    """Ascending widths between `low` and `high`, at most `most`: all, or both ends and multiples of powers of two.

    The coarsest multiples that fit come first, then every other one of the next finer step. With `multiple_of` all
    but `high` are multiples of it.
    """
    if multiple_of > 1:
        first, last = -(-low // multiple_of), (high - 1) // multiple_of
        inner = candidate_widths(first, last, most - 1) * multiple_of if first <= last else np.zeros(0, np.int64)
        return np.append(inner, high)
    if high - low < most:
        return np.arange(low, high + 1)
    step = 1
    while high // step > most - 2:
        step *= 2
    chosen = {low, high, *range(step, high, step)} - set(range(low))
    if step > 1:
        finer = [w for w in range(step // 2, high, step) if w > low]
        room = max(most - len(chosen), 0)
        chosen |= {finer[int(i)] for i in np.linspace(0, len(finer) - 1, min(room, len(finer))).round()}
    return np.asarray(sorted(chosen), np.int64)


def losses(importance: npt.NDArray[np.float64], widths: Ints) -> Floats:
    """Loss expected when the `w` most important units stay, for each `w`: `-T log(kept / T)` of the group's total T.

    To first order that is the sum of what is removed. Beyond it the loss grows faster than the sum, and without
    bound for the last unit: what remains must carry what has gone, which scores taken one unit at a time do not see.
    """
    gone = np.concatenate([[0.0], np.cumsum(np.sort(importance))])[len(importance) - widths]
    total = float(importance.sum())
    if total <= 0:
        return np.zeros(len(widths))
    return np.asarray(-total * np.log(np.maximum(1 - gone / total, 1e-12)), np.float64)


def problem_from(
    table: Table,
    importance: Importance,
    limit_ms: float,
    *,
    max_candidates: int = 16,
    at_most: Widths | None = None,
    at_least: Widths | None = None,
    multiple_of: int = 1,
) -> Problem:
    """The problem that a table and importances pose for a limit.

    Args:
        table: measured latencies; groups it knows but `importance` does not stay dense.
        importance: expected loss of each unit, by group.
        limit_ms: latency limit [ms].
        max_candidates: most widths to choose from, per group.
        at_most: widest width allowed by group, such as what a previous round kept.
        at_least: narrowest width allowed by group, where scores are not to be trusted further.
        multiple_of: what widths below the widest are multiples of.

    Raises:
        BudgetError: the limit is not above 0.
        TableError: a group was never sampled, or `importance` has another number of units than the table.
    """
    if not limit_ms > 0:
        raise BudgetError(f"limit of {limit_ms} ms: it must be above 0", hint="for example --budget-ms 12")
    candidates, loss = {}, {}
    for group, values in importance.by_group.items():
        if group not in table.ranges or table.ranges[group][1] != len(values):
            raise TableError(
                f"group {group} of {len(values)} units: the table knows {table.ranges.get(group, 'no such group')}",
                hint="measure this model again: cpd-edge profile MODEL",
            )
        low, high = table.ranges[group]
        high = min(high, (at_most or {}).get(group, high))
        low = max(low, (at_least or {}).get(group, low))
        multiple = multiple_of if len(values) > 1 else 1
        candidates[group] = candidate_widths(min(low, high), high, max_candidates, multiple)
        whole = np.asarray(values, np.float64)
        loss[group] = losses(whole, candidates[group]) if len(values) > 1 else whole * (1 - candidates[group])
    costs, sums, fixed_ms = [], {}, table.fixed_ms
    for region in table.regions:
        if any(candidates[d][-1] == 0 for d in region.within if d in candidates):
            continue
        cost, used = _cost(table, region, candidates)
        within = tuple(d for d in region.within if len(candidates.get(d, ())) == 2)
        cost = replace(cost, within=within)
        if cost.groups or within:
            costs.append(cost)
            sums.update(used)
        else:
            fixed_ms += float(cost.ms)
    return Problem(candidates, loss, tuple(costs), fixed_ms, limit_ms, sums)


def _cost(table: Table, region: Region, candidates: Mapping[str, Ints]) -> tuple[RegionCost, dict[str, Concat]]:
    """A region's grid: over its groups where they are few, else over the summed extents it reads and writes."""
    dims = (region.reads, region.writes, *region.weight)
    names = tuple(g for g in axes(*dims) if g in candidates)
    if len(names) <= 3 and np.prod([len(candidates[g]) for g in names]) <= GRID_LIMIT:
        return RegionCost(region.name, names, table.cost(region.name, {g: candidates[g] for g in names})), {}
    single: list[str] = []
    sums: dict[str, Concat] = {}
    for dim in dict.fromkeys(dims):
        here = tuple(g for g in axes(dim) if g in candidates)
        parts = _linear(dim)
        if len(here) > 1 and parts is not None:
            concat = _concat(parts, candidates)
            if not any(s.parts == concat.parts for s in sums.values()):
                sums["+".join(f"{t}*{g}" for g, t in concat.parts) + f"+{concat.offset}"] = concat
        else:
            single += [g for g in here if g not in single]
    inside = {g for s in sums.values() for g, _ in s.parts}
    single = [g for g in single if g not in inside][: max(3 - len(sums), 0)]
    return _binned(table, region, single, sums, candidates, names), sums


def _binned(
    table: Table,
    region: Region,
    single: list[str],
    sums: Mapping[str, Concat],
    candidates: Mapping[str, Ints],
    names: tuple[str, ...],
) -> RegionCost:
    """Cost over sums and single groups: a cell costs the most that any of its members costs.

    Members are all combinations where there are few; otherwise two for each reachable extent, and a cell then
    also costs no less than any smaller extent. That is never below the table where its cost depends on extents.
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
        np.maximum.at(flat, cells, table.points(region.name, {**widths, **fixed}))
    worst = flat.reshape(shape)
    if not complete:
        for dim in range(len(sums)):
            worst = np.maximum.accumulate(worst, axis=dim)
    worst[~np.isfinite(worst)] = float(worst.max())
    return RegionCost(region.name, (*sums, *single), worst)


def _members(names: tuple[str, ...], candidates: Mapping[str, Ints], sums: Mapping[str, Concat]) -> tuple[Ints, bool]:
    """Candidate indices `[members, groups]`, and whether they are all there are.

    Where they are not, two members stand for every reachable extent of every sum; groups outside it are at both ends.
    """
    counts = np.asarray([len(candidates[g]) for g in names])
    if np.prod(counts.astype(float)) <= GRID_LIMIT:
        return np.asarray(np.indices(tuple(counts))).reshape(len(names), -1).T, True
    blocks = []
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


def _linear(layout: Layout) -> list[tuple[Leaf, int]] | None:
    """The leaves of a sum of axes with their multiplicity, or None where axes multiply each other."""
    if isinstance(layout, Leaf):
        return [(layout, 1)]
    if isinstance(layout, Sum):
        found: list[tuple[Leaf, int]] = []
        for part in layout.parts:
            inner = _linear(part)
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


def plan_from(found: Solution, importance: Importance, limit_ms: float) -> Plan:
    """The plan that keeps the most important units of each group; equal importances keep the lower index."""
    keep = {}
    for group, width in found.widths.items():
        best = np.argsort(-np.asarray(importance.by_group[group]), kind="stable")[:width]
        keep[group] = tuple(int(u) for u in np.sort(best))
    return Plan(
        keep=keep, limit_ms=limit_ms, predicted_ms=found.latency_ms, objective=found.objective, bound=found.bound,
        gap=found.gap, seconds=found.seconds, strategy=found.strategy,
    )  # fmt: skip
