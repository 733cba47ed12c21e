"""What a run works on: the task, the dense network, its groups, its engine and its regions."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from cpd_edge import store
from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.deploy.finished import FinishedCutter
from cpd_edge.deploy.onnx import OnnxCutter, export_onnx, finish, survivors, value_layouts, written_as
from cpd_edge.deploy.parity import check_parity
from cpd_edge.deploy.quantize import integer_nodes
from cpd_edge.errors import CpdError, ModelError
from cpd_edge.layout import Keep, Layout, Widths
from cpd_edge.measure.environment import key as environment_key
from cpd_edge.measure.runtimes import MIXED, ON_CPU, ModelRunner, model_runner
from cpd_edge.network import Combed, Network, trace
from cpd_edge.pipeline.opening import open_model
from cpd_edge.pipeline.precision import Quantiser, noise, require_computed
from cpd_edge.profile.regions import find_regions, signature
from cpd_edge.types import Region

HALF_PARITY = 1e-2
"""Largest relative difference between two ways to cut one network; a wrong cut is off by its whole output."""


@dataclass(frozen=True)
class Subject:
    """A dense network with everything that is derived from it alone.

    Attributes:
        combed: the network and its groups.
        dense_onnx: the finished dense ONNX, as it is timed.
        regions: what the runtime will run as one kernel each.
        threads: threads of the engines that are made from it.
        runtime: what runs them.
        device: where.
        precision: what they compute in; `mixed` where each plan says it by region.
        quantiser: makes INT8 of them, or of regions, where that is the precision.
        layouts: of parameters and values, by the names that `dense_onnx` has for them.
    """

    combed: Combed
    dense_onnx: onnx.ModelProto
    regions: tuple[Region, ...]
    threads: int
    _cutter: OnnxCutter | None
    runtime: str = "onnxruntime"
    device: str = "local"
    precision: str = "fp32"
    quantiser: Quantiser | None = None
    layouts: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_shape: tuple[int, ...],
        threads: int = 1,
        runtime: str = "onnxruntime",
        device: str = "local",
        precision: str = "fp32",
        images: npt.NDArray[Any] | None = None,
    ) -> Subject:
        """Combs and exports a module; for INT8, calibrates it on images `[n, ...]`, noise if None.

        Raises:
            ModelError: it cannot be exported.
        """
        combed = comb(trace(model, input_shape), input_shape)
        exported = export_onnx(combed.network)
        lowered = comb(exported.lowered, input_shape)
        same = combed.parameters == lowered.parameters and combed.groups.widths == lowered.groups.widths
        cutter = OnnxCutter(exported.model, lowered)
        dense = finish(exported.model)
        names = written_as(combed.network, exported.lowered)
        layouts = value_layouts(combed, lowered, names)
        branches = {b.name: [names.get(v, v) for v in (b.first, b.last)] for b in combed.branches}
        ends = survivors([v for values in branches.values() for v in values], exported.model, dense)
        runs = {name: (ends[first], ends[last]) for name, (first, last) in branches.items()}
        regions = find_regions(dense, layouts, runs)
        true = same and cuts_truly(cutter, combed, runtime)
        quantiser = None
        if precision.startswith("int8") or precision == MIXED:
            quantiser = Quantiser.of(dense, noise(input_shape, 0) if images is None else images, runtime, device)
        used = cutter if true else None
        return cls(combed, dense, regions, threads, used, runtime, device, precision, quantiser, layouts)

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

    def all_in(self, precision: str) -> Subject:
        """The same network with all of it in one precision."""
        return replace(self, precision=precision, quantiser=self.quantiser if precision.startswith("int8") else None)

    @cached_property
    def weighted(self) -> tuple[Region, ...]:
        """The regions that may run in INT8, in the network's order."""
        assert self.quantiser is not None
        may = set(integer_nodes(self.dense_onnx, self.quantiser.scheme)[0])
        return tuple(region for region in self.regions if region.name in may)

    def quantised(self, model: onnx.ModelProto, widths: Widths, variants: Mapping[str, str]) -> Collection[str] | None:
        """Names of the weighted nodes of a build that run in INT8; None: all of them do.

        Exporters number nodes anew where a branch has gone, so nodes are told by their place among the weighted ones.

        Args:
            model: the network at some widths, in fp32.
            widths: by group.
            variants: how regions run, by name.

        Raises:
            ModelError: it has not the weighted nodes that are left at these widths.
        """
        if self.quantiser is None or self.precision != MIXED:
            return None if self.quantiser else ()
        stay = [r for r in self.weighted if all(widths.get(branch, 1) for branch in r.within)]
        made = {node.name: node.op_type for node in model.graph.node}
        names = integer_nodes(model, self.quantiser.scheme)[0]
        if [r.op for r in stay] != [made[name] for name in names]:
            raise ModelError(
                f"of the network at these widths {len(stay)} weighted regions are left, its file has {len(names)} "
                "weighted nodes, or others",
                hint="give --no-depth, or --precision int8",
            )
        return [name for region, name in zip(stay, names, strict=True) if variants.get(region.name) == "int8"]

    def build_plan(self, keep: Keep, variants: Mapping[str, str] | None = None) -> bytes:
        """The ONNX of the network cut by a plan, with the dense network's weights; in mixed precision by `variants`."""
        if self._finished is not None:
            model = self._finished.cut(keep)
        else:
            made = self._cutter.cut(keep) if self._cutter is not None else export_onnx(cut(self.combed, keep)).model
            model = finish(made)
        nodes = self.quantised(model, {name: len(units) for name, units in keep.items()}, variants or {})
        if self.quantiser is not None and (nodes is None or nodes):
            model = self.quantiser.time(model, nodes)
        return bytes(model.SerializeToString())

    @cached_property
    def _finished(self) -> FinishedCutter | None:
        """What cuts the finished file, where it can be: ten times faster."""
        return None if self._cutter is None else FinishedCutter.learned(self._cutter, self.widths)

    def key(self) -> dict[str, Any]:
        """What a table of this subject belongs to: the environment it is measured in, and the model's signature."""
        with contextlib.closing(self.runner(self.build(self.widths))) as runner:
            require_computed(runner.environment, self.precision)
            return {**environment_key(runner.environment), "signature": self.signature}

    def runner(self, model: bytes, profile: bool = False) -> ModelRunner:
        """An engine made from ONNX bytes."""
        return open_model(
            self.device, self.runtime, model, threads=self.threads, profile=profile, precision=made_in(self.precision)
        )


