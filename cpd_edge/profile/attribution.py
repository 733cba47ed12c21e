"""Which region each of a runtime's kernels belongs to, by the names that the runtime keeps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.profile.regions import ELEMENTWISE, MARKS, node_name
from cpd_edge.types import Region


class Kernel(Protocol):
    """What a runtime's profiler saw of one kernel."""

    @property
    def name(self) -> str:
        """Name that the runtime gave it."""

    @property
    def op(self) -> str:
        """Operator, fusions included."""

    @property
    def order(self) -> int:
        """Place in the execution order."""

    @property
    def ms(self) -> npt.NDArray[np.float64]:
        """Time in each run `[repeats]` [ms]."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all ONNX nodes in it, where the runtime says so; else its name is all there is."""


@dataclass(frozen=True)
class Times:
    """One profile by region.

    Attributes:
        ms: time by region [ms].
        kernels: number of kernels by region.
        unattributed_ms: kernels that belong to no region, changes of format aside [ms].
        reformats_ms: changes of a tensor's format that the runtime put between kernels and gave no node [ms].
    """

    ms: dict[str, float]
    kernels: dict[str, int]
    unattributed_ms: float
    reformats_ms: float = 0.0

    @property
    def whole_ms(self) -> float:
        """All kernels together [ms]."""
        return sum(self.ms.values()) + self.unattributed_ms + self.reformats_ms


