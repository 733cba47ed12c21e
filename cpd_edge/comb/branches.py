"""Depth: runs of calls whose result has the layout of what goes in, so that they can be left out whole.

A residual branch is such a run, and so are a depthwise convolution of stride one and a gate. A run has one entry and
one exit. Of several around the same convolutions and products one counts; two may nest, but not cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor, fx

from cpd_edge.canonical import op_name
from cpd_edge.comb.relate import Dims
from cpd_edge.network import Branch

_HEAVY = frozenset(
    """
    addmm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution einsum gru
    linear lstm matmul mm rnn_relu rnn_tanh scaled_dot_product_attention
    """.split()  # noqa: SIM905
)
"""A run without one of these is not worth a choice of its own."""


def find_branches(graph: fx.Graph, values: Mapping[str, Dims], taken: set[str]) -> tuple[Branch, ...]:
    """The runs of a graph in order of their exits.

    Args:
        graph: a traced graph with one input.
        values: layout of each dim of each tensor, by node name.
        taken: names that groups have already.
    """
    walk = _Walk(graph, values)
    best: dict[frozenset[fx.Node], _Run] = {}
    for last in walk.order:
        first = walk.entry(last)
        if first is None:
            continue
        run = _Run(first, last, walk.between(first, last))
        if all(user in run.inside for node in run.inside if node is not last for user in walk.users(node)):
            heavy = frozenset(node for node in run.inside if op_name(node) in _HEAVY)
            if heavy not in best or run.rank > best[heavy].rank:
                best[heavy] = run
    runs: list[_Run] = []
    for run in sorted(best.values(), key=lambda run: -len(run.inside)):
        if not any(run.crosses(other) or other.crosses(run) for other in runs):
            runs.append(run)
    runs.sort(key=lambda run: walk.place[run.last])
    out: list[Branch] = []
    for run in runs:
        name = _name(sorted(run.inside, key=walk.place.__getitem__), taken)
        taken = taken | {name}
        out.append(Branch(name, run.first.name, run.last.name, frozenset(node.name for node in run.inside)))
    return tuple(out)


@dataclass(frozen=True)
class _Run:
    """Calls with one entry and one exit; the entry is not among them, the exit is."""

    first: fx.Node
    last: fx.Node
    inside: frozenset[fx.Node]

    @property
    def rank(self) -> tuple[bool, int]:
        """Which of several runs around the same heavy calls is meant: one added to its own input, or the longest."""
        given = self.last.all_input_nodes
        return self.first in given and not self.inside.isdisjoint(given), len(self.inside)

    def crosses(self, other: _Run) -> bool:
        """Whether it begins within another run and ends outside, so that both cannot go."""
        return self.first in other.inside and self.first is not other.last and self.last not in other.inside


class _Walk:
    """The calls that depend on the input, in order, with the call that each must come through."""

    def __init__(self, graph: fx.Graph, values: Mapping[str, Dims]) -> None:
        self.order: list[fx.Node] = []
        self.place: dict[fx.Node, int] = {}
        self.above: dict[fx.Node, fx.Node] = {}
        """The nearest call that every path to a call comes through."""
        self.depth: dict[fx.Node, int] = {}
        self.weighs: dict[fx.Node, bool] = {}
        self.kind: dict[fx.Node, int] = {}
        """Calls with equal numbers give tensors of one layout, shape and type."""
        kinds: dict[object, int] = {}
        for node in graph.nodes:
            before = [n for n in node.all_input_nodes if n in self.place]
            if node.op != "placeholder" and not before:
                continue
            self.place[node] = len(self.order)
            self.order.append(node)
            self.depth[node] = 0
            if before:
                top = before[0]
                for other in before[1:]:
                    top = self._common(top, other)
                self.above[node] = top
                self.depth[node] = self.depth[top] + 1
            value = node.meta.get("val")
            if isinstance(value, Tensor) and node.op == "call_function":
                described = values.get(node.name), tuple(map(str, value.shape)), value.dtype
                self.kind[node] = kinds.setdefault(described, len(kinds))

    def users(self, node: fx.Node) -> Iterator[fx.Node]:
        """The calls that take a call's result on, leaving aside those that nobody takes further."""
        return (user for user in node.users if user.op == "output" or user.users or op_name(user).endswith("_"))

    def _common(self, a: fx.Node, b: fx.Node) -> fx.Node:
        while a is not b:
            if self.depth[a] < self.depth[b]:
                a, b = b, a
            a = self.above[a]
        return a

    def entry(self, last: fx.Node) -> fx.Node | None:
        """The nearest call above with the same kind of result and something heavy on the way, or None."""
        kind, at, weighs = self.kind.get(last), last, False
        while kind is not None and at in self.above:
            weighs = weighs or self._weighs(at)
            at = self.above[at]
            if weighs and self.kind.get(at) == kind:
                return at
        return None

    def _weighs(self, node: fx.Node) -> bool:
        """Whether a heavy call stands between a call, itself included, and the call above it."""
        if node not in self.weighs:
            self.weighs[node] = any(op_name(n) in _HEAVY for n in self.between(self.above[node], node))
        return self.weighs[node]

    def between(self, first: fx.Node, last: fx.Node) -> frozenset[fx.Node]:
        """The calls on the way from `first`, without it, to `last`."""
        seen, todo = {last}, [last]
        while todo:
            for node in todo.pop().all_input_nodes:
                if node in self.place and node is not first and node not in seen:
                    seen.add(node)
                    todo.append(node)
        return frozenset(seen)


def _name(inside: Sequence[fx.Node], taken: set[str]) -> str:
    """The module that all the run's heavy weights belong to."""
    modules = [p.rpartition(".")[0] for node in inside if op_name(node) in _HEAVY for p in _parameters(node)]
    levels = zip(*(m.split(".") for m in modules), strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    name = ".".join(level[0] for level in shared) or (modules[0] if modules else inside[-1].name)
    number, wanted = 1, f"{name}:depth"
    while wanted in taken:
        number += 1
        wanted = f"{name}:depth{number}"
    return wanted


def _parameters(node: fx.Node) -> Iterator[str]:
    """Names of the parameters of two dims or more that a call takes."""
    for source in node.all_input_nodes:
        value = source.meta.get("val")
        if source.op == "get_attr" and (value is None or (isinstance(value, Tensor) and value.dim() > 1)):
            yield str(source.target)
