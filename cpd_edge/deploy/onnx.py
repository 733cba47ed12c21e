"""Network to ONNX, and the same cut made on the ONNX file in milliseconds.

`export_onnx` gives the file as the exporter writes it: every parameter is an initialiser under its
torch name and values are named after graph nodes, so `cut_onnx` can slice it by the layouts that
comb found. `finish` folds constants and batch norms and records where the file came from; that is
the file that is timed and shipped.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from cpd_edge.canonical import op_name
from cpd_edge.layout import Keep, Layout, Widths, axes, kept, size
from cpd_edge.network import Branch, Combed, Network, export, wrap

INPUT, OUTPUT = "input", "logits"
BATCH = "batch"
"""Name of the free first dimension in the exported file."""

_FX_NODE = "pkg.torch.onnx.fx_node"

_LAID_OUT = frozenset(["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
"""Operators that leave all numbers as they are."""

_NEARLY_ZERO = 1e-30
"""Nothing beside any activation, and far from where floats lose precision and processors slow down."""


@dataclass(frozen=True)
class Exported:
    """An ONNX file as the exporter wrote it, beside the graph that it was written from.

    Attributes:
        model: parameters are initialisers under their torch names, values are named after graph nodes.
        lowered: the exporter's own, decomposed graph: the one whose node names the file carries.
    """

    model: onnx.ModelProto
    lowered: Network


def export_onnx(network: Network) -> Exported:
    """Exports with a free batch size, unoptimised; vectors of zeros are nearly zero instead."""
    program = export(_laid_out(network), network.input_shape)
    with _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
    assert exported is not None
    model = exported.model_proto
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if symbol != BATCH:
        _rename_symbol(model, symbol)
    _keep_zeros(model)
    return Exported(model, wrap(exported.exported_program, network.input_shape))


def _laid_out(network: Network) -> fx.GraphModule:
    """The network, or a copy over the same parameters in which every attention is as the exporter wants it.

    Its kernels lay out their results as they like, and a view that fits the one it was traced with need not fit what
    the exporter makes of it: the result is copied. The exporter takes four dims: of more, those in front are one with
    the batch meanwhile; of three, there is one head. One with a mask is left at the dims that it has.
    """
    attentions = [node for node in network.graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    if not attentions:
        return network
    same: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, same))
    aten = torch.ops.aten
    for original in attentions:
        node = same[original]
        before = original.args[0].meta["val"].shape[:-3]  # type: ignore[union-attr]
        there: tuple[Any, ...] = (aten.flatten.using_ints, 0, len(before) - 1)
        back: tuple[Any, ...] = (aten.unflatten.int, 0, [-1, *before[1:]])
        if not before:
            there, back = (aten.unsqueeze.default, 1), (aten.squeeze.dim, 1)
        reshaped = len(before) != 1 and len(node.args) == 3 and "attn_mask" not in node.kwargs
        if reshaped:
            with graph.inserting_before(node):
                node.args = tuple(graph.call_function(there[0], (x, *there[1:])) for x in node.args)
        with graph.inserting_after(node):
            copied = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
        own = [copied]
        if reshaped:
            with graph.inserting_after(copied):
                own.append(graph.call_function(back[0], (copied, *back[1:])))
        node.replace_all_uses_with(own[-1], delete_user_cb=lambda user, own=own: user not in own)
    return fx.GraphModule(network, graph)


def finish(model: onnx.ModelProto, provenance: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Constants and batch norms folded, dead nodes removed, provenance in `metadata_props`."""
    from onnxscript import optimizer

    with _quiet():
        done = optimizer.optimize(model)
    for key, value in (provenance or {}).items():
        entry = done.metadata_props.add()
        entry.key, entry.value = f"cpd_edge.{key}", value
    return done


