"""Attention that takes its scale from the width it finds: the old scale goes into what makes the queries.

A cut keeps the scale of the dense network (queries times keys over the root of the *old* head_dim). A module that
computes its scale in its forward has the new one, so its queries are made larger or smaller by the ratio of the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from cpd_edge.canonical import op_name
from cpd_edge.network import Network

_PRODUCTS = ("matmul", "bmm", "baddbmm")
_WRITERS = {"linear": (1, 2, -1), "conv1d": (1, 2, 1), "conv2d": (1, 2, 1), "batch_norm": (1, 2, 1),
            "layer_norm": (2, 3, -1), "rms_norm": (2, 3, -1)}  # fmt: skip
"""Calls that make units: positions of weight and bias, and the dim of the result that the weight's first dim makes."""


@dataclass(frozen=True)
class Fold:
    """A factor on the parts of parameters that make queries.

    Attributes:
        tensors: names of a weight and its bias, or of the weight alone.
        rows: indices of their first dim, in the cut network's coordinates.
        widths: the old and the new width that the scale is taken from.
        query: name of the node whose value is the queries.
        reader: name of the call that multiplies them by the keys.
    """

    tensors: tuple[str, ...]
    rows: tuple[int, ...]
    widths: tuple[int, int]
    query: str
    reader: str

    @property
    def factor(self) -> float:
        """Root of the new width over the old one."""
        return float((self.widths[1] / self.widths[0]) ** 0.5)

    def __str__(self) -> str:
        return f"{self.tensors[0]} times {self.factor:.4g}"

    def applied(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter with the factor on its rows; one that it does not concern as it is."""
        if name not in self.tensors:
            return tensor
        tensor = tensor.clone()
        tensor[list(self.rows)] *= self.factor
        return tensor


def compensated(network: Network, chosen: Sequence[Fold]) -> Network:
    """A graph that computes the same from parameters with factors on them: its queries are divided by those again."""
    network = network.clone()
    nodes = {node.name: node for node in network.graph.nodes}
    for fold in chosen:
        for name in fold.tensors:
            held = network.fetch(name)
            with torch.no_grad():
                held.copy_(fold.applied(name, held))
        query, reader = nodes[fold.query], nodes[fold.reader]
        with network.graph.inserting_before(reader):
            divided = network.graph.call_function(torch.ops.aten.div.Scalar, (query, fold.factor))
        reader.replace_input_with(query, divided)
    network.recompile()
    return network


def folds(dense: Network, small: Network, calls: Sequence[str], inputs: Tensor) -> Iterator[Fold]:
    """The factors that give attention its old scale back, for each attention among some calls.

    Args:
        dense, small: the graph before and after the cut.
        calls: names of the calls of one module.
        inputs: what the graph is run on to see which rows make queries.
    """
    before, after = ({node.name: node for node in network.graph.nodes} for network in (dense, small))
    for name in calls:
        reader = _product(after[name]) if name in after else None
        query = _queries(reader) if reader is not None else None
        if reader is None or query is None or query.name not in before:
            continue
        old, new = (nodes[query.name].meta["val"].shape[-1] for nodes in (before, after))
        writer = _writer(query)
        if type(old) is int and type(new) is int and old != new and writer is not None:
            weight, bias, dim = _WRITERS[op_name(writer)]
            held = [writer.args[at] for at in (weight, bias) if len(writer.args) > at]
            names = tuple(str(x.target) for x in held if isinstance(x, fx.Node) and x.op == "get_attr")
            rows = _rows(small, inputs, writer, query, dim)
            if names and rows:
                yield Fold(names, rows, (old, new), query.name, reader.name)


def _product(node: fx.Node) -> fx.Node | None:
    """What multiplies queries by keys where a call is attention: itself if it is a fused one, or softmax's product."""
    if op_name(node) == "scaled_dot_product_attention":
        return node
    if op_name(node) not in ("softmax", "_softmax"):
        return None
    found = _first(node)
    while found is not None and op_name(found) not in _PRODUCTS:
        found = _first(found)
    return found


def _queries(product: fx.Node) -> fx.Node | None:
    given = product.args[1] if op_name(product) == "baddbmm" else product.args[0]
    return given if isinstance(given, fx.Node) and given.op == "call_function" else None


def _writer(node: fx.Node | None) -> fx.Node | None:
    """The call that makes what flows into a node along first arguments."""
    while node is not None and op_name(node) not in _WRITERS:
        node = _first(node)
    return node


def _first(node: fx.Node) -> fx.Node | None:
    given = node.args[0] if node.args else None
    given = given[0] if isinstance(given, (list, tuple)) and given else given
    return given if isinstance(given, fx.Node) and given.op == "call_function" else None


class _Seen(Exception):
    """The value that was wanted has been computed."""


class _Probe(fx.Interpreter):
    """Runs a graph and keeps two values: one to be differentiated, and one with respect to which."""

    def __init__(self, network: Network, source: fx.Node, result: fx.Node) -> None:
        super().__init__(network)
        self._source, self._result = source, result
        self.source = self.result = torch.zeros(0)

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; the source is cut off from what made it."""
        value = super().run_node(n)
        if n is self._source:
            self.source = value.detach().clone().requires_grad_()
            return self.source * 1
        if n is self._result:
            self.result = value * 1
            raise _Seen
        return value


def _rows(network: Network, inputs: Tensor, source: fx.Node, result: fx.Node, dim: int) -> tuple[int, ...]:
    """Indices along a dim of `source` that `result` depends on."""
    probe = _Probe(network, source, result)
    with torch.enable_grad():
        with contextlib.suppress(_Seen):
            probe.run(inputs)
        if not probe.result.requires_grad:
            return ()
        (grad,) = torch.autograd.grad(probe.result.square().sum() + probe.result.sum(), probe.source)
    others = [d for d in range(grad.dim()) if d != dim % grad.dim()]
    return tuple(int(i) for i in grad.abs().amax(others).nonzero().flatten())
