"""The library: what tables measured on one device say of layers that another network has too.

A folder a model is the store (see `sample`); the library reads the finished tables of one environment. Two regions
match when nothing that fixes their cost differs: operator, attributes, dense shapes, what is fused, and how their
extents are made of axes. Names do not count, nor does what they join: a fit is read with what this network joins.
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
from cpd_edge.profile.forms import Model
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

    def share(self, regions: Sequence[Region]) -> float:
        """Share of some regions' multiply-accumulates whose cost is known."""
        known = sum(r.dense_macs for r in regions if region_signature(r) in self._by_signature)
        return known / max(sum(r.dense_macs for r in regions), 1)

    def known(self, regions: Sequence[Region], here: Samples) -> dict[str, Model]:
        """What fits each region elsewhere, at the level it has here; regions that nobody measured are absent.

        The same kernel costs more in one network than in another, and the machine is faster on some days: a model from
        elsewhere is scaled to the samples here. Of several, the one that then meets them best is taken.
        """
        found = {}
        for region in regions:
            told = [_scaled(model, region, here) for model in self._by_signature.get(region_signature(region), ())]
            if told:
                found[region.name] = min(told, key=lambda t: t[0])[1]
        return found

    @cached_property
    def _by_signature(self) -> dict[str, list[Model]]:
        found: dict[str, list[Model]] = {}
        for table in self.tables:
            together = {name for names in table.fused for name in names}
            for region in table.regions:
                model = table.models[region.name]
                if region.geometry and region.name not in together and any(model.coefficients):
                    found.setdefault(region_signature(region), []).append(model)
        return found


def _scaled(model: Model, region: Region, here: Samples) -> tuple[float, Model]:
    """How far a model of the same work is off this region's samples, and that model, scaled to them."""
    ms = here.ms[region.name]
    expected = np.broadcast_to(model.ms(region, here.widths), ms.shape)
    level = float(ms.sum() / max(float(expected.sum()), 1e-300))
    off = float(np.abs(level * expected - ms).sum())
    return off, Model(model.form, tuple(level * c for c in model.coefficients))