@dataclass(frozen=True)
class Attribution:
    """Which region a kernel belongs to, by the names that a runtime keeps.

    Attributes:
        names: region by the name of any of its nodes, or of a value that one of them makes.
        nodes: operator and region of each node of the model that the regions were found in, in its order.
        heads: the first of the regions that one kernel holds together, by any of them; their time is its time.
    """

    names: Mapping[str, str]
    nodes: tuple[tuple[str, str], ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, regions: Iterable[Region], model: onnx.ModelProto | None = None) -> Attribution:
        """The names of regions' nodes and, given the model, of the values that those nodes make."""
        by_node = {node: region.name for region in regions for node in region.nodes}
        if model is None:
            return cls(by_node)
        inside = [node for node in model.graph.node if node_name(node) in by_node]
        by_value = {out: by_node[node_name(node)] for node in inside for out in node.output if out}
        return cls({**by_value, **by_node}, tuple((n.op_type, by_node[node_name(n)]) for n in inside))

    def adapted(self, model: onnx.ModelProto, gone: Collection[str] = ()) -> Attribution:
        """The same regions in another build of the network, where generated names count differently.

        Nodes are matched by place where all operators agree, else by the values that they make. Of a quantised build,
        what makes integers of a value belongs to what made it, and what makes floats to what reads them.

        Args:
            model: the build.
            gone: regions that it lacks, where it was exported without them: its names count anew, and what stood around
                them may have gone too, so operators are matched in their order.
        """
        nodes = [n for n in model.graph.node if n.op_type not in MARKS]
        left = [(op, region) for op, region in self.nodes if region not in gone]
        if gone or [n.op_type for n in nodes] == [op for op, _ in left]:
            homes: list[str | None] = [None] * len(nodes)
            alike = SequenceMatcher(None, [op for op, _ in left], [n.op_type for n in nodes], autojunk=False)
            for block in alike.get_matching_blocks():
                for i in range(block.size):
                    homes[block.b + i] = left[block.a + i][1]
        else:
            homes = [next((self.names[x] for x in (*n.output, n.name) if x in self.names), None) for n in nodes]
        pairs = [(node, home) for node, home in zip(nodes, homes, strict=True) if home is not None]
        names = {name: home for node, home in pairs for name in (*node.output, node_name(node)) if name}
        readers = {name: home for node, home in reversed(pairs) for name in node.input}
        for mark in (n for n in reversed(model.graph.node) if n.op_type in MARKS):
            home = names.get(mark.input[0]) or readers.get(mark.output[0])
            if home is not None:
                names |= dict.fromkeys((node_name(mark), mark.output[0]), home)
                readers.setdefault(mark.input[0], home)
        every = dict.fromkeys(self.names.values())
        return Attribution({**{name: name for name in every}, **names}, self.nodes, self.heads)

    def spanned(self, kernels: Sequence[Kernel]) -> tuple[tuple[str, ...], ...]:
        """Sets of regions that kernels hold together, each in the network's order: none of them has a time alone.

        Two sets that share a region are one.
        """
        sets: list[set[str]] = []
        for held in self._held(sorted(kernels, key=lambda k: k.order)):
            if len(held) > 1:
                near = [s for s in sets if s & set(held)]
                sets = [s for s in sets if s not in near] + [set(held).union(*near)]
        order = self._order
        return tuple(sorted((tuple(sorted(s, key=order.__getitem__)) for s in sets), key=lambda s: order[s[0]]))

    def fused(self, sets: Iterable[Sequence[str]]) -> Attribution:
        """The same, where regions that are held together have one time, that of the first of them."""
        return replace(self, heads={region: held[0] for held in sets for region in held})

    def heading(self, model: onnx.ModelProto) -> frozenset[str]:
        """Names of the nodes that head a region in a build of the network: those that are not elementwise."""
        own = (node_name(n) for n in model.graph.node if n.op_type not in ELEMENTWISE)
        return frozenset(name for name in own if name in self.names)

    def region(self, kernel: str) -> str | None:
        """Region that a kernel's name tells, or None.

        The name may be a node's or a value's, with what the runtime puts before it (`fused `) or behind it
        (`_nchwc`, `_token_7`, `/MatMulAddFusion/`); or several of them, joined by commas: the first that is known
        counts, which is what heads the kernel.
        """
        found = (self._region(name) for name in ((kernel,) if kernel in self.names else kernel.split(",")))
        return next((region for region in found if region is not None), None)

    def _region(self, kernel: str) -> str | None:
        name = re.sub(r"_token_\d+$", "", kernel.removeprefix("fused "))
        while name:
            if name in self.names:
                return self.names[name]
            shorter = re.sub(r"[_/.: ](?!\d+$)[^_/.: ]*$", "", name)
            name = shorter if shorter != name else ""
        return None

    def times(self, kernels: Sequence[Kernel]) -> Times:
        """Time of every region, 0 where none of its kernels is left, and the rest that has no region.

        Layout conversions carry no name of the model's. Each counts for the neighbour whose widths decide that it is
        there: one to a runtime's own layout for the region before, which could not compute in it, one back for the
        region after, which cannot. Elementwise kernels of unknown name count for the region before.
        A kernel's time is the median of its repeats, each brought to the pace of the median inference first: a machine
        in a slow state slows all kernels of an inference. A kernel of several regions counts for their head, see
        `fused`; where that was not said beforehand, for the first of them.
        """
        ordered = sorted(kernels, key=lambda k: k.order)
        held = self._held(ordered)
        told = [self.heads.get(regions[0], regions[0]) if regions else None for regions in held]
        home = list(told)
        for i, kernel in enumerate(ordered):
            if told[i] is None and (_reorder(kernel) or kernel.op in ELEMENTWISE):
                before, after = told[:i][::-1], told[i + 1 :]
                near = [*after, *before] if kernel.op == "ReorderOutput" else [*before, *after]
                home[i] = next((h for h in near if h is not None), None)
        names = dict.fromkeys(self.heads.get(name, name) for name in self.names.values())
        out, count = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        rest = reformats = 0.0
        wholes = np.sum([kernel.ms for kernel in ordered], axis=0)
        pace = np.median(wholes) / wholes
        for kernel, region in zip(ordered, home, strict=True):
            ms = float(np.median(kernel.ms * pace))
            if region is not None:
                out[region] += ms
                count[region] += 1
            elif kernel.op == "Reformat" or kernel.name.startswith("Reformatting CopyNode"):
                reformats += ms
            else:
                rest += ms
        return Times(out, count, rest, reformats)

    @cached_property
    def _order(self) -> dict[str, int]:
        """Place of each region in the network."""
        every = dict.fromkeys(region for _, region in self.nodes) or dict.fromkeys(self.names.values())
        return {region: i for i, region in enumerate(dict.fromkeys([*every, *self.names.values()]))}

    def _held(self, ordered: Sequence[Kernel]) -> list[tuple[str, ...]]:
        """Regions of which each kernel holds nodes.

        Of a kernel that cannot be split a runtime may tell the ends alone (`{ForeignNode[a...b]}`): it also holds
        what lies between them and is in no other kernel.
        """
        found = [self._told(kernel) for kernel in ordered]
        claimed = {region for held in found for region in held}
        for i, (kernel, held) in enumerate(zip(ordered, found, strict=True)):
            if "ForeignNode[" in kernel.name and len(held) == 2:
                first, last = sorted(self._order[region] for region in held)
                inside = [r for r, at in self._order.items() if first < at < last and r not in claimed]
                found[i] = (held[0], *inside, held[1])
        return found

    def _told(self, kernel: Kernel) -> tuple[str, ...]:
        if _reorder(kernel):
            return ()
        if kernel.nodes:
            return tuple(dict.fromkeys(r for r in map(self._region, kernel.nodes) if r is not None))
        region = self.region(kernel.name)
        return () if region is None else (region,)


def _reorder(kernel: Kernel) -> bool:
    """Whether a kernel only changes a layout for the runtime's sake."""
    own = kernel.op == "Transpose" and re.fullmatch(r"Transpose(_token_\d+)?", kernel.name) is not None
    return own or kernel.op in ("ReorderInput", "ReorderOutput")