def made_in(precision: str) -> str:
    """The precision that a runtime is asked for: of mixed engines the file says it, as of those in INT8."""
    return "int8" if precision == MIXED else precision


def cuts_truly(cutter: OnnxCutter, combed: Combed, runtime: str = "onnxruntime") -> bool:
    """Whether the file, cut at half of every group, computes what the cut graph does; if not, each sample is exported.

    The exporter's own graph may hold calls that the network's does not, with shapes that follow no rule.
    """
    keep = {g.name: np.arange(0, g.units, 2) for g in combed.groups.groups}
    small = cut(combed, keep, shapes=False)
    here = runtime if runtime in ON_CPU else ON_CPU[0]
    try:
        with contextlib.closing(model_runner(here, bytes(finish(cutter.cut(keep)).SerializeToString()))) as runner:
            check_parity(small, runner.outputs, small.example(), HALF_PARITY, "cut in half")
    except (CpdError, RuntimeError):  # the runtime refuses to run it, or it computes something else
        return False
    return True


def save_groups(run: store.Run, subject: Subject) -> None:
    """Writes what comb found."""
    store.write_json(run / "groups.json", {"format": store.FORMAT, **comb_record(subject.combed)})


def comb_record(combed: Combed, kept: Widths | None = None) -> dict[str, object]:
    """Groups and frozen axes as the record holds them; of groups that `kept` does not name all units stay."""
    groups = combed.groups
    left = {**groups.widths, **(kept or {})}
    return {
        "groups": [
            {"name": g.name, "units": g.units, "kept": left[g.name], "exact": g.exact, "depth": g.depth}
            for g in groups.groups
        ],
        "frozen": [store.plain(f) for f in groups.frozen],
    }
