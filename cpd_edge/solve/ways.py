"""In which ways regions may run, what each costs, and what it costs where two run in different ones.

A choice is made for the regions that may run otherwise. Others follow: what only passes values on runs like what stands
around it. Where a value goes from a region to one that runs in another way, it is converted, and that takes time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import TableError
from cpd_edge.layout import Widths, size
from cpd_edge.solve.grids import grid_of, left
from cpd_edge.solve.problem import Concat, Floats, Ints, Load, RegionCost
from cpd_edge.types import Bend, Passage, Region

MEASURE = "measure this model again: cpd-edge profile MODEL"
VARIED = ":variant"
"""What follows a region's name in the name of the choice between its variants."""


BEYOND = 10.0
"""What a choice that the runtime would not make costs, in dense networks: beyond every limit."""


class Table(Protocol):
    """What a latency table must offer: `Σ points + fixed_ms`, bent, is the latency it predicts."""

    @property
    def regions(self) -> Sequence[Region]:
        """The regions whose costs add up."""

    @property
    def fixed_ms(self) -> float:
        """What no region accounts for [ms]."""

    @property
    def bend(self) -> Bend:
        """How the whole follows from the sum [ms]."""

    @property
    def ranges(self) -> Mapping[str, tuple[int, int]]:
        """Smallest and dense width by group."""

    def points(self, name: str, widths: Mapping[str, Ints]) -> Floats:
        """Latency of a region at equally long width vectors [ms]."""

    def contained(self, group: str, widths: Ints) -> npt.NDArray[np.bool_]:
        """Which widths of a group change the cost of no region but those that read or write it `[widths]`."""


@dataclass(frozen=True)
class Variant:
    """Another way to run regions, such as in another precision.

    Attributes:
        name: `int8` ...
        table: the regions' latencies when all of them run so.
        pace: milliseconds of the plain table over this one's: the machine may have been faster in one of them.
    """

    name: str
    table: Table
    pace: float = 1.0


@dataclass(frozen=True)
class Ways:
    """How regions may run.

    Attributes:
        plain: name of the way that the table itself was measured in.
        variants: the other ways.
        follows: regions without a choice of their own, and those whose way is theirs where all of these run alike;
            else they run in the plain one.
        pressed: regions that the runtime does not leave in the plain way where all of these run in another one.
        passages: values between regions.
        each_ms, element_ms: what it takes to convert a value between two ways, and each number in it [ms].
    """

    plain: str = "fp32"
    variants: tuple[Variant, ...] = ()
    follows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pressed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    passages: tuple[Passage, ...] = ()
    each_ms: float = 0.0
    element_ms: float = 0.0

    def of(self, region: str, choice: Mapping[str, str]) -> str:
        """The way a region runs in, given what was chosen for those that have a choice."""
        if region in choice:
            return choice[region]
        led = {choice.get(name, self.plain) for name in self.follows.get(region, ())}
        return led.pop() if len(led) == 1 else self.plain

    def impossible(self, region: str, choice: Mapping[str, str]) -> bool:
        """Whether the runtime would not run a region in the way that was chosen for it."""
        around = {self.of(name, choice) for name in self.pressed.get(region, ())}
        return len(around) == 1 and self.plain not in around and self.of(region, choice) == self.plain

    def options(self, otherwise: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, ...]]:
        """Names of the ways of each region that has a choice, the plain one last; of other ways a loss is known."""
        known = {v.name: otherwise.get(v.name, {}) for v in self.variants}
        regions = dict.fromkeys(region for losses in known.values() for region in losses)
        return {r: (*(name for name, losses in known.items() if r in losses), self.plain) for r in regions}

    def predict(self, table: Table, widths: Widths, choice: Mapping[str, str]) -> float:
        """Latency of a network in the plain table's milliseconds, given the table and what was chosen [ms]."""
        whole = table.fixed_ms + sum(self.region_ms(table, r.name, widths, choice) for r in table.regions)
        stay = (p for p in self.converted(choice) if all(widths.get(branch, 1) for branch in p.elements.within))
        return float(table.bend.whole(whole + sum(float(self.converting(p)(widths)) for p in stay)))

    def region_ms(self, table: Table, region: str, widths: Widths, choice: Mapping[str, str]) -> float:
        """Latency of one region in the way that it runs in, in the plain table's milliseconds [ms]."""
        way, at = self.of(region, choice), {g: np.asarray([w]) for g, w in widths.items()}
        tables = {self.plain: (table, 1.0), **{v.name: (v.table, v.pace) for v in self.variants}}
        measured_in, pace = tables[way]
        return pace * float(measured_in.points(region, at).reshape(-1)[0])

    def converted(self, choice: Mapping[str, str]) -> tuple[Passage, ...]:
        """The values that go between regions which run in different ways."""
        return tuple(p for p in self.passages if self.of(p.before, choice) != self.of(p.after, choice))

    def converting(self, passage: Passage) -> Any:
        """What it takes to convert a value, as a function of widths [ms]."""

        def at(widths: Mapping[str, Any]) -> Any:
            elements = passage.elements.times * prod(size(dim, widths) for dim in passage.elements.dims)
            return self.each_ms + self.element_ms * elements

        return at