def survivors(names: Iterable[str], model: onnx.ModelProto, finished: onnx.ModelProto) -> dict[str, str]:
    """The values of a finished model that hold the numbers of an unfinished one's, where these are only laid out anew.

    Of two reshapes in a row `finish` leaves the second: what the first made is then what it was made of. An element of
    a sequence that a value was split into is then one of the results of a split.
    """
    alive = {out for node in finished.graph.node for out in node.output} | {i.name for i in finished.graph.input}
    producer = {out: node for node in model.graph.node for out in node.output}
    splits = {node.input[0]: node.output for node in finished.graph.node if node.op_type == "Split"}

    def alive_for(name: str) -> str:
        node = producer.get(name)
        if name in alive or node is None:
            return name
        if node.op_type in _LAID_OUT:
            return alive_for(node.input[0])
        if node.op_type == "SequenceAt":
            sequence, index = (producer.get(read) for read in node.input)
            parts = splits.get(alive_for(sequence.input[0])) if sequence is not None and sequence.input else None
            if parts and index is not None:
                return parts[int(numpy_helper.to_array(index.attribute[0].t))]
        return name

    return {name: alive_for(name) for name in names}


def written_as(network: Network, lowered: Network) -> dict[str, str]:
    """What each node of a network is called in the graph that its file was written from, as far as that is told.

    The exporter notes what it made a node of. Of several made of one, the last of its size has its numbers; one that
    nothing was made of, such as a dropout, passes on what it reads.
    """
    own, found = {node.name: node for node in network.graph.nodes}, dict[str, str]()
    for node in lowered.graph.nodes:
        origin = _origin(node, own)
        if origin is not None and _size(origin) == _size(node):
            found[origin.name] = node.name
    for node in network.graph.nodes:
        read = node.args[0] if node.args else None
        if node.name not in found and isinstance(read, fx.Node) and read.name in found and _size(read) == _size(node):
            found[node.name] = found[read.name]
    return found


def _origin(node: fx.Node, own: Mapping[str, fx.Node]) -> fx.Node | None:
    """The network's node that one of the exporter's was made of; of one result of several that which takes it."""
    named = [name for name in _sources(node.meta.get("from_node", ())) if name in own] or [node.name]
    origin = own.get(named[-1])
    if origin is None or node.target is not operator.getitem or isinstance(origin.meta.get("val"), Tensor):
        return origin
    return next((user for user in origin.users if user.args[1:] == node.args[1:]), None)


def _sources(sources: Iterable[Any]) -> Iterator[str]:
    """Names of the nodes that a node was made of, graph by graph back to the first."""
    for source in sources:
        yield source.name
        yield from _sources(source.from_node or ())


def _size(node: fx.Node) -> tuple[int | None, ...] | None:
    """Shape of the tensor that a node makes, None for a free dim; None where it makes no tensor."""
    value = node.meta.get("val")
    return tuple(n if type(n) is int else None for n in value.shape) if isinstance(value, Tensor) else None


def value_layouts(combed: Combed, written: Combed, names: Mapping[str, str]) -> dict[str, tuple[Layout, ...]]:
    """Layouts of every ONNX value whose name is a parameter's or a graph node's.

    Args:
        combed: the network's, which are taken wherever the file has the same value.
        written: those of the graph that the file was written from, for all that was made on the way.
        names: see `written_as`.
    """
    unknown = written.groups.widths.keys() - combed.groups.widths.keys()
    between = {name: dims for name, dims in written.values.items() if unknown.isdisjoint(axes(*dims))}
    own = dict[str, tuple[Layout, ...]]()
    for name, there in names.items():  # first what was made of a node, then what passes it on
        if name in combed.values:
            own.setdefault(there, combed.values[name])
    return {**between, **own, **combed.parameters}


