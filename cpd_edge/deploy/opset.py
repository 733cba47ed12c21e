"""Models in the forms of opset 17, which every TensorRT from 8.5 on reads.

TensorRT before 10 does not refuse a later form: it takes it for the earlier one and computes something else, such as
the mean over all dims where the dims to take it over have become an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

OPSET = 17

Constants = Mapping[str, onnx.TensorProto]


def earlier(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 17, its values and nodes under their names; as it is where a node has no form there.

    A node fits if the earlier operator has its inputs and attributes. What does not fit is rewritten; nodes that take
    the place of one are called after it: `NAME/Div1`, `NAME/Erf2`.
    """
    declared = next((entry.version for entry in model.opset_import if not entry.domain), OPSET)
    if declared <= OPSET:
        return model
    constants = {entry.name: entry for entry in model.graph.initializer}
    nodes = list[onnx.NodeProto]()
    for node in model.graph.node:
        made = _rewritten(_plain(node, declared), constants)
        if not all(_fits(each) for each in made):
            return model
        nodes.extend(made)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    for entry in out.opset_import:
        if not entry.domain:
            entry.version = OPSET
    used = {name for node in nodes for name in node.input} | {value.name for value in out.graph.output}
    kept = [entry for entry in out.graph.initializer if entry.name in used]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept)
    return out


def _plain(node: onnx.NodeProto, declared: int) -> onnx.NodeProto:
    """The node without attributes that say what goes without saying."""
    if node.domain or not defs.has(node.op_type):
        return node
    known = defs.get_schema(node.op_type, declared).attributes
    out = onnx.NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    for given in node.attribute:
        usual = known[given.name].default_value if given.name in known else None
        if usual is None or not usual.type or helper.get_attribute_value(usual) != helper.get_attribute_value(given):
            out.attribute.append(given)
    return out


def _fits(node: onnx.NodeProto) -> bool:
    """Whether the operator of opset 17 takes the node as it stands."""
    if node.domain:
        return True
    try:
        schema = defs.get_schema(node.op_type, OPSET)
    except defs.SchemaError:
        return False
    given = {attribute.name for attribute in node.attribute}
    return len(node.input) <= schema.max_input and given <= set(schema.attributes)


def _rewritten(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    """The node, or what says the same in opset 17."""
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) == 2:
        return _reduction(node, constants)
    rule = _RULES.get(node.op_type)
    return rule(node) if rule is not None and not node.domain else [node]


def _reduction(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    """Dims as an attribute; as an input they came in opset 18."""
    dims = constants.get(node.input[1])
    if dims is None:
        return [node]
    out = onnx.NodeProto()
    out.CopyFrom(node)
    del out.input[1:]
    out.attribute.append(helper.make_attribute("axes", [int(d) for d in numpy_helper.to_array(dims).reshape(-1)]))
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


_RULES: Mapping[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {"Gelu": _gelu}


class _Steps:
    """The nodes that take the place of one, called after it, and their values after its result."""

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
        made = helper.make_node(op, list(inputs), [out], name=f"{self._node.name}/{op}{len(self.nodes)}")
        made.metadata_props.extend(self._node.metadata_props)
        self.nodes.append(made)

    def _value(self) -> str:
        return f"{self._node.output[0]}/{len(self.nodes)}"


__all__ = ["OPSET", "earlier"]
