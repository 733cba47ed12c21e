"""What a cut does to the extents that a module's forward sees, read off the traced graph.

The graph says which module's forward made each call, so it says which integers an attribute of that module may stand
for. Facts come in levels, the surest first: integers that the forward handed to a call, extents of the tensors it
held, factors and parts of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from cpd_edge.layout import Layout, Leaf, Widths, leaves, size
from cpd_edge.network import Combed

_POSITIONS = frozenset(("dim", "dims", "dim0", "dim1", "start_dim", "end_dim", "index", "normalized_shape"))
"""Arguments whose integers count dims, or are extents anyway: they say nothing of an attribute's meaning."""

_FEW = 8
"""Up to so many parts every run of them counts, beyond it only those at either end."""


@dataclass
class Facts:
    """What the extents become that one module's forward sees.

    Attributes:
        levels: old extent to the new ones it becomes, the surest source first.
        stays: integers in the module's calls that no cut changes (strides, kernels, paddings).
        calls: names of the calls that the module's own forward makes.
        groups: the cut groups among the extents, in order of appearance, then the branches left out among the calls.
    """

    levels: tuple[dict[int, list[int]], ...] = field(default_factory=lambda: ({}, {}, {}))
    stays: set[int] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    groups: dict[str, None] = field(default_factory=dict)

    def settled(self, value: int, read: bool) -> int:
        """What an integer becomes if nothing contradicts it, else the integer itself.

        Of what the forward reads the surest level decides; what it does not read follows only where all agree.
        """
        for level in self.levels:
            if read and value in level:
                return level[value][0] if len(level[value]) == 1 else value
        found = {new for level in self.levels for new in level.get(value, ())}
        return found.pop() if len(found) == 1 and value not in self.stays else value

    def candidates(self, value: int) -> list[int]:
        """All that an integer may become, the likeliest first, multiples and parts of extents last; not itself."""
        if value < 2:
            return []
        found = [new for level in self.levels for new in level.get(value, ())]
        for level in self.levels:
            for old, news in level.items():
                if old > value and old % value == 0:
                    found += [new // (old // value) for new in news if new % (old // value) == 0]
                elif value > old > 1 and value % old == 0:
                    found += [new * (value // old) for new in news]
        return [new for new in dict.fromkeys(found) if new != value and new > 0]

    def learn(self, level: int, old: int, new: int) -> None:
        """Adds that an extent `old` becomes `new`."""
        news = self.levels[level].setdefault(old, [])
        if new not in news:
            news.append(new)

    def learn_layout(self, level: int, layout: Layout, widths: Widths) -> None:
        """Adds an extent, and one level lower everything that it is made of."""
        if layout.extent > 1:
            self.learn(level, layout.extent, size(layout, widths))
            shrunk = (leaf.axis for leaf in leaves(layout) if widths.get(leaf.axis, leaf.extent) < leaf.extent)
            self.groups.update(dict.fromkeys(shrunk))
            for part in _pieces(layout):
                self.learn(2, part.extent, size(part, widths))


def facts_of(model: nn.Module, combed: Combed, widths: Widths) -> dict[str, Facts]:
    """The facts of every module whose forward was traced, by the first of its names.

    Args:
        model: the module that was traced.
        combed: its graph and layouts.
        widths: kept units by group, of the groups that are cut.
    """
    first = {id(module): name for name, module in model.named_modules()}
    canonical = {name: first[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    found = {name: Facts() for name in first.values()}
    nodes = list(combed.network.graph.nodes)
    stacks = {node: _stack(node, canonical) for node in nodes}
    arguments: dict[str, list[tuple[tuple[int, ...], Layout]]] = {}
    for argument in combed.shape_arguments:
        arguments.setdefault(argument.node, []).append((argument.path, argument.layout))
    for node in nodes:
        if node.op == "call_function" and stacks[node]:
            own = found[stacks[node][-1][1]]
            own.calls.append(node.name)
            shaped = arguments.get(node.name, [])
            for _, layout in shaped:
                own.learn_layout(0, layout, widths)
            own.stays.update(_constants(node, {path for path, _ in shaped}))
        for layout in combed.values.get(node.name, ()) if node.op != "get_attr" else ():
            for path in _sees(stacks[node], [stacks[user] for user in node.users]):
                found[path].learn_layout(1, layout, widths)
        if node.op == "get_attr":
            owner = canonical.get(str(node.target).rpartition(".")[0], "")
            readers = [stacks[user][-1][1] for user in node.users if stacks[user]]
            for path in dict.fromkeys([owner, *readers]):
                for layout in combed.parameters.get(str(node.target), ()):
                    found[path].learn_layout(1, layout, widths)
    for facts in found.values():
        gone = (b for b in combed.branches if widths.get(b.name) == 0 and not b.inside.isdisjoint(facts.calls))
        facts.groups.update(dict.fromkeys(branch.name for branch in gone))
    return found


_Stack = Sequence[tuple[str, str]]
"""The calls of modules that a node stands in, outermost first: a name for the call, and the module's path."""


def _stack(node: fx.Node, canonical: Mapping[str, str]) -> list[tuple[str, str]]:
    given: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return [(key, canonical[path]) for key, (path, _) in given.items() if path in canonical]


def _sees(made: _Stack, used: Sequence[_Stack]) -> Iterator[str]:
    """Modules whose own forward holds a value: it made it or used it itself, or it passed from one child to another."""
    stacks = [made, *used]
    frames = dict.fromkeys(frame for stack in stacks for frame in stack)
    for frame in frames:
        inner = set()
        for stack in stacks:
            at = stack.index(frame) if frame in stack else None
            inner.add("outside" if at is None else stack[at + 1][0] if at + 1 < len(stack) else None)
        if None in inner or len(inner) > 1:
            yield frame[1]


def _constants(node: fx.Node, shaped: set[tuple[int, ...]]) -> Iterator[int]:
    """Integers of a call that are no extents."""
    schema = getattr(node.target, "_schema", None)
    for i, given in enumerate(node.args):
        name = schema.arguments[i].name if schema is not None and i < len(schema.arguments) else ""
        if name in _POSITIONS:
            continue
        if type(given) is int and (i,) not in shaped:
            yield given
        if isinstance(given, (list, tuple)):
            yield from (x for j, x in enumerate(given) if type(x) is int and (i, j) not in shaped)


def _pieces(layout: Layout) -> Iterator[Layout]:
    """Runs of neighbouring parts, at any depth: heads and head_dim of a product, one part of a concat or several."""
    if isinstance(layout, Leaf):
        return
    kind, count = type(layout), len(layout.parts)
    for begin in range(count):
        for end in range(begin + 1, count + 1):
            run = layout.parts[begin:end]
            if len(run) == 1:
                yield run[0]
            elif len(run) < count and (count <= _FEW or begin == 0 or end == count):
                yield kind(run)
    for part in layout.parts:
        yield from _pieces(part)