@dataclass(frozen=True)
class OnnxCutter:
    """Cuts one exported model at any plan without exporting again.

    Attributes:
        model: the dense network as `export_onnx` wrote it.
        combed: the layouts of the graph that it was written from (`Exported.lowered`).
    """

    model: onnx.ModelProto
    combed: Combed

    def cut(self, keep: Keep) -> onnx.ModelProto:
        """The unfinished ONNX of the network without the units that `keep` leaves out."""
        out = onnx.ModelProto()
        out.CopyFrom(self._skeleton)
        for name, array in self._weights.items():
            dims = self.combed.parameters.get(name, ())
            for dim, layout in enumerate(dims):
                index = kept(layout, keep)
                if len(index) != array.shape[dim]:
                    array = np.take(array, index, axis=dim)
            out.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        widths = {name: len(units) for name, units in keep.items()}
        self._rewrite_shapes(out, widths)
        leave_out(out, self.combed.branches, widths)
        return out

    @cached_property
    def _skeleton(self) -> onnx.ModelProto:
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        del bare.graph.initializer[:]
        del bare.graph.value_info[:]
        return bare

    @cached_property
    def _weights(self) -> dict[str, npt.NDArray[np.generic]]:
        return {i.name: numpy_helper.to_array(i) for i in self.model.graph.initializer}

    @cached_property
    def _arguments(self) -> dict[str, dict[tuple[int, ...], Layout]]:
        out: dict[str, dict[tuple[int, ...], Layout]] = {}
        for argument in self.combed.shape_arguments:
            out.setdefault(argument.node, {})[argument.path] = argument.layout
        return out

    @cached_property
    def _free_dims(self) -> dict[str, list[bool]]:
        """Which dims of each graph node's value depend on the batch size."""
        nodes = [n for n in self.combed.network.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        return {n.name: [type(s) is not int for s in n.meta["val"].shape] for n in nodes}

    def _rewrite_shapes(self, model: onnx.ModelProto, widths: Mapping[str, int]) -> None:
        for node in model.graph.node:
            arguments = self._arguments.get(_fx_name(node))
            if not arguments:
                continue
            if node.op_type == "Conv" or node.op_type == "ConvTranspose":
                for attribute in node.attribute:
                    if attribute.name == "group":
                        (groups,) = arguments.values()
                        attribute.i = size(groups, widths)
            elif node.op_type in ("Reshape", "Expand") and node.output[0] in self._free_dims:
                unknown = -1 if node.op_type == "Reshape" else 1
                free, dims = self._free_dims[node.output[0]], self.combed.values[node.output[0]]
                sizes = [unknown if f else size(d, widths) for f, d in zip(free, dims, strict=True)]
                _set_input(model, node, 1, sizes)
            elif node.op_type in ("Split", "SplitToSequence"):
                _set_input(model, node, 1, [size(layout, widths) for _, layout in sorted(arguments.items())])
            elif node.op_type == "Slice":
                for position, path in ((1, (2,)), (2, (3,))):
                    if path in arguments:
                        _set_input(model, node, position, [size(arguments[path], widths)])


def leave_out(model: onnx.ModelProto, branches: Iterable[Branch], widths: Widths) -> None:
    """Values that come out of branches that go are read from what goes in; the rest is dead and is removed."""
    instead: dict[str, str] = {}
    for branch in branches:
        if widths.get(branch.name) == 0:
            instead[branch.last] = instead.get(branch.first, branch.first)
    if not instead:
        return
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = instead.get(name, name)
    needed = {output.name for output in model.graph.output}
    alive = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            alive.append(node)
    weights = [i for i in model.graph.initializer if i.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(alive))
    model.graph.initializer.extend(weights)


def _set_input(model: onnx.ModelProto, node: onnx.NodeProto, position: int, values: Sequence[int]) -> None:
    name = f"{node.output[0]}/{position}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
    node.input[position] = name


def _fx_name(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _FX_NODE:
            return entry.value.split(" ", 1)[0].removeprefix("%")
    return ""


def _keep_zeros(model: onnx.ModelProto) -> None:
    """Biases that are all zero, as before training, stay, and no two are equal.

    `finish` would drop them, or make one of several, and rename what they belong to. A network has then the same
    regions before and after it is trained, and a table of the one serves the other.
    """
    for number, i in enumerate(model.graph.initializer, 1):
        if len(i.dims) == 1 and i.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(i)
            if array.size and not array.any():
                i.CopyFrom(numpy_helper.from_array(np.full_like(array, number * _NEARLY_ZERO), i.name))


def _rename_symbol(model: onnx.ModelProto, symbol: str) -> None:
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for info in infos:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and through loggers; our stdout belongs to `--json`."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
