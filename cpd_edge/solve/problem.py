"""The choice as data: candidates and losses by group, resources with their limits, cost grids by region.

A region between two groups costs `T[width, width]`. A region that touches more groups than fit one
grid is described over *sums*: binned extents of a concat, which take part in grids as if they were
groups. Latency is one resource; MACs, bytes or another device's latency are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cpd_edge.types import STRAIGHT, Bend

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

LATENCY = "latency"
"""Name of the first resource of every problem."""
ROUNDING = 1e-12
"""What a sum may be off by, relative to it: a limit that equals a network's own load keeps that network."""


@dataclass(frozen=True)
class RegionCost:
    """What one region takes of a resource, over the candidates of the groups it touches.

    Attributes:
        name: the region.
        groups: names of groups or sums, one a dim of `grid`.
        grid: amount `[candidates of each group]`, in the resource's unit.
        within: depth groups (candidates 0 and 1) without which it takes nothing.
    """

    name: str
    groups: tuple[str, ...]
    grid: Floats
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

    def bin(self, widths: Mapping[str, Any]) -> Any:
        """Bin that holds the extent at some widths: a number, or an array where a width is one."""
        return np.searchsorted(self.upper, self.offset + sum(t * widths[g] for g, t in self.parts))


@dataclass(frozen=True)
class Load:
    """An amount that widths decide: `Σ costs + fixed`, bent. Problems count with the sum, and say the amount."""

    costs: tuple[RegionCost, ...]
    fixed: float = 0.0
    bend: Bend = STRAIGHT


@dataclass(frozen=True)
class Resource:
    """What a plan takes of something that is limited: the largest of its loads.

    Attributes:
        name: `latency`, `MACs`, another device ...
        unit: of its numbers; '' for a plain count.
        limit: most that each load may be; infinite where it is only to be known.
        loads: one for what adds up once, such as latency; several for what peaks at one of many moments.
    """

    name: str
    unit: str
    limit: float
    loads: tuple[Load, ...]

    def said(self, amount: float) -> str:
        """An amount of it in words: `12.3 ms`, `1.2e+09 MACs`, `16 MB`."""
        unit = "MB" if self.unit == "bytes" else self.unit or self.name
        return f"{self.typed(amount)} {unit}"

    def typed(self, amount: float) -> str:
        """An amount as a user types it: bytes as MB."""
        return f"{amount / 1e6 if self.unit == 'bytes' else amount:.4g}"


def latency(costs: tuple[RegionCost, ...], fixed_ms: float, limit_ms: float) -> Resource:
    """The resource that comes first in every problem."""
    return Resource(LATENCY, "ms", limit_ms, (Load(costs, fixed_ms),))


