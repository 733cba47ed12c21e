"""Where a module first differs from its graph: what goes into and out of every submodule is held to the graph's.

Tensors are told apart by fingerprints, so a witness of a large network is small. Which node of the graph a module's
tensor is shows in the dense network, where both compute the same; what it has to be after the cut, the cut graph says.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cpd_edge.cut.writeback.prints import Print, fingerprint, prints, tensors_in
from cpd_edge.network import Network, source_line

Event: TypeAlias = tuple[str, int, str]
"""A module's path, the how-manieth of its calls, and `in` or `out`."""


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


@dataclass(frozen=True)
class Entry:
    """A call of a submodule, ready to be made again on its own.

    Attributes:
        module: its path.
        args, kwargs: what it is given.
        counts: the last call of each submodule before it.
        reached: how many tensors were right before.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    counts: Mapping[str, int]
    reached: int


class Witness:
    """What every submodule of a model has to take and give after a cut.

    Args:
        model: the dense module, in eval mode.
        dense: its graph, with the same parameters.
        small: the cut graph.
        inputs: what both are run on, `[batch, ...]`.
        tolerance: largest relative difference between equal tensors.
        instead: the node whose value takes the place of another's, where a branch is left out.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: Network,
        small: Network,
        inputs: Tensor,
        tolerance: float,
        instead: Mapping[str, str],
    ) -> None:
        self.inputs, self.tolerance = inputs, tolerance
        self._nodes = {node.name: node for node in small.graph.nodes}
        self.expect(prints(small, inputs))
        by_shape: dict[tuple[int, ...], list[tuple[str, Print]]] = {}
        for name, found in prints(dense, inputs).items():
            by_shape.setdefault(found.shape, []).append((name, found))
        self._events: dict[Event, list[tuple[str, ...]]] = {}
        events = self._events

        def learn(event: Event, found: list[Print]) -> None:
            events[event] = [
                tuple(
                    instead.get(name, name) for name, known in by_shape.get(one.shape, ()) if one.near(known, tolerance)
                )
                for one in found
            ]

        with torch.no_grad(), _watched(model, learn, [], {}):
            model(inputs)

    def expect(self, wanted: Mapping[str, Print]) -> None:
        """From now on these are the cut graph's values, by node."""
        self._wanted = wanted

    def entry(self, model: nn.Module, wrong: Deviation) -> Entry:
        """What the module that was wrong is given, by a run up to there."""
        counts: dict[str, int] = {}
        reached = 0

        def count(event: Event, found: list[Print]) -> None:
            nonlocal reached
            reached += 1

        def stop(path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if (path, counts.get(path, -1) + 1) == (wrong.module, wrong.call):
                raise _Stop(pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs)))

        try:
            with torch.no_grad(), _watched(model, count, [], counts, stop):
                model(self.inputs)
        except _Stop as stopped:
            return Entry(wrong.module, *stopped.given, dict(counts), reached)
        raise AssertionError(f"{wrong.module} is not called {wrong.call + 1} times any more")

    def deviation(self, model: nn.Module, entry: Entry | None = None) -> Deviation | None:
        """Runs a cut module up to the first tensor that is not the cut graph's; None if there is none.

        Args:
            model: the module.
            entry: run only this call of a submodule.
        """
        stack: list[tuple[str, int]] = []
        reached = entry.reached if entry else 0

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
            with torch.no_grad(), _watched(model, check, stack, dict(entry.counts) if entry else {}):
                if entry is None:
                    model(self.inputs)
                else:
                    args, kwargs = pytree.tree_map(
                        lambda x: x.clone() if isinstance(x, Tensor) else x, (entry.args, entry.kwargs)
                    )
                    model.get_submodule(entry.module)(*args, **kwargs)
        except _Wrong as wrong:
            where = f"{'the input' if wrong.event[2] == 'in' else 'the output'} of {wrong.event[0] or 'the model'}"
            fits = wrong.got.shape == wrong.want.shape
            what = "has other values" if fits else f"is {list(wrong.got.shape)}, the graph's {list(wrong.want.shape)}"
            source = source_line(self._nodes[wrong.node])
            return Deviation(*wrong.blamed, reached, f"{where} {what}", source, fits)
        except Exception as error:  # whatever the user's forward raises over a width that does not fit
            text = str(error).strip().partition("\n")[0]
            path, call = stack[-1] if stack else ("", 0)
            said = f"{type(error).__name__}: {text}" if text else type(error).__name__
            return Deviation(path, call, reached, said, _line(error))
        return None


class _Stop(Exception):
    """The call that was looked for begins; carries its arguments."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given


class _Wrong(Exception):
    """A tensor differs; carries what and where."""

    def __init__(self, blamed: tuple[str, int], event: Event, got: Print, want: Print, node: str) -> None:
        super().__init__(str(event))
        self.blamed, self.event, self.got, self.want, self.node = blamed, event, got, want, node


@contextlib.contextmanager
def _watched(
    model: nn.Module,
    see: Callable[[Event, list[Print]], None],
    stack: list[tuple[str, int]],
    counts: dict[str, int],
    enter: Callable[[str, tuple[Any, ...], Mapping[str, Any]], None] = lambda *_: None,
) -> Iterator[None]:
    """Shows the fingerprints of what goes in and out of every submodule.

    Args:
        model: the module.
        see: gets each event and its tensors.
        stack: holds the open calls, outermost first.
        counts: holds the last call of each submodule.
        enter: gets the arguments of each call before it counts.
    """
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            enter(path, args, kwargs)
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
