"""The library: what tables measured on one device say of layers that another network has too.

A folder a model is the store (see `sample`); the library reads the finished tables of one environment. Two regions
match when nothing that fixes their cost differs: operator, attributes, dense shapes, what is fused, and how their
extents are made of axes. Names do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cpd_edge.errors import CpdError
from cpd_edge.layout import Layout, Leaf, Sum, axes
from cpd_edge.profile.fit import Samples
from cpd_edge.profile.table import LatencyTable
from cpd_edge.types import Region

OF_THE_MODEL = ("shape", "inputs", "signature")
"""Parts of a table's key that say what was measured, not where."""


def region_axes(region: Region) -> tuple[str, ...]:
    """The axes that a region's cost depends on, in the order in which they appear."""
    return axes(region.reads, region.writes, *region.weight)


def region_signature(region: Region) -> str:
    """Text that two regions share when they are the same work at the same widths, whatever they are called."""
    place = {axis: str(i) for i, axis in enumerate(region_axes(region))}
    layouts = [_renamed(x, place) for x in (region.reads, region.writes, *region.weight)]
    return f"{region.geometry} {layouts}"


def _renamed(layout: Layout, place: Mapping[str, str]) -> str:
    if isinstance(layout, Leaf):
        return f"{place[layout.axis]}:{layout.extent}"
    mark = "+" if isinstance(layout, Sum) else "*"
    return f"({mark}{','.join(_renamed(part, place) for part in layout.parts)})"


def place_of(key: Mapping[str, Any]) -> dict[str, Any]:
    """Where and how a table was measured: its key without the model."""
    return {name: value for name, value in key.items() if name not in OF_THE_MODEL}


@dataclass(frozen=True)
class Library:
    """Finished tables of one device, runtime, precision, thread count and power state."""

    tables: tuple[LatencyTable, ...] = ()

    @classmethod
    def beside(cls, folder: Path, key: Mapping[str, Any]) -> Library:
        """The tables in the folders beside a model's own that were measured in the same place.

        A table of another format is passed over: it is measured again when its own model is profiled.
        """
        found = []
        for path in sorted(folder.parent.glob("*/table.json")):
            if path.parent == folder:
                continue
            try:
                table = LatencyTable.load(path)
            except CpdError:
                continue
            if place_of(table.key) == place_of(key):
                found.append(table)
        return cls(tuple(found))

    def known(self, regions: Sequence[Region], here: Samples) -> dict[str, Samples]:
        """What was measured of each region in other networks, over its own axes; regions nobody measured are absent.

        The same kernel costs more in one network than in another, and the machine is faster on some days: each part
        is brought to the level at which its own model meets the samples here.
        """
        found = {}
        for region in regions:
            parts = [
                part
                for source in self._by_signature.get(region_signature(region), ())
                if (part := source.for_(region, here))
            ]
            if parts:
                widths = {axis: np.concatenate([p.widths[axis] for p in parts]) for axis in parts[0].widths}
                found[region.name] = Samples(widths, {region.name: np.concatenate([p.ms[region.name] for p in parts])})
        return found

    @cached_property
    def _by_signature(self) -> dict[str, list[_Source]]:
        found: dict[str, list[_Source]] = {}
        for table in self.tables:
            together = {name for names in table.fused for name in names}
            for region in table.regions:
                if region.name in together:
                    continue
                free = [axis for axis in region_axes(region) if axis in table.groups]
                if free and table.measured.ms[region.name].any():
                    found.setdefault(region_signature(region), []).append(_Source(region, table))
        return found


@dataclass(frozen=True)
class _Source:
    """A region of another network, in its table."""

    region: Region
    table: LatencyTable

    def for_(self, region: Region, here: Samples) -> Samples | None:
        """Its samples as samples of an equal region, at the level of that one; None where that takes no time."""
        mine = dict(zip(region_axes(region), region_axes(self.region), strict=True))
        seen = here.ms[region.name]
        there = {mine[axis]: values for axis, values in here.widths.items() if axis in mine}
        expected = self.table.models[self.region.name].ms(self.region, there)
        level = float(seen.sum() / np.broadcast_to(expected, seen.shape).sum())
        measured = self.table.measured
        widths = {axis: measured.widths[name] for axis, name in mine.items() if name in measured.widths}
        if not level > 0:
            return None
        return Samples(widths, {region.name: level * measured.ms[self.region.name]})
