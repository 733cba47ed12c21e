"""Branches that go whole, in the user's module: what stood in them gives way to a stand-in that passes its input on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from cpd_edge.canonical import op_name
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network


class Absent(nn.Module):
    """Stands where a module was left out with its branch: gives back its first argument, or zeros of its shape.

    Args:
        zeros: whether what comes out is added to what the branch is left out for.
        results: how many results the module gave as a tuple, the first of them a tensor; 0 if it gave one tensor.
    """

    def __init__(self, *, zeros: bool = False, results: int = 0) -> None:
        super().__init__()
        self.zeros, self.results = zeros, results

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        """The first argument, or zeros; further results are None."""
        out = torch.zeros_like(x) if self.zeros else x
        return (out, *[None] * (self.results - 1)) if self.results else out

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"zeros={self.zeros}"


def passed_on(combed: Combed, keep: Keep) -> dict[str, str]:
    """By the name of each node that goes with a branch, the one whose value takes the place of its value."""
    found: dict[str, str] = {}
    for branch in combed.branches:
        if branch.name in keep and len(keep[branch.name]) == 0:
            found[branch.last] = found.get(branch.first, branch.first)
    return found


def absences(model: nn.Module, combed: Combed, small: Network, run: Callable[[nn.Module], object]) -> dict[str, Absent]:
    """Stand-ins, by path, for the outermost modules all of whose calls a cut left out.

    Where a branch ends in an addition that a module outside of it makes, its modules give zeros, new ones each, for
    what lies between may work in place. Otherwise they pass on what they are given.

    Args:
        model: the dense module.
        combed: its graph.
        small: the cut graph.
        run: calls the module once, to see how many results its submodules give.
    """
    nodes = {node.name: node for node in combed.network.graph.nodes if node.op == "call_function"}
    there = {node.name for node in small.graph.nodes}
    branches = [branch for branch in combed.branches if branch.last not in there]
    left_out = {name for branch in branches for name in branch.inside if name in nodes} - there
    stay = {path for name in nodes.keys() & there for path in _modules(nodes[name])}
    gone = {path for name in left_out for path in _modules(nodes[name])} - stay
    outermost = {path for path in gone if not any(path.startswith(f"{other}.") for other in gone)}
    zeros = set()
    for branch in branches:
        last = nodes[branch.last]
        if op_name(last) in ("add", "add_") and gone.isdisjoint(_modules(last)):
            zeros |= {path for name in branch.inside & left_out for path in _modules(nodes[name]) if path in outermost}
    results = _results(model, outermost, run) if outermost else {}
    return {path: Absent(zeros=path in zeros, results=results.get(path, 0)) for path in sorted(outermost)}


def _modules(node: fx.Node) -> list[str]:
    """Paths of the modules that a call stands in."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def replace_modules(model: nn.Module, instead: Mapping[str, nn.Module]) -> None:
    """Puts other modules in place, under every name that the old ones have."""
    old = {id(model.get_submodule(path)): new for path, new in instead.items()}
    for module in list(model.modules()):
        for name, held in module._modules.items():
            if id(held) in old:
                module._modules[name] = old[id(held)].train(held.training)  # type: ignore[union-attr]


def _results(model: nn.Module, paths: set[str], run: Callable[[nn.Module], object]) -> dict[str, int]:
    found: dict[str, int] = {}

    def watch(path: str) -> Any:
        def after(module: nn.Module, args: object, output: object) -> None:
            found[path] = len(output) if isinstance(output, tuple) else 0

        return model.get_submodule(path).register_forward_hook(after)

    handles = [watch(path) for path in paths]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
