"""Where a module first differs from its graph: what goes into and out of every submodule is held to the graph's.

Tensors are told apart by fingerprints, so a witness of a large network is small. Which node of the graph a module's
tensor is shows in the dense network, where both compute the same; what it has to be after the cut, the cut graph says.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from cpd_edge.network import Network, source_line

_SAMPLES = 61
"""Elements of a tensor that its fingerprint holds, evenly spread, beside its means."""

Event: TypeAlias = tuple[str, int, str]
"""A module's path, the how-manieth of its calls, and `in` or `out`."""


@dataclass(frozen=True)
class Print:
    """The fingerprint of a tensor: its shape, its means, and elements spread over it."""

    shape: tuple[int, ...]
    values: Tensor

    def near(self, other: Print, tolerance: float) -> bool:
        """Whether two tensors are the same, up to a share of the second one's size."""
        if self.shape != other.shape:
            return False
        return bool((self.values - other.values).abs().max() <= tolerance * other.values.abs().max())


@dataclass(frozen=True)
class Deviation:
    """The first place where a module does not compute what the cut graph does.

    Attributes:
        module: path of the module whose own forward is wrong.
        call: the how-manieth of its calls.
        reached: how many tensors were right before.
        what: what differs, got against wanted, or what was raised.
        source: `file:line` of the user's code, where known.
        shape_fits: whether only values differ.
    """

    module: str
    call: int
    reached: int
    what: str
    source: str
    shape_fits: bool = False


class Witness:
    """What every submodule of a model has to take and give after a cut.

    Args:
        model: the dense module, in eval mode.
        dense: its graph, with the same parameters.
        small: the cut graph.
        inputs: what both are run on, `[batch, ...]`.
        tolerance: largest relative difference between equal tensors.
    """

    def __init__(self, model: nn.Module, dense: Network, small: Network, inputs: Tensor, tolerance: float) -> None:
        self.inputs, self.tolerance = inputs, tolerance
        self._small = {node.name: node for node in small.graph.nodes}
        self._wanted = _prints(small, inputs)
        by_shape: dict[tuple[int, ...], list[tuple[str, Print]]] = {}
        for name, found in _prints(dense, inputs).items():
            by_shape.setdefault(found.shape, []).append((name, found))
        self._events: dict[Event, list[tuple[str, ...]]] = {}
        events = self._events

        def learn(event: Event, found: list[Print]) -> None:
            events[event] = [
                tuple(name for name, known in by_shape.get(one.shape, ()) if one.near(known, tolerance))
                for one in found
            ]

        with torch.no_grad(), _watched(model, learn, []):
            model(inputs)

    def deviation(self, model: nn.Module) -> Deviation | None:
        """Runs a cut module up to the first tensor that is not the cut graph's; None if there is none."""
        stack: list[tuple[str, int]] = []
        reached = 0

        def check(event: Event, found: list[Print]) -> None:
            nonlocal reached
            nodes = self._events.get(event)
            if nodes is not None and len(nodes) == len(found):
                for one, names in zip(found, nodes, strict=True):
                    wanted = [self._wanted[name] for name in names if name in self._wanted]
                    if wanted and not any(one.near(want, self.tolerance) for want in wanted):
                        blamed = stack[-1] if event[2] == "out" or len(stack) < 2 else stack[-2]
                        raise _Wrong(blamed, event, one, wanted[-1], names[-1])
            reached += 1

        try:
            with torch.no_grad(), _watched(model, check, stack):
                model(self.inputs)
        except _Wrong as wrong:
            where = f"{'the input' if wrong.event[2] == 'in' else 'the output'} of {wrong.event[0] or 'the model'}"
            fits = wrong.got.shape == wrong.want.shape
            what = "has other values" if fits else f"is {list(wrong.got.shape)}, the graph's {list(wrong.want.shape)}"
            source = source_line(self._small[wrong.node])
            return Deviation(*wrong.blamed, reached, f"{where} {what}", source, fits)
        except Exception as error:  # whatever the user's forward raises over a width that does not fit
            text = str(error).strip().partition("\n")[0]
            path, call = stack[-1] if stack else ("", 0)
            said = f"{type(error).__name__}: {text}" if text else type(error).__name__
            return Deviation(path, call, reached, said, _line(error))
        return None


class _Wrong(Exception):
    """A tensor differs; carries what and where."""

    def __init__(self, blamed: tuple[str, int], event: Event, got: Print, want: Print, node: str) -> None:
        super().__init__(str(event))
        self.blamed, self.event, self.got, self.want, self.node = blamed, event, got, want, node


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a call's arguments or results, in order, also those of plain objects such as model outputs."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dataclass_fields__"):
            found += tensors_in([getattr(leaf, name) for name in leaf.__dataclass_fields__])
    return found


def relative_difference(got: Any, want: Any) -> float:
    """Largest difference between the tensors of two outputs, of the largest element wanted; inf if shapes differ."""
    ours, theirs = tensors_in(got), tensors_in(want)
    if not theirs or [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        gap, most = (a.double() - b.double()).abs().max(), b.double().abs().max()
        worst = max(worst, float(gap / most) if most > 0 else float(gap))
        if gap.isnan():
            return float("inf")
    return worst


def fingerprint(tensor: Tensor) -> Print:
    """A tensor's shape, mean, absolute mean and up to 61 of its elements."""
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if not flat.numel():
        return Print(tuple(tensor.shape), torch.zeros(1, dtype=torch.float64))
    at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel())).long().to(flat.device)
    whole = flat.double()
    means = torch.stack([whole.mean(), whole.abs().mean()])
    return Print(tuple(tensor.shape), torch.cat([means, whole[at]]).nan_to_num(0.0, 1e300, -1e300).cpu())


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps a fingerprint of every tensor."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.prints: dict[str, Print] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, fingerprinted before a later call may change it in place."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op in ("call_function", "placeholder"):
            self.prints[n.name] = fingerprint(value)
        return value


def _prints(network: Network, inputs: Tensor) -> Mapping[str, Print]:
    recorder = _Recorder(network)
    with torch.no_grad():
        recorder.run(inputs)
    return recorder.prints


@contextlib.contextmanager
def _watched(model: nn.Module, see: Any, stack: list[tuple[str, int]]) -> Iterator[None]:
    """Calls `see` with the fingerprints of what goes in and out of every submodule; `stack` holds the open calls."""
    counts: dict[str, int] = {}
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            counts[path] = counts.get(path, -1) + 1
            stack.append((path, counts[path]))
            see((*stack[-1], "in"), [fingerprint(t) for t in tensors_in((args, kwargs))])

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            see((*stack[-1], "out"), [fingerprint(t) for t in tensors_in(output)])
            stack.pop()

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))

    for path, module in model.named_modules():
        watch(path, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _line(error: BaseException) -> str:
    """The innermost line of an error that is neither torch's nor ours."""
    ours = (Path(torch.__file__).parent, Path(__file__).parent)
    found = [
        f for f in traceback.extract_tb(error.__traceback__) if not any(o in Path(f.filename).parents for o in ours)
    ]
    return f"{found[-1].filename}:{found[-1].lineno}" if found else ""
