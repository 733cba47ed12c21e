"""The cut: parameters and buffers sliced, shape constants rewritten, always from original coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from cpd_edge.canonical import has_effect, with_argument
from cpd_edge.gates import gated
from cpd_edge.layout import Keep, Layout, kept, narrowed, size
from cpd_edge.network import Branch, Combed, Network
from cpd_edge.types import Group, Groups


def check(groups: Groups, keep: Keep) -> None:
    """Raises ValueError unless `keep` names groups and units, ascending; only of a depth group none may stay."""
    for name, units in keep.items():
        try:
            group = groups[name]
        except KeyError:
            raise ValueError(f"no group is called {name!r}; there are {[g.name for g in groups.groups][:8]}") from None
        if group.depth and len(units) == 0:
            continue
        if len(units) == 0:
            raise ValueError(f"group {name}: at least one of its {group.units} units must stay")
        if any(b <= a for a, b in pairwise(units)) or units[0] < 0 or units[-1] >= group.units:
            raise ValueError(f"group {name}: kept units must ascend within 0..{group.units - 1}, got {list(units)[:8]}")


def cut(combed: Combed, keep: Keep, state: Mapping[str, Tensor] | None = None, *, shapes: bool = True) -> Network:
    """The network without the units that `keep` leaves out.

    Args:
        combed: the dense network and its layouts.
        keep: ascending kept units by group; a group that is absent stays whole.
        state: parameters and buffers in original coordinates, if not the dense network's own.
        shapes: also bring the recorded shapes up to date, which takes most of the time; to run it, none are needed.

    Raises:
        ValueError: `keep` does not fit the groups.
    """
    check(combed.groups, keep)
    network = combed.network.clone()
    source = combed.network.state_dict() if state is None else state
    made: dict[int, Tensor] = {}
    for name, dims in combed.parameters.items():
        held = combed.network.fetch(name)
        if isinstance(held, Tensor):
            new = made[id(held)] if id(held) in made else _sliced(source.get(name, held), dims, keep)
            made[id(held)] = _replace(network, name, new)
    for name, held in combed.network.named_parameters(remove_duplicate=False):
        if name not in combed.parameters and id(held) in made:  # tied to one that a call takes
            _replace(network, name, made[id(held)])
    widths = {name: len(units) for name, units in keep.items()}
    by_name = {node.name: node for node in network.graph.nodes}
    for argument in combed.shape_arguments:
        node = by_name[argument.node]
        node.args = with_argument(node.args, argument.path, size(argument.layout, widths))
    gone = [branch for branch in combed.branches if widths.get(branch.name) == 0]
    if gone:
        _leave_out(network, gone)
        _forget_unused(network, combed.parameters)
    if shapes:
        network.refresh()
    else:
        network.recompile()
    return network


def _leave_out(network: Network, branches: Iterable[Branch]) -> None:
    """Lets what goes into each branch take the place of what comes out."""
    nodes = {node.name: node for node in network.graph.nodes}
    instead: dict[str, fx.Node] = {}
    for branch in branches:
        first = instead[branch.last] = instead.get(branch.first, nodes[branch.first])
        nodes[branch.last].replace_all_uses_with(first)
    network.graph.eliminate_dead_code(is_impure_node=has_effect)


def _forget_unused(network: Network, names: Iterable[str]) -> None:
    """Deletes parameters and buffers that no call takes any more."""
    used = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    for name in names:
        path, _, last = name.rpartition(".")
        if name not in used:
            delattr(network.get_submodule(path), last)


def in_own_coordinates(combed: Combed, keep: Keep, network: Network) -> Combed:
    """What comb would say of a cut network, under the dense network's names.

    Args:
        combed: the dense network.
        keep: what was kept of it.
        network: `cut(combed, keep)`.
    """
    widths = {name: len(units) for name, units in keep.items()}
    there = {node.name for node in network.graph.nodes}

    def own(dims: tuple[Layout, ...]) -> tuple[Layout, ...]:
        return tuple(narrowed(d, widths) for d in dims)

    def group(dense: Group) -> Group:
        slots = tuple(replace(slot, layout=narrowed(slot.layout, widths)) for slot in dense.slots)
        return replace(dense, units=widths.get(dense.name, dense.units), slots=slots)

    return Combed(
        network=network,
        groups=Groups(tuple(group(g) for g in combed.groups.groups), combed.groups.frozen),
        parameters={name: own(dims) for name, dims in combed.parameters.items()},
        values={name: own(dims) for name, dims in combed.values.items() if name in there},
        shape_arguments=tuple(
            replace(a, layout=narrowed(a.layout, widths)) for a in combed.shape_arguments if a.node in there
        ),
        contractions=tuple(
            replace(c, layout=narrowed(c.layout, widths), passing=narrowed(c.passing, widths))
            for c in combed.contractions
            if c.node in there
        ),
        branches=tuple(b for b in combed.branches if b.last in there and widths.get(b.name) != 0),
    )


def expand(combed: Combed, keep: Keep, network: Network) -> dict[str, Tensor]:
    """A cut network's state in original coordinates: what was removed holds the dense network's values.

    So a second cut, of a network trained after the first, is again one cut from original coordinates.
    """
    out = {name: tensor.detach().clone() for name, tensor in combed.network.state_dict().items()}
    for name, tensor in network.state_dict().items():
        dims = combed.parameters.get(name)
        if dims:
            index = [torch.as_tensor(kept(layout, keep)) for layout in dims]
            out[name][torch.meshgrid(*index, indexing="ij")] = tensor.detach().to(out[name].device)
        else:
            out[name] = tensor.detach().clone()
    return out


def mask(combed: Combed, keep: Keep) -> Network:
    """The dense network whose readers ignore what `keep` leaves out.

    Pruned equals masked wherever no statistic runs over a group (`Group.exact`). What is read is zeroed where it is
    read, not where it is written: an activation may turn zero into something else.
    """
    check(combed.groups, keep)
    gates = gated(combed)
    gates.close(keep)
    return gates.network


def _sliced(tensor: Tensor, dims: tuple[Layout, ...], keep: Keep) -> Tensor:
    for dim, layout in enumerate(dims):
        index = kept(layout, keep)
        if len(index) != tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.as_tensor(index, device=tensor.device))
    return tensor.detach().clone()


def _replace(root: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Puts a tensor in a parameter's or buffer's place and returns it; tied ones get the same one."""
    path, _, last = name.rpartition(".")
    owner = root.get_submodule(path)
    if last in owner._parameters:
        old = owner._parameters[last]
        if not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old is not None and old.requires_grad)
        owner._parameters[last] = tensor
    elif last in owner._buffers:
        owner._buffers[last] = tensor
    else:
        setattr(owner, last, tensor)
    return tensor
