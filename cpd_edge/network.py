"""The traced network: an exported graph that is still an ordinary module.

`torch.export` gives a graph of ATen calls with the original parameter names. `Network` makes it a
`torch.nn.Module` again: `train()` and `eval()` switch the mode that batch-norm and dropout calls
carry as an argument, so it trains, saves and exports like the user's own module, without his class.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import sysconfig
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.node import map_aggregate
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from cpd_edge.canonical import TRAINING_ARGUMENT, canonical, op_name
from cpd_edge.errors import ModelError
from cpd_edge.layout import Layout
from cpd_edge.store import write_with
from cpd_edge.types import Groups

DAMAGED = "it is damaged, or another file was meant; a run is started again with a new --out"
REMADE = "it is damaged: delete it and add --resume, or start again with a new --out"
_BATCH = 2
"""Batch size of the traced example. 0 and 1 would be specialised away."""


class Network(fx.GraphModule):
    """An exported graph with its parameters under their original names.

    Attributes:
        input_shape: shape of one input `(c, h, w)`, without the batch.
    """

    input_shape: tuple[int, ...]

    def train(self, mode: bool = True) -> Network:
        """Puts batch-norm and dropout calls into training mode, or back."""
        changed = False
        for node in self.graph.nodes:
            at = TRAINING_ARGUMENT.get(op_name(node))
            if at is not None and node.args[at] is not mode and not _keeps_no_statistics(node):
                node.update_arg(at, mode)
                changed = True
        if changed:
            self.recompile()
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Network:
        """The same as `train(False)`."""
        return self.train(False)

    def double(self) -> Network:
        """The same network in float64, the types that its calls ask for included."""
        super().double()
        self._ask_for(lambda asked: torch.float64 if asked is torch.float32 else asked)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        """What every move of a module comes to; the calls that make tensors of their own then make them there."""
        super()._apply(fn, recurse)
        where = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        if where is not None:
            self._ask_for(lambda asked: where if isinstance(asked, torch.device) else asked)
        return self

    def _ask_for(self, change: Callable[[Any], Any]) -> None:
        """Changes what calls are given, wherever it stands among their arguments."""
        changed = False
        for node in self.graph.nodes:
            before = node.args, node.kwargs
            node.args, node.kwargs = map_aggregate(node.args, change), map_aggregate(node.kwargs, change)
            changed = changed or before != (node.args, node.kwargs)
        if changed:
            self.recompile()

    def example(self, batch: int = _BATCH, seed: int = 0) -> Tensor:
        """Seeded standard-normal inputs `[batch, *input_shape]`, of the parameters' device and type."""
        return _example(self, batch, self.input_shape, seed)

    def fetch(self, name: str) -> Any:
        """What a call reads under a dotted name: a parameter, a buffer or a constant tensor."""
        found: Any = self
        for step in name.split("."):
            found = getattr(found, step)
        return found

    def refresh(self) -> None:
        """Recompiles after the graph or its parameters changed, and brings the recorded shapes up to date.

        What combs, exports or reports a network reads the shapes that are recorded at its calls.
        """
        self.recompile()
        (given,) = (node.meta["val"] for node in self.graph.nodes if node.op == "placeholder")
        like = next((p for p in self.parameters() if p.is_floating_point()), given)
        with given.fake_mode:
            given = given.to(like.dtype)
        with enable_python_dispatcher():
            FakeTensorProp(self, given.fake_mode).propagate_dont_convert_inputs(given)

    def clone(self) -> Network:
        """An independent copy: own graph, own parameters."""
        return _network(copy.deepcopy(self), self.input_shape)


@dataclass(frozen=True)
class ShapeArgument:
    """An integer in a call that equals the extent of a layout and is rewritten after a cut.

    Attributes:
        node: name of the call.
        path: where in its positional arguments, outermost index first.
        layout: whose extent it is.
    """

    node: str
    path: tuple[int, ...]
    layout: Layout


@dataclass(frozen=True)
class Contraction:
    """A dim that a call sums away, so that it reads the units there.

    Attributes:
        node: name of the call.
        path: where in its arguments the tensor stands that is read, outermost position first.
        dim: the dim of that tensor.
        layout: what is read of the dim.
        passing: what goes on in the call's result instead, such as the groups of a convolution: the outer part.
    """

    node: str
    path: tuple[int, ...]
    dim: int
    layout: Layout
    passing: Layout


@dataclass(frozen=True)
class Branch:
    """A run of calls whose result has the layout of what goes in, so that it can be left out whole.

    Attributes:
        name: the group of one unit that stands for it.
        first: name of the node that goes in; it takes the place of `last`.
        last: name of the node that comes out.
        inside: names of the calls that go with it, `last` among them.
    """

    name: str
    first: str
    last: str
    inside: frozenset[str]


