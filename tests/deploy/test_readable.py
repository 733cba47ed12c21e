"""Laws of the earlier forms: what TensorRT 8 would misread is written as it reads it, and computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.deploy.readable import OPSET, misfit, readable
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.regions import find_regions

SHAPE = [2, 3, 4, 6]


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int = 20) -> onnx.ModelProto:
    """A model of one input `x` and one output `y`."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4 if name == "y" else SHAPE) for name in "xy"
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def computed(of: onnx.ModelProto) -> np.ndarray[Any, Any]:
    """What ONNX Runtime makes of standard normal numbers."""
    feed = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    found = ort.InferenceSession(of.SerializeToString()).run(None, {"x": feed})[0]
    return np.asarray(found)


CASES = {
    "a mean": ([helper.make_node("ReduceMean", ["x", "dims"], ["y"], "mean", keepdims=1)], {"dims": [2, 3]}),
    "a mean that says what goes without saying": (
        [helper.make_node("ReduceMean", ["x", "dims"], ["y"], "mean", noop_with_empty_axes=0)],
        {"dims": [-1]},
    ),
    "a norm": ([helper.make_node("ReduceL2", ["x", "dims"], ["y"], "norm", keepdims=1)], {"dims": [1]}),
    "a sum, which reads its dims since 13": ([helper.make_node("ReduceSum", ["x", "dims"], ["y"])], {"dims": [1]}),
    "a mean over all dims": ([helper.make_node("ReduceMean", ["x", "dims"], ["y"])], {"dims": np.zeros(0, np.int64)}),
    "dims that a node holds": (
        [
            helper.make_node("Constant", [], ["dims"], value=numpy_helper.from_array(np.asarray([2]))),
            helper.make_node("ReduceMax", ["x", "dims"], ["y"]),
        ],
        {},
    ),
    "equal parts": (
        [
            helper.make_node("Split", ["x"], ["a", "b"], "split", axis=2, num_outputs=2),
            helper.make_node("Sub", ["b", "a"], ["y"]),
        ],
        {},
    ),
    "two GELUs in a row": (
        [
            helper.make_node("Gelu", ["x"], ["gelu"], "gelu"),
            helper.make_node("Gelu", ["gelu"], ["gelu_1"], "gelu_1", approximate="tanh"),
            helper.make_node("Relu", ["gelu_1"], ["y"], "relu"),
        ],
        {},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_earlier_form_computes_the_same(case: tuple[list[onnx.NodeProto], dict[str, Any]]) -> None:
    """In opset 17, as its own checker knows it."""
    given = model(*case)
    made = readable(given)
    assert made.opset_import[0].version == OPSET and given.opset_import[0].version == 20
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(computed(made), computed(given), rtol=1e-6, atol=1e-6)


def test_the_dims_of_a_mean_are_no_input() -> None:
    """TensorRT 8 does not look at a second one, and takes the mean over everything."""
    (node,) = readable(model(*CASES["a mean"])).graph.node
    assert list(node.input) == ["x"]
    assert {a.name: helper.get_attribute_value(a) for a in node.attribute}["axes"] == [2, 3]


SHAPE_OF = helper.make_node("Shape", ["x"], ["shape"], "shape")
LATE = {
    "dims that are computed": [SHAPE_OF, helper.make_node("ReduceMean", ["x", "shape"], ["y"], "late")],
    "parts that are not equal": [helper.make_node("Split", ["x"], ["y", "z"], "late", axis=1, num_outputs=2)],
    "an operator that came later": [SHAPE_OF, helper.make_node("BitwiseNot", ["shape"], ["y"], "late")],
    "a value that came later": [helper.make_node("Pad", ["x", "pads"], ["y"], "late", mode="wrap")],
    "a default that changed": [helper.make_node("DFT", ["x"], ["y"], "late")],
    "a graph within": [
        helper.make_node(
            "If", ["yes"], ["y"], "late",
            **{f"{name}_branch": helper.make_graph(
                [helper.make_node("Neg", ["x"], ["z"])], name, [],
                [helper.make_tensor_value_info("z", TensorProto.FLOAT, SHAPE)],
            ) for name in ("then", "else")},
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("nodes", LATE.values(), ids=list(LATE))
def test_what_has_no_earlier_form_keeps_its_opset_and_is_named(nodes: list[onnx.NodeProto]) -> None:
    """Half a conversion would be another model."""
    made = readable(model(nodes, {"pads": np.zeros(8, np.int64), "yes": np.asarray(True)}))
    assert made.opset_import[0].version == 20 and [n.op_type for n in made.graph.node] == [n.op_type for n in nodes]
    assert misfit(made).startswith("late (") or nodes[0].op_type == "Split"


def test_a_type_that_came_later_keeps_its_opset() -> None:
    """GELU of halves would be divided by a number of fp32."""
    half = model([helper.make_node("Gelu", ["x"], ["y"], "gelu")], {})
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert readable(half).opset_import[0].version == 20 and misfit(readable(half))


def test_an_earlier_model_says_its_kernels_and_nothing_else_changes() -> None:
    """TensorRT 8.6 takes a kernel that is no constant for one of size 1 otherwise, and refuses the model."""
    read = helper.make_node("DequantizeLinear", ["integers", "scale"], ["kernel"], "read")
    nodes = [read, helper.make_node("Conv", ["x", "kernel"], ["y"], "conv", pads=[1, 1, 1, 1])]
    given = model(nodes, {"integers": np.ones((5, 3, 3, 3), np.int8), "scale": np.float32(0.1)}, opset=13)
    made = readable(given)
    told = {a.name: helper.get_attribute_value(a) for a in made.graph.node[1].attribute}
    assert told == {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]} and misfit(made) == ""
    assert len(given.graph.node[1].attribute) == 1 and made.opset_import[0].version == 13
    np.testing.assert_allclose(computed(made), computed(given))


def test_a_kernel_of_a_rewritten_node_finds_its_region() -> None:
    """Its name leads back to the node whose place it takes."""
    convolution = helper.make_node("Conv", ["x", "w"], ["conv"], "conv", kernel_shape=[1, 1])
    kernel = {"w": np.ones((5, 3, 1, 1), np.float32)}
    given = model([convolution, helper.make_node("Gelu", ["conv"], ["y"], "gelu")], kernel)
    regions = Attribution.of(find_regions(given, {}), given)
    names = [node.name for node in readable(given).graph.node]
    assert len(names) > 5 and {regions.region(name) for name in names} == {"conv"}
