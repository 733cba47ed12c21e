"""From a settled relation to groups: axes get readable names, slots are collected, the frozen rest is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from cpd_edge.canonical import FOLDED
from cpd_edge.comb import rules as _rules  # registers the built-in rules
from cpd_edge.comb.branches import find_branches
from cpd_edge.comb.relate import Dims, Relation, relate
from cpd_edge.layout import Layout, Leaf, Prod, Sum, axes, leaves
from cpd_edge.network import Combed, Network, trace
from cpd_edge.types import Frozen, Group, Groups, Slot

assert _rules


def comb(model: nn.Module, input_shape: tuple[int, ...]) -> Combed:
    """Resolves the layer dependencies of any module into groups that can be removed together.

    Args:
        model: a module that takes one tensor `[batch, *input_shape]`; not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        ModelError: the model cannot be exported.
    """
    return settle(relate(trace(model, input_shape)))


def settle(relation: Relation) -> Combed:
    """Reads the groups off a finished walk."""
    resolve = relation.axes.resolve
    parameters = {name: tuple(resolve(d) for d in dims) for name, dims in relation.parameters.items()}
    names = _names(parameters, relation.readers)

    def named(dims: Dims) -> Dims:
        return tuple(_rename(resolve(d), names) for d in dims)

    parameters = {name: named(dims) for name, dims in parameters.items()}
    untied = {name: dims for name, dims in parameters.items() if relation.tied[name] == name}
    values = {name: named(dims) for name, dims in relation.of.items() if isinstance(dims, tuple)}
    arguments = tuple(replace(a, layout=_rename(resolve(a.layout), names)) for a in relation.shape_arguments)
    frozen = {names.get(axis, axis): why for axis, why in relation.axes.frozen.items()}
    inexact, heads = ({names.get(a, a) for a in marked} for marked in (relation.axes.inexact, relation.axes.heads))
    groups = _groups(relation.network, untied, relation.readers, frozen, inexact, heads)
    branches = find_branches(relation.network.graph, values, set(groups.widths))
    depth = tuple(Group(branch.name, 1, (), depth=True) for branch in branches)
    groups = replace(groups, groups=(*groups.groups, *depth))
    contractions = tuple(
        replace(c, layout=_rename(resolve(c.layout), names), passing=_rename(resolve(c.passing), names))
        for c in relation.contractions
    )
    contractions = tuple(c for c in contractions if not groups.widths.keys().isdisjoint(axes(c.layout)))
    return Combed(
        network=relation.network,
        groups=groups,
        parameters=parameters,
        values=values,
        shape_arguments=arguments,
        contractions=contractions,
        branches=branches,
    )


def _names(parameters: Mapping[str, Dims], readers: set[tuple[str, int]]) -> dict[str, str]:
    """Names each axis after the first parameter that makes its units, else after one that holds them.

    Buffers that a graph was given for what it computed come last: they stand in no order.
    """
    names: dict[str, str] = {}
    taken: dict[str, int] = {}
    for writing in (True, False):
        for tensor, dims in sorted(parameters.items(), key=lambda item: item[0].startswith(FOLDED)):
            for dim, layout in enumerate(dims):
                if ((tensor, dim) in readers) is writing:
                    continue
                for axis in axes(layout):
                    if axis in names:
                        continue
                    stem = tensor.rpartition(".")[0] or tensor
                    taken[stem] = taken.get(stem, 0) + 1
                    names[axis] = stem if taken[stem] == 1 else f"{stem}:{taken[stem]}"
    return names


def _rename(layout: Layout, names: Mapping[str, str]) -> Layout:
    if isinstance(layout, Leaf):
        return Leaf(names.get(layout.axis, layout.axis), layout.extent)
    parts = tuple(_rename(p, names) for p in layout.parts)
    return Sum(parts) if isinstance(layout, Sum) else Prod(parts)


def _groups(
    network: Network,
    parameters: Mapping[str, Dims],
    readers: set[tuple[str, int]],
    frozen: Mapping[str, tuple[str, str]],
    inexact: set[str],
    heads: set[str],
) -> Groups:
    slots: dict[str, list[Slot]] = {}
    units: dict[str, int] = {}
    holders: dict[str, set[str]] = {}
    for tensor, dims in parameters.items():
        for dim, layout in enumerate(dims):
            for leaf in leaves(layout):
                units[leaf.axis] = leaf.extent
                holders.setdefault(leaf.axis, set()).add(tensor)
            for axis in axes(layout):
                slots.setdefault(axis, []).append(Slot(tensor, dim, layout, (tensor, dim) in readers))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    free = [axis for axis in slots if axis not in frozen and units[axis] > 1]
    groups = tuple(
        Group(a, units[a], tuple(slots[a]), a not in inexact, role="heads" if a in heads else "") for a in free
    )
    kept = tuple(
        Frozen(a, units[a], reason, source, sum(sizes.get(t, 0) for t in holders[a]))
        for a, (reason, source) in frozen.items()
        if a in slots and reason != "kernel extent"
    )
    return Groups(groups, kept)
