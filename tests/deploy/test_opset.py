"""Laws of the earlier forms: what TensorRT 8 would misread is written as it reads it, and computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.deploy.opset import OPSET, earlier
from cpd_edge.profile.regions import Attribution, find_regions

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
    made = earlier(given)
    assert made.opset_import[0].version == OPSET and given.opset_import[0].version == 20
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(computed(made), computed(given), rtol=1e-6, atol=1e-6)


def test_the_dims_of_a_mean_are_no_input() -> None:
    """TensorRT 8 does not look at a second one, and takes the mean over everything."""
    (node,) = earlier(model(*CASES["a mean"])).graph.node
    assert list(node.input) == ["x"]
    assert {a.name: helper.get_attribute_value(a) for a in node.attribute}["axes"] == [2, 3]


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("ReduceMean", ["x", "dims"], ["y"])],
        [helper.make_node("Split", ["x"], ["y", "z"], axis=2, num_outputs=2)],
        [helper.make_node("BitwiseNot", ["dims"], ["y"])],
    ],
    ids=["dims that are computed", "parts that are not told", "an operator that came later"],
)
def test_what_has_no_earlier_form_is_left_whole(nodes: list[onnx.NodeProto]) -> None:
    """Half a conversion would be another model."""
    given = model([helper.make_node("Shape", ["x"], ["dims"]), *nodes], {})
    assert earlier(given) is given


def test_an_earlier_model_is_left_alone() -> None:
    """There is nothing to rewrite."""
    given = model([helper.make_node("Relu", ["x"], ["y"])], {}, opset=13)
    assert earlier(given) is given


def test_a_kernel_of_a_rewritten_node_finds_its_region() -> None:
    """Its name leads back to the node whose place it takes."""
    convolution = helper.make_node("Conv", ["x", "w"], ["conv"], "conv", kernel_shape=[1, 1])
    kernel = {"w": np.ones((5, 3, 1, 1), np.float32)}
    given = model([convolution, helper.make_node("Gelu", ["conv"], ["y"], "gelu")], kernel)
    regions = Attribution.of(find_regions(given, {}), given)
    names = [node.name for node in earlier(given).graph.node]
    assert len(names) > 5 and {regions.region(name) for name in names} == {"conv"}
