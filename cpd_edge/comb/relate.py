"""One walk over the graph: every tensor dim gets a layout, every call relates its inputs to its outputs.

A `Relation` is what a rule sees. Rules live in `rules.py`, one short function per family of
operations. A call without a rule, or one that the algebra cannot express, freezes the axes it
touches and is reported: never a wrong cut, never a crash.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, fx

from cpd_edge.canonical import argument_at, op_name
from cpd_edge.comb.axes import UNIT, Axes, Misaligned
from cpd_edge.layout import Layout, Prod
from cpd_edge.network import Contraction, Network, ShapeArgument, source_line

Dims: TypeAlias = tuple[Layout, ...]
Rule: TypeAlias = "Callable[[Relation, fx.Node], Dims | list[Dims]]"

RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for ATen or custom operators by name, without namespace and overload.

    A rule gets the relation and the node; it relates the layouts of the inputs and returns the
    layouts of the output (a list of them for several outputs). It may raise `Misaligned`.

    Example:
        >>> @register_rule("scaled_relu")
        ... def scaled_relu(r, node):
        ...     return r.dims(node.args[0])
    """

    def add(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return add


def _swapped(node: fx.Node, dim: int) -> int:
    rank = node.meta["val"].dim()
    a, b = (int(d) % rank for d in node.args[1:3]) if len(node.args) > 2 else (0, 1)  # type: ignore[call-overload]
    return {a: b, b: a}.get(dim, dim)


_MOVES: dict[str, Callable[[fx.Node, int], int]] = {
    **dict.fromkeys(("clone", "contiguous", "to", "_to_copy", "alias", "detach"), lambda node, dim: dim),
    **dict.fromkeys(("t", "transpose", "swapaxes", "swapdims"), _swapped),
    "permute": lambda node, dim: int(node.args[1][dim]) % node.meta["val"].dim(),  # type: ignore[index,call-overload]
}
"""Calls that only move a parameter's dims: from a dim of the result to the dim of the argument."""


@dataclass
class Relation:
    """The state of one walk: layouts by node, and what the rules recorded."""

    network: Network
    axes: Axes = field(default_factory=Axes)
    of: dict[str, Dims | list[Dims]] = field(default_factory=dict)
    parameters: dict[str, Dims] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    """The first name of each parameter; two names of one tensor are tied."""
    first: dict[int, str] = field(default_factory=dict)
    """That name by the tensor's identity."""
    readers: set[tuple[str, int]] = field(default_factory=set)
    shape_arguments: list[ShapeArgument] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    node: fx.Node | None = None
    """The call that is being related."""

    def dims(self, node: object) -> Dims:
        """Layouts of a tensor's dims, outermost first.

        Raises:
            Misaligned: the argument is no tensor.
        """
        found = self.of.get(node.name) if isinstance(node, fx.Node) else None
        if not isinstance(found, tuple):
            raise Misaligned(f"an argument is {type(node).__name__}, not one tensor")
        return found

    def optional(self, node: fx.Node, index: int) -> Dims | None:
        """Layouts of an argument that may be absent or None."""
        given = node.args[index] if len(node.args) > index else None
        return self.dims(given) if isinstance(given, fx.Node) else None

    def unify(self, a: Layout, b: Layout) -> None:
        """Two dims have the same units; where no refinement can say so, neither may be cut.

        Raises:
            Misaligned: the extents differ.
        """
        if a.extent != b.extent:
            raise Misaligned(f"extent {a.extent} against {b.extent}")
        try:
            self.axes.unify(a, b)
        except Misaligned as why:
            self._stuck([a, b], why)

    def split(self, layout: Layout, sizes: Sequence[int]) -> list[Layout]:
        """Consecutive parts of a dim; where a boundary falls inside of what must stay together, it may not be cut."""
        if sum(sizes) != layout.extent:
            raise Misaligned(f"parts {list(sizes)} of an extent of {layout.extent}")
        try:
            return self.axes.split(layout, sizes)
        except Misaligned as why:
            self._stuck([layout], why)
            return [self.axes.fixed(size, "part of an axis that may not be cut") for size in sizes]

    def factor(self, layout: Layout, sizes: Sequence[int]) -> list[Layout]:
        """The dims that a dim is reshaped to, row-major; where they do not follow its factors, it may not be cut."""
        if math.prod(sizes) != layout.extent:
            raise Misaligned(f"factors {list(sizes)} of an extent of {layout.extent}")
        try:
            return self.axes.factor(layout, sizes)
        except Misaligned as why:
            self._stuck([layout], why)
            return [self.axes.fixed(size, "factor of an axis that may not be cut") for size in sizes]

    def _stuck(self, layouts: Sequence[Layout], why: Misaligned) -> None:
        assert self.node is not None
        self.freeze(self.node, layouts, f"{op_name(self.node)}: {why}")

    def contract(self, node: fx.Node, *operands: tuple[int | tuple[int, ...], int], passing: Layout = UNIT) -> None:
        """Says that a call sums over a dim of its arguments, so that it reads the units there.

        Args:
            node: the call.
            operands: position (or path) and dim of each tensor that is summed over; masking the first is enough.
            passing: outer part of the dim that goes on in the result, where only the inner part is summed over.
        """
        for i, (position, dim) in enumerate(operands):
            path = position if isinstance(position, tuple) else (position,)
            tensor = argument_at(node.args, path)
            dims = self.dims(tensor)
            dim %= len(dims)
            if i == 0 and dims[dim].extent > 1:
                _, read = self.factor(dims[dim], [passing.extent, dims[dim].extent // passing.extent])
                self.contractions.append(Contraction(node.name, path, dim, read, passing))
            self._mark_reader(tensor, dim)

    def _mark_reader(self, tensor: object, dim: int) -> None:
        """A parameter that is contracted, as it is or transposed, reads its units."""
        while isinstance(tensor, fx.Node) and tensor.op == "call_function" and op_name(tensor) in _MOVES:
            dim = _MOVES[op_name(tensor)](tensor, dim)
            tensor = tensor.args[0]
        if isinstance(tensor, fx.Node) and tensor.op == "get_attr":
            self.readers.add((self.tied[str(tensor.target)], dim))

    def shape_argument(self, node: fx.Node, path: tuple[int, ...], layout: Layout) -> None:
        """Says that the integer at `path` in the call's arguments is the extent of `layout`."""
        self.shape_arguments.append(ShapeArgument(node.name, path, layout))

    def freeze(self, node: fx.Node, layouts: Sequence[Layout], reason: str) -> None:
        """Freezes layouts because of a call, remembering the user's line."""
        for layout in layouts:
            self.axes.freeze(layout, reason, source_line(node))

    def reshape(self, source: Dims, sizes: Sequence[int]) -> Dims:
        """Layouts after a row-major reshape to `sizes`: runs of dims with equal products go together."""
        out: list[Layout] = []
        todo, wanted = list(source), list(sizes)
        while todo or wanted:
            run: list[Layout] = []
            into: list[int] = []
            have, need = 1, 1
            while not run or not into or have != need:
                if (have <= need or not wanted) and todo:
                    run.append(todo.pop(0))
                    have *= run[-1].extent
                elif wanted:
                    into.append(wanted.pop(0))
                    need *= into[-1]
                elif have == need:
                    break
                else:
                    raise Misaligned(f"{[d.extent for d in source]} does not reshape to {list(sizes)}")
            out.extend(self.factor(Prod(tuple(run)), into))
        return tuple(out)

    def broadcast(self, tensors: Sequence[Dims]) -> Dims:
        """Layouts of an elementwise result: equal dims agree, dims of extent 1 stretch."""
        rank = max(len(t) for t in tensors)
        out = [UNIT] * rank
        for dims in tensors:
            for i, layout in enumerate(dims, start=rank - len(dims)):
                if layout.extent == 1:
                    continue
                if out[i].extent == 1:
                    out[i] = layout
                else:
                    self.unify(out[i], layout)
        return tuple(out)


def relate(network: Network) -> Relation:
    """Walks the graph once, in order, and relates every call."""
    relation = Relation(network)
    for node in network.graph.nodes:
        if node.op == "placeholder":
            relation.of[node.name] = _fixed(relation, node, "network input")
        elif node.op == "get_attr":
            _parameter(relation, node)
        elif node.op == "call_function":
            _call(relation, node)
        elif node.op == "output":
            _protect_outputs(relation, node)
    return relation


def shape_of(value: object) -> tuple[int, ...]:
    """Shape of a traced tensor; a free batch size counts as the example's.

    Raises:
        Misaligned: it is no tensor.
    """
    if not isinstance(value, Tensor):
        raise Misaligned(f"it gives {type(value).__name__}, not one tensor")
    return tuple(extent(s) for s in value.shape)


def extent(size: object) -> int:
    """A size as an integer: a symbolic one as the example had it, one that depends on data as 0, which fits nothing."""
    if type(size) is int:
        return size
    hint = size.node.hint  # type: ignore[attr-defined]
    return 0 if hint is None else int(hint)


def _fixed(relation: Relation, node: fx.Node, reason: str) -> Dims | list[Dims]:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return tuple(relation.axes.fixed(n, reason, source_line(node)) for n in shape_of(value))
    if isinstance(value, (tuple, list)):
        return [
            tuple(relation.axes.fixed(n, reason, source_line(node)) for n in shape_of(v))
            if isinstance(v, Tensor)
            else ()
            for v in value
        ]
    return ()


def _parameter(relation: Relation, node: fx.Node) -> None:
    name = str(node.target)
    if name not in relation.parameters:
        tensor = relation.network.fetch(name)
        first = relation.tied[name] = relation.first.setdefault(id(tensor), name)
        if first == name:
            dims = tuple(relation.axes.new(n) for n in tensor.shape) if isinstance(tensor, Tensor) else ()
        else:
            dims = relation.parameters[first]
        relation.parameters[name] = dims
    relation.of[node.name] = relation.parameters[name]


def _call(relation: Relation, node: fx.Node) -> None:
    if node.target is operator.getitem:
        source, index = node.args[0], node.args[1]
        several = relation.of[source.name]  # type: ignore[union-attr]
        relation.of[node.name] = several[index] if isinstance(several, list) else ()  # type: ignore[index]
        return
    relation.node = node
    name = op_name(node)
    rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
        return
    try:
        if rule is None:
            raise Misaligned("it has no rule")
        found = rule(relation, node)
        _check(node, found)
    except Misaligned as why:
        _freeze_call(relation, node, f"{name or node.target}: {why}")
    else:
        relation.of[node.name] = found


def _check(node: fx.Node, found: Dims | list[Dims]) -> None:
    """Holds a rule to the traced shapes, so that a wrong rule freezes instead of cutting wrongly."""
    if isinstance(found, list) is not isinstance(node.meta["val"], (list, tuple)):
        raise Misaligned("its rule mistakes one tensor for several, or several for one")
    values = node.meta["val"] if isinstance(found, list) else [node.meta["val"]]
    for value, dims in zip(values, found if isinstance(found, list) else [found], strict=True):
        if isinstance(value, Tensor) and value.numel() and tuple(d.extent for d in dims) != shape_of(value):
            raise Misaligned(f"its rule gives {[d.extent for d in dims]} for {list(shape_of(value))}")


def _freeze_call(relation: Relation, node: fx.Node, reason: str) -> None:
    for source in node.all_input_nodes:
        found = relation.of.get(source.name, ())
        for dims in found if isinstance(found, list) else [found]:
            relation.freeze(node, dims, reason)
    relation.of[node.name] = _fixed(relation, node, reason)


def _protect_outputs(relation: Relation, node: fx.Node) -> None:
    for source in node.all_input_nodes:
        found = relation.of[source.name]
        for dims in found if isinstance(found, list) else [found]:
            relation.freeze(source, dims, "network output")
