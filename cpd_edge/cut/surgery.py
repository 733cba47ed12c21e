"""The cut: parameters and buffers sliced, shape constants rewritten, always from original coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from cpd_edge.canonical import with_argument
from cpd_edge.gates import gated
from cpd_edge.layout import Keep, Layout, kept, size
from cpd_edge.network import Combed, Network
from cpd_edge.types import Groups


def check(groups: Groups, keep: Keep) -> None:
    """Raises ValueError unless `keep` names groups, keeps at least one unit of each, in ascending order and range."""
    for name, units in keep.items():
        try:
            group = groups[name]
        except KeyError:
            raise ValueError(f"no group is called {name!r}; there are {[g.name for g in groups.groups][:8]}") from None
        if len(units) == 0:
            raise ValueError(f"group {name}: at least one of its {group.units} units must stay")
        if any(b <= a for a, b in pairwise(units)) or units[0] < 0 or units[-1] >= group.units:
            raise ValueError(f"group {name}: kept units must ascend within 0..{group.units - 1}, got {list(units)[:8]}")


def cut(combed: Combed, keep: Keep, state: Mapping[str, Tensor] | None = None) -> Network:
    """The network without the units that `keep` leaves out.

    Args:
        combed: the dense network and its layouts.
        keep: ascending kept units by group; a group that is absent stays whole.
        state: parameters and buffers in original coordinates, if not the dense network's own.

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
    widths = {name: len(units) for name, units in keep.items()}
    by_name = {node.name: node for node in network.graph.nodes}
    for argument in combed.shape_arguments:
        node = by_name[argument.node]
        node.args = with_argument(node.args, argument.path, size(argument.layout, widths))
    network.refresh()
    return network


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
