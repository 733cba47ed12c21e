"""ONNX in half precision, for runtimes that take the types from the file (TensorRT from 11, TensorRT-RTX).

Inputs and outputs keep their types. What half precision spoils stays in fp32, with casts around it: norms, softmax and
other sums of powers, whatever the caller names, and nodes whose weights do not fit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.errors import ModelError

FULL = frozenset(
    """
    BatchNormalization CumSum DynamicQuantizeLinear Exp GroupNormalization InstanceNormalization LRN LayerNormalization
    Log LogSoftmax LpNormalization MeanVarianceNormalization NonMaxSuppression Pow RMSNormalization RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMean ReduceProd ReduceSum ReduceSumSquare Softmax Sqrt
    """.split()  # noqa: SIM905
)
"""Operators that stay in fp32: they square, exponentiate or sum, where 65504 and eleven bits are not enough."""

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
_QUANTIZE = frozenset(["QuantizeLinear", "DequantizeLinear"])
_TYPED_SCALES_OPSET = 19
"""From this opset on, scales of quantisation may be of half precision."""
_ALWAYS_FULL_INPUTS: Mapping[str, frozenset[int]] = {"Resize": frozenset([1, 2]), "Upsample": frozenset([1])}
"""Inputs that the standard holds at fp32 whatever the others are."""


@dataclass(frozen=True)
class Typed:
    """A model in half precision.

    Attributes:
        model: the typed model.
        kept: names of the compute nodes that stayed in fp32, with the reason.
    """

    model: onnx.ModelProto
    kept: Mapping[str, str]


def half_precision(model: onnx.ModelProto, fp32_layers: Collection[str] = ()) -> Typed:
    """The model with its arithmetic in fp16.

    Args:
        model: in fp32; quantised parts (Q/DQ) keep their integers.
        fp32_layers: patterns (`*norm*`, `node_Conv_3`) of node names, or of the modules they come from, that stay.

    Raises:
        ModelError: control flow, or a type that cannot be inferred.
    """
    return _Conversion(model, fp32_layers).run()


def matches(node: onnx.NodeProto, patterns: Collection[str]) -> bool:
    """Whether a node's name, that of the node whose place it takes, or its torch module fits one of the patterns."""
    names = (node.name, node.name.rpartition("/")[0], scope(node))
    return any(fnmatch.fnmatchcase(name, pattern) for name in names if name for pattern in patterns)


def scope(node: onnx.NodeProto) -> str:
    """The torch module that a node comes from (`layer1.0.bn1`), or ''."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [s.strip().strip("'\"") for s in entry.value.strip("[]").split(",")]
            return next((s for s in reversed(scopes[:-1]) if s), "")
    return ""


class _Conversion:
    """One pass over the nodes in order, casting where a tensor crosses between the two types."""

    def __init__(self, model: onnx.ModelProto, patterns: Collection[str]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.patterns = patterns
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.weights = {i.name: i for i in model.graph.initializer}
        self.floats = _float_tensors(model)
        self.half: set[str] = set()
        self.casts: dict[tuple[str, bool], str] = {}
        self.added: dict[str, onnx.TensorProto] = {}
        self.kept: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> Typed:
        graph = self.model.graph
        for node in list(graph.node):
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) is control flow, which is not converted to fp16",
                    hint="build with --precision fp32, or export the model without control flow",
                )
            self._convert(node)
        self._restore_outputs()
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input} | {o.name for o in graph.output}
        kept = [i for i in graph.initializer if i.name in read]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self.added.values()])
        return Typed(self.model, self.kept)

    def _convert(self, node: onnx.NodeProto) -> None:
        """Appends the node in the precision that suits it, behind the casts that it needs."""
        why = self._reason_for_full(node)
        if why and any(x in self.floats for x in (*node.input, *node.output)):
            self.kept[node.name or node.output[0]] = why
        full_inputs = _ALWAYS_FULL_INPUTS.get(node.op_type, frozenset())
        for i, name in enumerate(node.input):
            if name in self.floats and not (node.op_type == "Cast" and why):
                node.input[i] = self._as(name, half=not why and i not in full_inputs)
        if not why:
            _retype(node)
            self.half |= {x for x in node.output if x in self.floats}
        self.nodes.append(node)

    def _reason_for_full(self, node: onnx.NodeProto) -> str:
        """Why a node stays in fp32, or ''."""
        if node.domain not in ("", "ai.onnx"):
            return f"operator of {node.domain}"
        if node.op_type in FULL:
            return "needs the range of fp32"
        if matches(node, self.patterns):
            return "asked for"
        arrays = [numpy_helper.to_array(self.weights[x]) for x in node.input if x in self.weights and x in self.floats]
        if node.op_type in _QUANTIZE:
            if self.opset < _TYPED_SCALES_OPSET:
                return f"opset {self.opset} has fp32 scales only"
            if any(a.size and float(np.abs(a).min()) < _SMALLEST_SCALE for a in arrays):
                return "its scale is too small for fp16"
        overflows = any(a.size and float(np.abs(a).max()) > _LARGEST for a in arrays)
        return "a weight is too large for fp16" if overflows else ""

    def _as(self, name: str, half: bool) -> str:
        """The tensor in the type wanted: itself, a converted weight, or behind a cast."""
        if name in self.weights:
            return self._weight(name) if half else name
        if (name in self.half) == half:
            return name
        key = (name, half)
        if key not in self.casts:
            made = f"{name}/{'fp16' if half else 'fp32'}"
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [made], f"{made}_cast", to=to))
            self.casts[key] = made
        return self.casts[key]

    def _weight(self, name: str) -> str:
        made = f"{name}/fp16"
        if made not in self.added:
            self.added[made] = numpy_helper.from_array(
                numpy_helper.to_array(self.weights[name]).astype(np.float16), made
            )
        return made

    def _restore_outputs(self) -> None:
        """Casts outputs that became fp16 back to their type, under their own names."""
        for output in self.model.graph.output:
            if output.name not in self.half:
                continue
            inner = f"{output.name}/inner"
            for node in self.nodes:
                node.input[:] = [inner if x == output.name else x for x in node.input]
                node.output[:] = [inner if x == output.name else x for x in node.output]
            cast = helper.make_node("Cast", [inner], [output.name], f"{output.name}/fp32_cast", to=TensorProto.FLOAT)
            self.nodes.append(cast)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all fp32 tensors.

    Raises:
        ModelError: a type is not known, and then neither is what to cast.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {i.name: i.data_type for i in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    for node in graph.node:
        missing = [name for name in node.output if name and not types.get(name)]
        if missing:
            raise ModelError(
                f"the type of {missing[0]!r}, which node {node.name!r} ({node.op_type}) writes, cannot be inferred",
                hint="build with --precision fp32",
            )
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _retype(node: onnx.NodeProto) -> None:
    """Turns the fp32 types and tensors among a node's attributes to fp16."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
    short = [a for a in node.attribute if a.name in ("value_float", "value_floats")]
    if short:
        array = np.asarray(short[0].f if short[0].name == "value_float" else list(short[0].floats), np.float16)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array)))


__all__ = ["FULL", "Typed", "half_precision", "matches", "scope"]
