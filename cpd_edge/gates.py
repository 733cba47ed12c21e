"""A factor where units are read: zero it and the readers ignore the unit, differentiate it and the unit is scored.

The mask that a cut is proven against and the scores that choose a cut are the same graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from cpd_edge.canonical import argument_at, with_argument
from cpd_edge.layout import Keep, Layout, Leaf, Prod, kept, occupants
from cpd_edge.network import Combed, Network

aten = torch.ops.aten


@dataclass(frozen=True)
class Gates:
    """A dense network with its gates open.

    Attributes:
        network: computes what the dense network does while every gate is one.
        layouts: what the indices of each gate are made of, by the gate's name among the network's buffers: an outer
            part that it lets through, and the part that is read.
    """

    network: Network
    layouts: Mapping[str, tuple[Layout, Layout]]

    def factors(self) -> dict[str, Tensor]:
        """The gates, vectors `[extent]`, by name."""
        return {name: self.network.get_buffer(name) for name in self.layouts}

    @torch.no_grad()
    def close(self, keep: Keep) -> None:
        """Zeroes what `keep` leaves out, and opens everything else."""
        for name, gate in self.factors().items():
            passing, read = self.layouts[name]
            gate.zero_()
            gate.view(passing.extent, read.extent)[:, torch.as_tensor(kept(read, keep), device=gate.device)] = 1

    @contextlib.contextmanager
    def closed(self, keep: Keep) -> Iterator[None]:
        """Closes for a while, then opens everything."""
        self.close(keep)
        try:
            yield
        finally:
            self.close({})

    def unit_sums(self, values: Mapping[str, Tensor], group: str, units: int) -> npt.NDArray[np.float64]:
        """Sum over all gates of `values` at the indices that each unit of a group occupies, `[units]`."""
        total = np.zeros(units)
        for name, value in values.items():
            passing, read = self.layouts[name]
            where = occupants(read, group)
            if where.size:
                total += value.cpu().double().view(passing.extent, read.extent).sum(0).numpy()[where].sum(1)
        return total


def gated(combed: Combed) -> Gates:
    """The network with one gate a contraction and one a branch, all open. Readers of one value share a gate."""
    network = combed.network.clone()
    graph = network.graph
    nodes = {node.name: node for node in graph.nodes}
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(1))
    layouts: dict[str, tuple[Layout, Layout]] = {}

    def gate(passing: Layout, read: Layout, rank: int, dim: int) -> fx.Node:
        name = f"gate_{len(layouts)}"
        layouts[name] = passing, read
        network.register_buffer(name, torch.ones(passing.extent * read.extent, dtype=like.dtype, device=like.device))
        held = graph.get_attr(name)
        return graph.call_function(aten.view.default, (held, [-1 if d == dim else 1 for d in range(rank)]))

    ranks = {node: len(combed.values[name]) for name, node in nodes.items() if name in combed.values}
    made: dict[tuple[fx.Node, int, Layout, Layout], fx.Node] = {}
    for contraction in combed.contractions:
        reader = nodes[contraction.node]
        source = argument_at(reader.args, contraction.path)
        assert isinstance(source, fx.Node)
        key = source, contraction.dim, contraction.layout, contraction.passing
        if key not in made:
            with graph.inserting_before(reader):
                factor = gate(contraction.passing, contraction.layout, ranks[source], contraction.dim)
                made[key] = graph.call_function(aten.mul.Tensor, (source, factor))
            ranks[made[key]] = ranks[source]
        reader.args = with_argument(reader.args, contraction.path, made[key])
    joined: dict[str, fx.Node] = {}
    for branch in combed.branches:
        last = nodes[branch.last]
        with graph.inserting_before(last.next):
            factor = gate(Prod(()), Leaf(branch.name, 1), 1, 0)
            through = graph.call_function(aten.mul.Tensor, (last, factor))
            shut = graph.call_function(aten.rsub.Scalar, (factor, 1))
            around = graph.call_function(aten.mul.Tensor, (joined.get(branch.first, nodes[branch.first]), shut))
            new = joined[branch.last] = graph.call_function(aten.add.Tensor, (through, around))
        last.replace_all_uses_with(new, delete_user_cb=lambda user, through=through: user is not through)
    graph.lint()
    network.recompile()
    return Gates(network, layouts)