@dataclass(frozen=True)
class Problem:
    """Choose one candidate per group: least loss that stays inside the limit of every resource.

    Attributes:
        candidates: widths by group, ascending; the last is the widest allowed. Of a variant, its number.
        loss: loss expected when each candidate is kept, by group.
        resources: what is limited; the first is latency, whose limit may be infinite.
        sums: binned extents that grids may refer to by name.
        variants: names of the candidates of groups that are no widths but ways to run a region, such as its precision.
    """

    candidates: Mapping[str, Ints]
    loss: Mapping[str, Floats]
    resources: tuple[Resource, ...]
    sums: Mapping[str, Concat] = field(default_factory=dict)
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order that index vectors use."""
        return tuple(self.candidates)

    @cached_property
    def dense(self) -> dict[str, int]:
        """Index of the widest candidate of each group."""
        return {g: len(c) - 1 for g, c in self.candidates.items()}

    @property
    def limit_ms(self) -> float:
        """Most latency [ms]."""
        return self.resources[0].limit

    def limited(self, *limits: float) -> Problem:
        """The same problem with other limits, in the order of the resources; the rest stay."""
        new = dict(enumerate(limits))
        changed = (replace(r, limit=new.get(i, r.limit)) for i, r in enumerate(self.resources))
        return replace(self, resources=tuple(changed))

    def widths(self, choice: Mapping[str, int]) -> dict[str, int]:
        """Widths that candidate indices stand for."""
        return {g: int(self.candidates[g][i]) for g, i in choice.items() if g not in self.variants}

    def loads(self, choice: Mapping[str, int]) -> Floats:
        """The sum of every load of every resource at candidate indices `[loads]`."""
        out = np.array(self._fixed)
        index = self._index(choice)
        for at, cost in self._costs:
            out[at] += _taken(cost, index)
        return out

    def moved(self, choice: Mapping[str, int], group: str) -> Floats:
        """Every load with one group at each of its candidates and the others where they are `[candidates, loads]`."""
        every = np.arange(len(self.candidates[group]))
        here, there = self._index(choice), self._index({**choice, group: every})
        out = np.tile(self.loads(choice), (len(every), 1))
        for at, cost in self._touched[group]:
            out[:, at] += _taken(cost, there) - _taken(cost, here)
        return out

    def fits(self, choice: Mapping[str, int]) -> bool:
        """Whether candidate indices stay inside every limit."""
        return bool((self.loads(choice) <= self.limits).all())

    def used(self, choice: Mapping[str, int]) -> dict[str, float]:
        """What candidate indices take of each resource, by its name."""
        amounts = [load.bend.whole(total) for load, total in zip(self._every, self.loads(choice), strict=True)]
        return {r.name: float(max(amounts[self.span(r.name)], default=0.0)) for r in self.resources}

    def latency_ms(self, choice: Mapping[str, int]) -> float:
        """Predicted latency at candidate indices [ms]."""
        return float(self._every[0].bend.whole(self.loads(choice)[0]))

    def shares(self, choice: Mapping[str, int], resource: Resource) -> dict[str, float]:
        """What each region takes of the largest load of a resource at candidate indices."""
        loads = self.loads(choice)[self.span(resource.name)]
        index, out = self._index(choice), dict[str, float]()
        if not len(loads):
            return out
        largest, total = resource.loads[int(loads.argmax())], float(loads.max())
        pace = largest.bend.whole(total) / total if total > 0 else 1.0
        for cost in largest.costs:
            out[cost.name] = out.get(cost.name, 0.0) + pace * float(_taken(cost, index))
        return out

    def removed(self, choice: Mapping[str, int]) -> float:
        """Importance removed at candidate indices."""
        return float(sum(self.loss[g][i] for g, i in choice.items()))

    @cached_property
    def limits(self) -> Floats:
        """The limit of each load's sum, up to rounding `[loads]`."""
        exact = np.asarray([load.bend.total(r.limit) for r in self.resources for load in r.loads], np.float64)
        return exact + ROUNDING * np.abs(exact)

    def span(self, name: str) -> slice:
        """Where the loads of a resource lie among all."""
        first = 0
        for resource in self.resources:
            if resource.name == name:
                return slice(first, first + len(resource.loads))
            first += len(resource.loads)
        raise KeyError(name)

    @cached_property
    def _every(self) -> list[Load]:
        return [load for r in self.resources for load in r.loads]

    @cached_property
    def _fixed(self) -> Floats:
        return np.asarray([load.fixed for load in self._every], np.float64)

    @cached_property
    def _costs(self) -> list[tuple[int, RegionCost]]:
        return [(at, cost) for at, load in enumerate(self._every) for cost in load.costs]

    @cached_property
    def _touched(self) -> dict[str, list[tuple[int, RegionCost]]]:
        """The costs that change with a group, by group."""
        out: dict[str, list[tuple[int, RegionCost]]] = {g: [] for g in self.candidates}
        for at, cost in self._costs:
            inside = [g for name in cost.groups if name in self.sums for g, _ in self.sums[name].parts]
            for group in dict.fromkeys((*cost.groups, *inside, *cost.within)):
                if group in out:
                    out[group].append((at, cost))
        return out

    def _index(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Indices of groups and sums; arrays where a group is given as one."""
        if not self.sums:
            return dict(choice)
        widths = {g: self.candidates[g][i] for g, i in choice.items()}
        return {**choice, **{name: concat.bin(widths) for name, concat in self.sums.items()}}


def _taken(cost: RegionCost, index: Mapping[str, Any]) -> Any:
    amount: Any = cost.grid[tuple(index[g] for g in cost.groups)]
    for branch in cost.within:
        amount = amount * (index[branch] > 0)
    return amount


@dataclass(frozen=True)
class Solution:
    """What was chosen for a problem, with the certificate of the choice.

    Attributes:
        choice: candidate index by group.
        widths: kept width by group.
        variants: name of the way each region runs, where there was a choice.
        used: what it takes of each resource, by its name.
        objective: loss expected from what was removed.
        bound: proven lower bound of the objective (the objective itself proves nothing for a baseline: 0).
        gap: `(objective - bound) / objective`; 0 is proven optimal.
        seconds: time to solve.
        strategy: `milp` or a baseline's name.
    """

    choice: Mapping[str, int]
    widths: dict[str, int]
    variants: dict[str, str]
    used: dict[str, float]
    objective: float
    bound: float
    gap: float
    seconds: float
    strategy: str

    @property
    def latency_ms(self) -> float:
        """Predicted latency [ms]."""
        return self.used[LATENCY]


def solution(problem: Problem, choice: Mapping[str, int], *, bound: float, seconds: float, strategy: str) -> Solution:
    """The solution that candidate indices stand for."""
    objective = problem.removed(choice)
    scale = max(abs(objective), 1e-12 * sum(float(np.ptp(v)) for v in problem.loss.values()))
    bound = min(max(bound, 0.0), objective)
    return Solution(
        choice=dict(choice),
        widths=problem.widths(choice),
        variants={g: names[choice[g]] for g, names in problem.variants.items()},
        used=problem.used(choice),
        objective=objective,
        bound=bound,
        gap=(objective - bound) / scale if scale else 0.0,
        seconds=seconds,
        strategy=strategy,
    )
