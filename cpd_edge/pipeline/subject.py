"""What a run works on: the task, the dense network, its groups, its engine and its regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from torch import nn

from cpd_edge import store
from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.deploy.onnx import OnnxCutter, export_onnx, finish, value_layouts
from cpd_edge.layout import Keep, Widths
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.network import Combed, Network, trace
from cpd_edge.profile.regions import find_regions, signature
from cpd_edge.types import Region


@dataclass(frozen=True)
class Subject:
    """A dense network with everything that is derived from it alone.

    Attributes:
        combed: the network and its groups.
        dense_onnx: the finished dense ONNX, as it is timed.
        regions: what the runtime will run as one kernel each.
        threads: threads of the engines that are made from it.
    """

    combed: Combed
    dense_onnx: onnx.ModelProto
    regions: tuple[Region, ...]
    threads: int
    _cutter: OnnxCutter | None

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...], threads: int = 1) -> Subject:
        """Combs and exports a module.

        Raises:
            ModelError: it cannot be exported.
        """
        combed = comb(trace(model, input_shape), input_shape)
        exported = export_onnx(combed.network)
        lowered = comb(exported.lowered, input_shape)
        regions_of = lowered if _same_axes(combed, lowered) else combed
        dense = finish(exported.model)
        cutter = OnnxCutter(exported.model, lowered) if regions_of is lowered else None
        regions = find_regions(dense, value_layouts(regions_of))
        return cls(combed, dense, regions, threads, cutter)

    @property
    def network(self) -> Network:
        """The dense network."""
        return self.combed.network

    @property
    def widths(self) -> dict[str, int]:
        """Units by group."""
        return self.combed.groups.widths

    @cached_property
    def signature(self) -> str:
        """Hash of the regions and groups: what a table belongs to."""
        return signature(self.regions, self.widths)

    def build(self, widths: Widths) -> bytes:
        """The ONNX of the network at some widths, to be timed: weights are the dense network's first units."""
        return self.build_plan({name: np.arange(n) for name, n in widths.items()})

    def build_plan(self, keep: Keep) -> bytes:
        """The ONNX of the network cut by a plan, with the dense network's weights."""
        if self._cutter is not None:
            return bytes(finish(self._cutter.cut(keep)).SerializeToString())
        return bytes(finish(export_onnx(cut(self.combed, keep)).model).SerializeToString())

    def runner(self, model: bytes, profile: bool = False) -> OnnxRunner:
        """An engine made from ONNX bytes."""
        return OnnxRunner(model, threads=self.threads, profile=profile)


def _same_axes(combed: Combed, lowered: Combed) -> bool:
    """Whether the exporter's own graph yields the same groups, so that the file can be cut in place of the graph."""
    return combed.parameters == lowered.parameters and combed.groups.widths == lowered.groups.widths


def save_groups(run: store.Run, subject: Subject) -> None:
    """Writes what comb found."""
    store.write_json(run / "groups.json", {"format": store.FORMAT, **comb_record(subject.combed)})


def comb_record(combed: Combed, keep: Mapping[str, object] | None = None) -> dict[str, object]:
    """Groups and frozen axes as the record holds them."""
    groups = combed.groups
    kept = {name: len(units) for name, units in (keep or {}).items()}  # type: ignore[arg-type]
    return {
        "groups": [
            {"name": g.name, "units": g.units, "kept": kept.get(g.name, g.units), "exact": g.exact}
            for g in groups.groups
        ],
        "frozen": [store.plain(f) for f in groups.frozen],
    }
