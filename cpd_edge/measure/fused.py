"""Which ONNX nodes a runtime's kernel holds, told by the names that the runtime kept and by where the kernel sits.

A compiler keeps the names of most of what it fuses, but not of what it rewrites: a layer norm becomes a kernel of a
made-up name. Such a kernel stands between kernels whose names are kept, so it holds the ONNX nodes between theirs.
Where there are none, one node became several kernels, and the last of them has its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

CONVERTS = "Reorder"
"""Operator of a kernel that changes a layout and computes nothing."""


@dataclass(frozen=True)
class Step:
    """One kernel of a compiled model.

    Attributes:
        name: that the runtime gave it.
        op: its operator.
        kept: names of what it was made of, as far as the runtime kept them.
        sources: names of the kernels that it reads.
        plain: writes the layout that the model's own tensors have.
        works: takes time of its own, as far as is known before it runs.
        precision: what it computes in, where the runtime says so.
    """

    name: str
    op: str
    kept: tuple[str, ...]
    sources: tuple[str, ...]
    plain: bool = True
    works: bool = True
    precision: str = ""


def held_nodes(steps: Sequence[Step], model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Names of the ONNX nodes in each kernel, by the kernel's name; none where nothing tells.

    A change of layout counts for the kernel that it serves: to a layout of the runtime's own for the one that reads
    it, back to the plain one for the one that wrote.

    Args:
        steps: all kernels, those that compute nothing included, in execution order.
        model: what was compiled.
    """
    return _Places(steps, model).found()


class _Places:
    """The two graphs side by side."""

    def __init__(self, steps: Sequence[Step], model: onnx.ModelProto) -> None:
        self.steps = {step.name: step for step in steps}
        self.nodes = list(model.graph.node)
        self.producer = {out: i for i, node in enumerate(self.nodes) for out in node.output if out}
        self.last = [self.producer[out.name] for out in model.graph.output if out.name in self.producer]
        self.by_name = {**self.producer, **{node.name: i for i, node in enumerate(self.nodes) if node.name}}
        self.readers: dict[str, list[str]] = {step.name: [] for step in steps}
        for step in steps:
            for source in step.sources:
                self.readers.setdefault(source, []).append(step.name)
        self.own = {step.name: self._named(step.kept) for step in steps}
        self.claimed = {i for indices in self.own.values() for i in indices}

    def found(self) -> dict[str, tuple[str, ...]]:
        places = {name: self._placed(name) for name in self.steps if not self._converts(name)}
        for name, step in self.steps.items():
            if self._converts(name):
                sides = self._above(name), self._below(name)
                near = (x for side in (sides if step.plain else sides[::-1]) for x in side)
                places[name] = next((places[x] for x in near if places.get(x)), ())
        return {name: tuple(self._called(i) for i in places[name]) for name in self.steps}

    def _named(self, kept: Iterable[str]) -> tuple[int, ...]:
        """Indices of the nodes that kept names lead to; a name may have words of the runtime behind a slash."""
        out: dict[int, None] = {}
        for name in kept:
            while name:
                if name in self.by_name:
                    out[self.by_name[name]] = None
                    break
                name = name.rpartition("/")[0]
        return tuple(out)

    def _placed(self, name: str) -> tuple[int, ...]:
        if self.own[name] or not self.steps[name].sources:
            return self.own[name]
        return self._between(name) or next((self.own[x] for x in self._below(name)), ())

    def _between(self, name: str) -> tuple[int, ...]:
        """Nodes that lie before what reads a kernel and behind what it reads, and that no other kernel holds."""
        above = {i for x in self._above(name) for i in self.own[x]}
        below = [i for x in self._below(name) for i in self.own[x]]
        todo = [self.producer[v] for i in below for v in self._reads(i)] if below else self.last
        inside: dict[int, bool] = {}
        while todo:
            i = todo.pop()
            if i not in inside and i not in self.claimed:
                inside[i] = True
                todo += [self.producer[v] for v in self._reads(i)]
        behind: set[int] = set()
        for i in sorted(inside):
            if not above or any(self.producer[v] in above | behind for v in self._reads(i)):
                behind.add(i)
        return tuple(sorted(behind))

    def _reads(self, node: int) -> list[str]:
        return [v for v in self.nodes[node].input if v in self.producer]

    def _above(self, name: str) -> list[str]:
        """The nearest kernels before one that have nodes of their own."""
        return self._nearest(name, {n: list(step.sources) for n, step in self.steps.items()})

    def _below(self, name: str) -> list[str]:
        return self._nearest(name, self.readers)

    def _nearest(self, name: str, ways: Mapping[str, list[str]]) -> list[str]:
        out: dict[str, None] = {}
        todo, seen = list(ways.get(name, ())), {name}
        while todo:
            at = todo.pop(0)
            if at in seen or at not in self.steps:
                continue
            seen.add(at)
            if self.own[at]:
                out[at] = None
            else:
                todo += ways.get(at, [])
        return list(out)

    def _converts(self, name: str) -> bool:
        return self.steps[name].op == CONVERTS

    def _called(self, node: int) -> str:
        return str(self.nodes[node].name or self.nodes[node].output[0])


__all__ = ["CONVERTS", "Step", "held_nodes"]