@dataclass(frozen=True)
class Combed:
    """A network with its dependencies resolved: everything a cut needs to know.

    Attributes:
        network: the dense network, in original coordinates.
        groups: what may be removed, and what may not.
        parameters: layout of each dim of each parameter and buffer, by name.
        values: layout of each dim of each tensor that a call makes, by node name.
        shape_arguments: the integers in the graph that follow the widths.
        contractions: where units are read.
        branches: what can be left out whole, in graph order.
    """

    network: Network
    groups: Groups
    parameters: Mapping[str, tuple[Layout, ...]]
    values: Mapping[str, tuple[Layout, ...]]
    shape_arguments: tuple[ShapeArgument, ...]
    contractions: tuple[Contraction, ...] = ()
    branches: tuple[Branch, ...] = ()


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """Exports a module, in eval mode and with a free batch size, into a `Network` that computes the same.

    Args:
        model: any module that takes one tensor `[batch, *input_shape]`. It is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        ModelError: the model cannot be exported; names the user's own line.
    """
    if isinstance(model, Network):
        return model.clone()
    return wrap(export(model, input_shape), input_shape)


def wrap(program: torch.export.ExportedProgram, input_shape: tuple[int, ...]) -> Network:
    """An exported program as a `Network`, in eval mode."""
    return _network(program.module(check_guards=False), input_shape)


def export(model: nn.Module, input_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The `ExportedProgram` of a module in eval mode, with a free batch size.

    Raises:
        ModelError: see `trace`.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    example = _example(model, _BATCH, input_shape, 0)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it prints the whole graph before it raises
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # torch.export raises whatever the user's forward raises
        raise ModelError(
            f"{type(model).__name__} cannot be exported: {_first_line(error)}{_user_line(error)}",
            hint="it must be traceable by torch.export with one tensor of the shape that the data has, or --input: "
            f"here {('batch', *input_shape)}",
        ) from error
    finally:
        model.train(modes[0][1])
        for module, mode in modes:
            module.training = mode


def save(network: Network, path: Path) -> None:
    """Saves as `.pt2`, which loads with `torch.export.load(path).module()`, without this package.

    Raises:
        StoreError: the file cannot be written; what was there is whole.
    """
    program = export(network, network.input_shape)
    write_with(path, lambda stream: torch.export.save(program, stream))


def load(path: Path, damaged: str = DAMAGED) -> Network:
    """Inverse of `save`; takes any `.pt2` with one tensor input. `damaged` is the hint where the file is no program.

    Raises:
        ModelError: the file is not a `.pt2`, or its program takes something else.
    """
    logger = logging.getLogger("torch.export")  # it tells of what is raised as well
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not an exported program: {_first_line(error)}", hint=damaged) from error
    finally:
        logger.setLevel(level)
    given = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(given) != 1 or not isinstance(given[0], Tensor) or type(given[0].shape[0]) is int:
        shapes = ", ".join(str(tuple(value.shape)) if isinstance(value, Tensor) else str(value) for value in given)
        raise ModelError(
            f"{path} takes {shapes}, wanted one tensor with a free batch size",
            hint="export it with: dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=4096)},)",
        )
    return wrap(program, tuple(int(size) for size in given[0].shape[1:]))


def _example(model: nn.Module, batch: int, input_shape: tuple[int, ...], seed: int) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(1))
    return torch.randn(batch, *input_shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _network(module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    assert isinstance(module, fx.GraphModule)
    graph = copy.deepcopy(module.graph)
    canonical(module, graph)
    network = Network(module, graph)
    used = {id(network.fetch(str(node.target))) for node in graph.nodes if node.op == "get_attr"}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if id(tensor) in used:  # what no call takes, such as a head that only training needs, stays behind
            _attach(network, name, tensor, "parameter")
    for name, tensor in module.named_buffers(remove_duplicate=False):
        _attach(network, name, tensor, "buffer")
    network.input_shape = tuple(input_shape)
    return network.eval()


def _keeps_no_statistics(node: fx.Node) -> bool:
    """Whether a norm has no running statistics, so that it takes the batch's own in either mode."""
    return op_name(node) in ("batch_norm", "instance_norm") and node.args[3] is None


def _attach(root: nn.Module, name: str, tensor: Tensor, kind: str) -> None:
    *path, last = name.split(".")
    owner = root
    for step in path:
        if not hasattr(owner, step):
            owner.add_module(step, nn.Module())
        owner = getattr(owner, step)
    if last in owner._parameters or last in owner._buffers:
        return
    if kind == "parameter":
        assert isinstance(tensor, nn.Parameter)
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _user_line(error: BaseException) -> str:
    """The innermost line that is neither torch's, nor Python's, nor ours."""
    torchs, ours, python = Path(torch.__file__).parent, Path(__file__).parent, Path(sysconfig.get_path("stdlib"))

    def users(file: Path) -> bool:
        pythons = python in file.parents and "site-packages" not in file.parts
        return not pythons and torchs not in file.parents and ours not in file.parents

    theirs = [f for f in traceback.extract_tb(error.__traceback__) if f.line and users(Path(f.filename))]
    return f"\n  at {theirs[-1].filename}:{theirs[-1].lineno}: {theirs[-1].line}" if theirs else ""


def source_line(node: fx.Node) -> str:
    """`file:line` of the user's code that made a node, from here or from the root, whichever is shorter; or ''."""
    stack: Any = node.meta.get("stack_trace") or ""
    library = str(Path(torch.__file__).parent)
    found = ""
    for line in stack.splitlines():
        text = line.strip()
        if text.startswith('File "') and library not in text:
            name, number = text.split('"')[1], text.split("line ")[1].split(",")[0]
            found = f"{min(name, os.path.relpath(name), key=len)}:{number}"
    return found
