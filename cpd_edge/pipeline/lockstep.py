"""A cut network beside the masked one, call by call, over nothing but what the cut changed.

Whatever a cut leaves as it is computes what the dense network computes, so its values are taken from one run of that.
From the first call that a cut touches, cut and mask are both computed; where they agree again (at the latest where the
last unit was read) nothing behind can differ, because every later call is the same call. There they *meet*. So each
group is tried alone, in full, for the price of its own part of the network; and groups whose parts do not touch are
tried in one pass, each from the dense network's own values.

Which calls a cut touched is read off its graph and parameters, not off what comb believes: a cut that touches too much
or too little never meets the mask, and is found at the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from cpd_edge.canonical import op_name
from cpd_edge.gates import gated
from cpd_edge.layout import Keep, axes
from cpd_edge.network import Combed, Network

Suspects: TypeAlias = frozenset[str]

_NOBODY: Suspects = frozenset()


class Entangled(Exception):
    """A call that a cut touches writes into memory that later calls see under another name: it cannot be run alone."""


@dataclass(frozen=True)
class Meeting:
    """Where a cut and its mask are compared: where they agree again, or at an output, or where one cannot run.

    Attributes:
        node: name of the call.
        suspects: groups whose removal can be seen there.
        error: difference of cut and mask, relative to the mask's largest element; inf where shapes differ.
        effect: difference of mask and dense network, likewise: 0 where the removal is not felt.
        cause: what was raised, or ''.
    """

    node: str
    suspects: Suspects
    error: float
    effect: float
    cause: str = ""


def difference(got: Any, want: Any) -> float:
    """Largest difference of two tensors relative to the largest element wanted; inf where they cannot be compared."""
    if not isinstance(got, Tensor) or not isinstance(want, Tensor):
        return 0.0 if type(got) is type(want) and got == want else float("inf")
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if not want.numel() or torch.equal(got, want):
        return 0.0
    if not want.is_floating_point():
        got, want = got.double(), want.double()
    gap, most = float((got - want).abs().max()), float(want.abs().max())
    if gap != gap or most != most or most == float("inf"):
        return float("inf")
    return gap / most if most else float("inf")


class Lockstep:
    """Values of a dense network, and the same network with gates, against which cuts are held.

    Args:
        combed: the dense network.
        inputs: what everything is run on, `[batch, ...]`.
        tolerance: largest `difference` of values that count as equal.
    """

    def __init__(self, combed: Combed, inputs: Tensor, tolerance: float) -> None:
        self._combed, self._inputs, self._tolerance = combed, inputs, tolerance
        self._gates = gated(combed)
        self._nodes = {node.name: node for node in self._gates.network.graph.nodes}
        self._dense = {node.name: _spelling(node) for node in combed.network.graph.nodes}
        self._inexact = {g.name for g in combed.groups.groups if not g.exact}
        self._axes_at: dict[str, set[str]] = {}
        for argument in combed.shape_arguments:
            self._axes_at.setdefault(argument.node, set()).update(axes(argument.layout))
        for branch in combed.branches:
            for user in (n for n in combed.network.graph.nodes if n.name == branch.last for n in n.users):
                self._axes_at.setdefault(user.name, set()).add(branch.name)
        self._entangled: set[str] = set()
        self._values = self._run_dense(inputs)
        if any(map(_writes, combed.network.graph.nodes)):
            self._entangled = set(self._find_entangled())
            self._values = self._run_dense(inputs)

    @torch.no_grad()
    def _run_dense(self, inputs: Tensor) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for node in self._combed.network.graph.nodes:
            if node.op == "placeholder":
                values[node.name] = inputs
            elif node.op != "output":
                alone = node.name not in self._entangled
                values[node.name] = _run(self._combed.network, node, lambda n: values[n.name], alone)
        return values

    def dense(self, node: fx.Node) -> Any:
        """A node's value in the dense network. What only gates compute is not kept: open ones give what they get."""
        if node.name in self._dense:
            return self._values[node.name]
        if node.op == "get_attr":
            return torch.ones_like(self._gates.network.fetch(str(node.target)))
        if op_name(node) == "mul" and bool((self.dense(node.args[1]) == 1).all()):
            return self.dense(node.args[0])
        return _run(self._gates.network, node, self.dense)

    def _find_entangled(self) -> Iterator[str]:
        """Names of calls that write into memory which a later call sees, other than as their result."""
        order = {node: at for at, node in enumerate(self._combed.network.graph.nodes)}
        memory: dict[int, list[fx.Node]] = {}
        for node in order:
            if isinstance(held := self._values.get(node.name), Tensor):
                memory.setdefault(_memory(held), []).append(node)
        for writer in filter(_writes, order):
            written = writer.args[0]
            held = self._values[written.name] if isinstance(written, fx.Node) else None
            seen = memory[_memory(held)] if isinstance(held, Tensor) else [written]
            others = [n for n in seen if n is not writer and isinstance(n, fx.Node)]
            if not others or any(order[user] > order[writer] for n in others for user in n.users):
                yield writer.name

    def outputs(self, keep: Keep) -> list[Tensor]:
        """The masked network's output tensors; of an empty `keep`, the dense network's."""
        with torch.no_grad():
            self._gates.close(keep)
            return [t for t in pytree.tree_leaves(self._gates.network(self._inputs)) if isinstance(t, Tensor)]

    def compare(self, small: Network, keep: Keep) -> list[Meeting]:
        """Every meeting of `small = cut(combed, keep)` with the mask of the same `keep`.

        Raises:
            Entangled: calls that the cut touches cannot be run one by one.
        """
        with torch.no_grad():
            self._gates.close(keep)
            return list(_Pass(self, small, keep).run())