PLAIN = Ways()
"""No region has a choice."""


def measured(
    table: Table, candidates: Mapping[str, Ints], like: Sequence[RegionCost] = ()
) -> tuple[Load, dict[str, Concat]]:
    """What a table says: one grid a region, and what no width changes; over the same groups as grids that are given."""
    over = {cost.name: cost.groups for cost in like}
    costs, sums = list[RegionCost](), dict[str, Concat]()
    for region in table.regions:
        within = left(region.within, candidates)
        if within is not None:
            dims, at = (region.reads, region.writes, *region.weight), partial(table.points, region.name)
            cost, used = grid_of(region.name, dims, at, candidates, over.get(region.name, ()))
            costs.append(replace(cost, within=within))
            sums |= used
    return Load(tuple(costs), table.fixed_ms, table.bend), sums


def varied(
    load: Load, candidates: Mapping[str, Ints], ways: Ways, options: Mapping[str, Sequence[str]]
) -> tuple[Load, dict[str, Concat]]:
    """The load in which regions run in the way that is chosen for them, and values are converted between those.

    Args:
        load: all regions in the plain way.
        candidates: widths by group.
        ways: see there.
        options: names of the ways of each region that has a choice, in the order of its candidates.

    Raises:
        TableError: a table of another way does not have a region, or has it over other groups.
    """
    grids = {
        v.name: {c.name: replace(c, grid=v.pace * c.grid) for c in measured(v.table, candidates, load.costs)[0].costs}
        for v in ways.variants
    }
    grids[ways.plain] = {cost.name: cost for cost in load.costs}
    costs, sums = list[RegionCost](), dict[str, Concat]()
    for cost in load.costs:
        over = _deciding((cost.name,), ways, options)
        costs.append(_chosen(cost, over, grids, ways, options) if over else cost)
    never = np.asarray(BEYOND * sum(float(cost.grid.max()) for cost in load.costs))
    for region, around in ways.pressed.items():
        over = _deciding((region, *around), ways, options)
        cells = [never * ways.impossible(region, cell) for cell in _cells(over, options)]
        if any(cells):
            costs.append(_over(RegionCost(region, (), never), over, cells, options))
    for passage in ways.passages if ways.each_ms or ways.element_ms else ():
        over = _deciding((passage.before, passage.after), ways, options)
        within = left(passage.elements.within, candidates)
        if over and within is not None:
            cost, used = grid_of(passage.after, passage.elements.dims, ways.converting(passage), candidates)
            odd = [ways.of(passage.before, c) != ways.of(passage.after, c) for c in _cells(over, options)]
            costs.append(replace(_over(cost, over, [cost.grid * differ for differ in odd], options), within=within))
            sums |= used
    return replace(load, costs=tuple(costs)), sums


def _deciding(regions: Sequence[str], ways: Ways, options: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Regions whose choice decides how some regions run: themselves, or those that they follow."""
    led = (name for region in regions for name in ((region,) if region in options else ways.follows.get(region, ())))
    return tuple(dict.fromkeys(name for name in led if name in options))


def _cells(over: Sequence[str], options: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of choices of some regions, the last one's changing fastest."""
    return [dict(zip(over, picks, strict=True)) for picks in product(*(options[name] for name in over))]


def _chosen(
    cost: RegionCost,
    over: Sequence[str],
    grids: Mapping[str, Mapping[str, RegionCost]],
    ways: Ways,
    options: Mapping[str, Sequence[str]],
) -> RegionCost:
    """What a region costs, over its own groups and over what decides how it runs."""
    found = list[Floats]()
    for cell in _cells(over, options):
        way = ways.of(cost.name, cell)
        here = grids[way].get(cost.name)
        if here is None or here.groups != cost.groups:
            raise TableError(f"region {cost.name}: the {way} table does not have it alike", hint=MEASURE)
        found.append(here.grid)
    return _over(cost, over, found, options)


def _over(
    cost: RegionCost, over: Sequence[str], grids: Sequence[Floats], options: Mapping[str, Sequence[str]]
) -> RegionCost:
    """A cost with a dim for each region that decides, from its grid in each combination."""
    shape = (*cost.grid.shape, *(len(options[name]) for name in over))
    groups = (*cost.groups, *(name + VARIED for name in over))
    return replace(cost, groups=groups, grid=np.stack(grids, axis=-1).reshape(shape))


__all__ = ["MEASURE", "PLAIN", "VARIED", "Table", "Variant", "Ways", "measured", "varied"]
