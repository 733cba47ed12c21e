"""Models as TensorRT reads them from 8.5 on: in the forms of opset 17, with the shapes of kernels said.

TensorRT before 10 does not refuse a later form: it takes it for the earlier one and computes something else, such as
the mean over all dims where the dims to take it over have become an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference

OPSET = 17

Constants = Mapping[str, onnx.TensorProto]

_CHANGED = frozenset(["DFT", "GridSample"])
"""Operators that say other things with the same words since."""
_LATER: Mapping[str, tuple[str, frozenset[bytes]]] = {
    "Pad": ("mode", frozenset([b"wrap"])),
    "Resize": ("coordinate_transformation_mode", frozenset([b"half_pixel_symmetric"])),
    "ScatterElements": ("reduction", frozenset([b"max", b"min"])),
    "ScatterND": ("reduction", frozenset([b"max", b"min"])),
}
"""Values of an attribute that came later than the attribute."""


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as every TensorRT reads it; values and nodes keep their names. The given one is left alone.

    Its opset stays where a node has no form in 17. A node fits if the earlier operator has its inputs, attributes and
    types. What does not fit is rewritten; nodes that take the place of one are called after it: `NAME/Div1`,
    `NAME/Erf2`.
    """
    out = _earlier(model)
    kernels = {entry.name: list(entry.dims) for entry in out.graph.initializer}
    for node in out.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in kernels:
            kernels[node.output[0]] = kernels[node.input[0]]
        convolves = node.op_type in ("Conv", "ConvTranspose") and node.input[1] in kernels
        if convolves and not any(a.name == "kernel_shape" for a in node.attribute):
            # one that is no constant, such as one of integers, counts as 1 wide otherwise
            node.attribute.append(helper.make_attribute("kernel_shape", kernels[node.input[1]][2:]))
    return out


def misfit(model: onnx.ModelProto) -> str:
    """The first node of a readable model that has no form in opset 17, or ''."""
    if _declared(model) <= OPSET:
        return ""
    constants = _constants(model)
    made = ((node, _rewritten(_plain(node, _declared(model)), constants)) for node in model.graph.node)
    late = (f"{node.name or node.output[0]} ({node.op_type})" for node, new in made if not all(map(_fits, new)))
    return next(late, "a type that came later")


def _earlier(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in opset 17, or in its own where it has no form there."""
    same, out = onnx.ModelProto(), onnx.ModelProto()
    same.CopyFrom(model)
    if _declared(model) <= OPSET or model.functions:
        return same
    constants = _constants(model)
    nodes = [made for node in model.graph.node for made in _rewritten(_plain(node, _declared(model)), constants)]
    if not all(map(_fits, nodes)):
        return same
    out.CopyFrom(model)
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    for entry in out.opset_import:
        if _is_own(entry.domain):
            entry.version = OPSET
    used = {name for node in nodes for name in node.input} | {value.name for value in out.graph.output}
    kept = [entry for entry in out.graph.initializer if entry.name in used]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept)
    try:
        shape_inference.infer_shapes(out, check_type=True, strict_mode=True)
    except shape_inference.InferenceError:  # a type that the earlier operator does not take
        return same
    return out


def _is_own(domain: str) -> bool:
    return domain in ("", "ai.onnx")


def _declared(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if _is_own(entry.domain)), OPSET)


def _constants(model: onnx.ModelProto) -> Constants:
    """What is known by name: initialisers, and nodes that hold a tensor."""
    held = {
        n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    }
    return held | {entry.name: entry for entry in model.graph.initializer}


def _plain(node: onnx.NodeProto, declared: int) -> onnx.NodeProto:
    """The node without attributes that say what goes without saying."""
    try:
        known = defs.get_schema(node.op_type, declared, node.domain).attributes
    except defs.SchemaError:
        return node
    out = onnx.NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    for given in node.attribute:
        usual = known[given.name].default_value if given.name in known else None
        if usual is None or not usual.type or helper.get_attribute_value(usual) != helper.get_attribute_value(given):
            out.attribute.append(given)
    return out


def _fits(node: onnx.NodeProto) -> bool:
    """Whether opset 17 says the same with the node as it stands. What holds graphs of its own is not looked into."""
    if not _is_own(node.domain):
        return True
    try:
        schema = defs.get_schema(node.op_type, OPSET)
    except defs.SchemaError:
        return False
    given = {attribute.name: attribute for attribute in node.attribute}
    attribute, later = _LATER.get(node.op_type, ("", frozenset[bytes]()))
    whole = not any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
    known = len(node.input) <= schema.max_input and given.keys() <= set(schema.attributes)
    return whole and known and node.op_type not in _CHANGED and not (attribute in given and given[attribute].s in later)


def _rewritten(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    """The node, or what says the same in opset 17."""
    if not _is_own(node.domain):
        return [node]
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) == 2:
        return _reduction(node, constants)
    rule = _RULES.get(node.op_type)
    return [node] if rule is None else rule(node)


def _reduction(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    """Dims as an attribute; as an input they came in opset 18. Without any it takes all of them, then as now."""
    if node.input[1] and node.input[1] not in constants:
        return [node]
    dims = numpy_helper.to_array(constants[node.input[1]]).reshape(-1) if node.input[1] else ()
    out = onnx.NodeProto()
    out.CopyFrom(node)
    del out.input[1:]
    if len(dims):
        out.attribute.append(helper.make_attribute("axes", [int(d) for d in dims]))
    return [out]


def _split(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Equal parts, as many as there are outputs, went without saying; parts that are not equal came with the number."""
    out = onnx.NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    out.attribute.extend(a for a in node.attribute if a.name != "num_outputs")
    return [out]


def _gelu(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """By the error function, or by the tangent; an operator of its own came in opset 20."""
    x, y = node.input[0], node.output[0]
    steps = _Steps(node)
    if any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute):
        cubed = steps("Mul", steps("Mul", x, x), x)
        inner = steps("Add", x, steps("Mul", cubed, steps.constant(0.044715)))
        bent = steps("Tanh", steps("Mul", inner, steps.constant(math.sqrt(2 / math.pi))))
    else:
        bent = steps("Erf", steps("Div", x, steps.constant(math.sqrt(2))))
    raised = steps("Mul", x, steps("Add", bent, steps.constant(1.0)))
    steps("Mul", raised, steps.constant(0.5), out=y)
    return steps.nodes


_RULES: Mapping[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {"Gelu": _gelu, "Split": _split}


class _Steps:
    """The nodes, in fp32, that take the place of one, called after it, and their values after its result."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._node = node

    def __call__(self, op: str, *inputs: str, out: str | None = None) -> str:
        """Appends a node, and gives the name of its result."""
        out = out or self._value()
        self._append(op, inputs, out)
        return out

    def constant(self, value: float) -> str:
        """Appends a scalar, and gives its name."""
        out = self._value()
        self._append("Constant", (), out)
        self.nodes[-1].attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.float32(value))))
        return out

    def _append(self, op: str, inputs: Iterable[str], out: str) -> None:
        called = f"{self._node.name or self._node.output[0]}/{op}{len(self.nodes)}"
        made = helper.make_node(op, list(inputs), [out], name=called)
        made.metadata_props.extend(self._node.metadata_props)
        self.nodes.append(made)

    def _value(self) -> str:
        return f"{self._node.output[0]}/{len(self.nodes)}"


__all__ = ["OPSET", "misfit", "readable"]