class _Pass:
    """One cut held against its mask."""

    def __init__(self, owner: Lockstep, small: Network, keep: Keep) -> None:
        self._owner, self._small, self._keep = owner, small, set(keep)
        self._cut: dict[str, Any] = {}
        self._mask: dict[str, Any] = {}
        self._by: dict[str, Suspects] = {}
        """Whose removal is felt at a value; what is not here is as in the dense network."""

    def run(self) -> Iterator[Meeting]:
        done_with = self._last_uses()
        for node in self._small.graph.nodes:
            if node.op == "get_attr":
                self._parameter(node)
            elif node.op == "call_function":
                yield from self._call(node)
            elif node.op == "output":
                yield from self._outputs(node)
            for name in done_with.get(node.name, ()):
                self._cut.pop(name, None)
                self._mask.pop(name, None)

    def _last_uses(self) -> dict[str, list[str]]:
        """Names of the values that nobody takes after a call, by the call."""
        order = [node.name for node in self._small.graph.nodes]
        at = {name: position for position, name in enumerate(order)}
        last: dict[str, int] = {}
        for network in (self._owner._gates.network, self._small):
            for node in reversed(list(network.graph.nodes)):
                position = at.get(node.name, last.get(node.name, -1))
                for given in node.all_input_nodes:
                    last[given.name] = max(last.get(given.name, -1), position)
        found: dict[str, list[str]] = {}
        for name, position in last.items():
            if position >= 0:
                found.setdefault(order[position], []).append(name)
        return found

    def _parameter(self, node: fx.Node) -> None:
        held, dense = self._small.fetch(str(node.target)), self._owner._values[node.name]
        if isinstance(held, Tensor) and (held.shape != dense.shape or not torch.equal(held, dense)):
            layouts = self._owner._combed.parameters.get(str(node.target), ())
            self._open(node.name, held, dense, self._named(axes(*layouts)))

    def _call(self, node: fx.Node) -> Iterator[Meeting]:
        masked = self._owner._nodes[node.name]
        by = frozenset[str]().union(
            *(self._by.get(n.name, _NOBODY) for n in node.all_input_nodes),
            *(self._gate(n) for n in masked.all_input_nodes),
        )
        if _spelling(node) != self._owner._dense[node.name]:
            by |= self._named(self._owner._axes_at.get(node.name, ()))
        if not by:
            return
        if node.name in self._owner._entangled:
            raise Entangled(node.name)
        try:
            cut = _run(self._small, node, self._of_cut)
            mask = _run(self._owner._gates.network, masked, self._of_mask)
        except Exception as error:  # whatever an operation raises over shapes that do not fit
            said = str(error).strip().partition("\n")[0]
            yield Meeting(node.name, by, float("inf"), 0.0, f"{type(error).__name__}: {said}")
            return
        if isinstance(mask, (tuple, list)):
            self._open(node.name, cut, mask, by)
            return
        gap = difference(cut, mask)
        if gap <= self._owner._tolerance or (by <= self._owner._inexact and gap < float("inf")):
            yield Meeting(node.name, by, gap, difference(mask, self._owner.dense(node)))
        else:
            self._open(node.name, cut, mask, by)

    def _outputs(self, node: fx.Node) -> Iterator[Meeting]:
        for output in node.all_input_nodes:
            if output.name in self._by:
                cut, mask, dense = (value(output) for value in (self._of_cut, self._of_mask, self._owner.dense))
                yield Meeting(output.name, self._by[output.name], difference(cut, mask), difference(mask, dense))

    def _open(self, name: str, cut: Any, mask: Any, by: Suspects) -> None:
        self._cut[name], self._mask[name], self._by[name] = cut, mask, by

    def _named(self, found: Iterable[str]) -> Suspects:
        """Those of some axes that are cut; if none is, anybody may be to blame."""
        return frozenset(self._keep & set(found)) or frozenset(self._keep)

    def _gate(self, node: fx.Node) -> Suspects:
        """Whose removal is felt at a value of the masked network; calls that only it has are run here."""
        if node.name in self._owner._dense or node.name in self._by:
            return self._by.get(node.name, _NOBODY)
        if node.op == "get_attr":
            gate = self._owner._gates.network.fetch(str(node.target))
            _, read = self._owner._gates.layouts[str(node.target)]
            by = _NOBODY if bool((gate == 1).all()) else self._named(axes(read))
        else:
            by = _NOBODY.union(*(self._gate(n) for n in node.all_input_nodes))
        if by:
            self._open(node.name, None, _run(self._owner._gates.network, node, self._of_mask), by)
        return by

    def _of_cut(self, node: fx.Node) -> Any:
        return self._cut[node.name] if node.name in self._by else self._owner.dense(node)

    def _of_mask(self, node: fx.Node) -> Any:
        return self._mask[node.name] if node.name in self._by else self._owner.dense(node)


def _run(network: Network, node: fx.Node, value: Callable[[fx.Node], Any], alone: bool = True) -> Any:
    """One node's value from those of its arguments; run alone, it writes into a copy."""
    if node.op == "get_attr":
        return network.fetch(str(node.target))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if alone and _writes(node):
        args = (args[0].clone(), *args[1:])
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _spelling(node: fx.Node) -> Any:
    """A call with the names of its arguments instead of the nodes: equal for calls that are the same."""
    return node.op, node.target, fx.node.map_arg((node.args, node.kwargs), lambda n: n.name)
