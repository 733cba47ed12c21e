"""Laws of typed models: fp16 inside, fp32 at the ends, and the same function within fp16's accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.deploy.typed import half_precision, matches, scope
from cpd_edge.errors import ModelError

ort = pytest.importorskip("onnxruntime")


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], opset: int = 20, out: tuple[Any, ...] = ("b", 8)
) -> onnx.ModelProto:
    """A model from `x` `[b, 8]` to `y`."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in (("x", ["b", 8]), ("y", out))]
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, as the standard's own inference sees it."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output, *graph.input)}


def weight(*shape: int) -> np.ndarray:
    """Equal shapes, equal values."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def transformer() -> onnx.ModelProto:
    """Matrix products, a shared norm weight used twice, softmax, a residual, a shape subgraph, a constant, a resize."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node("LayerNormalization", ["a", "one", "zero"], ["n1"], "norm1"),
        helper.make_node("MatMul", ["n1", "w2"], ["c"], "second"),
        helper.make_node("LayerNormalization", ["c", "one", "zero"], ["n2"], "norm2"),
        helper.make_node("Constant", [], ["half"], "constant", value_float=0.5),
        helper.make_node("Mul", ["n2", "half"], ["m"], "scale"),
        helper.make_node("Add", ["m", "a"], ["r"], "residual"),
        helper.make_node("Softmax", ["r"], ["s"], "softmax"),
        helper.make_node("Shape", ["x"], ["size"], "shape"),
        helper.make_node("Slice", ["size", "i0", "i1"], ["rows"], "slice"),
        helper.make_node("Concat", ["rows", "rest"], ["to"], "concat", axis=0),
        helper.make_node("Reshape", ["s", "to"], ["image"], "reshape"),
        helper.make_node("Resize", ["image", "", "scales"], ["y"], "resize"),
    ]
    integers = {"i0": np.array([0]), "i1": np.array([1]), "rest": np.array([1, 4, 4])}
    floats = {"w1": weight(8, 16), "w2": weight(16, 16), "one": np.ones(16, np.float32), "zero": weight(16),
              "scales": np.array([1, 1, 2, 2], np.float32)}  # fmt: skip
    return model(nodes, {**integers, **floats}, out=("b", 1, 8, 8))


def test_a_typed_model_computes_the_same_within_fp16() -> None:
    """It is valid ONNX, its ends are fp32, its products are fp16, its norms and softmax are not."""
    before = transformer()
    after = half_precision(before)
    onnx.checker.check_model(after.model, full_check=True)
    x = weight(3, 8)
    np.testing.assert_allclose(run(after.model, x), run(before, x), atol=5e-3)
    found = types(after.model)
    half = {name for name in ("a", "c", "m", "r", "image") if found[name] == TensorProto.FLOAT16}
    assert half == {"a", "c", "m", "r", "image"}
    assert [TensorProto.FLOAT] * 3 == [found[name] for name in ("x", "y", "s")]
    assert {"norm1", "norm2", "softmax"} == set(after.kept)


def test_the_given_model_is_left_alone() -> None:
    """Functions give new values."""
    before = transformer()
    copy = before.SerializeToString()
    half_precision(before)
    assert copy == before.SerializeToString()


def test_named_layers_stay_in_fp32() -> None:
    """By node name or by module, with patterns; what they feed is cast."""
    after = half_precision(transformer(), ["sec*"])
    assert ("asked for", TensorProto.FLOAT) == (after.kept["second"], types(after.model)["c"])
    x = weight(2, 8)
    np.testing.assert_allclose(run(after.model, x), run(transformer(), x), atol=5e-3)


def test_weights_beyond_fp16_stay_in_fp32() -> None:
    """They would become infinite."""
    before = model([helper.make_node("Mul", ["x", "w"], ["y"], "big")], {"w": np.float32(1e5)})
    after = half_precision(before)
    assert {"big": "a weight is too large for fp16"} == dict(after.kept)
    x = weight(2, 8)
    assert np.array_equal(run(before, x), run(after.model, x))


@pytest.mark.parametrize(
    ("opset", "scale", "reason"),
    [(20, 0.01, None), (13, 0.01, "opset 13 has fp32 scales only"), (20, 1e-6, "its scale is too small for fp16")],
)
def test_quantisation_takes_fp16_where_scales_may(opset: int, scale: float, reason: str | None) -> None:
    """The integers stay, the rounding stays; a scale that fp16 cannot hold stays in fp32."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantise"),
        helper.make_node("MatMul", ["d", "w"], ["y"], "product"),
    ]
    weights = {"scale": np.float32(scale), "zero": np.int8(0), "w": weight(8, 4)}
    before = model(nodes, weights, opset, ("b", 4))
    after = half_precision(before)
    onnx.checker.check_model(after.model, full_check=True)
    assert reason == after.kept.get("quantise")
    x = (50 * scale * weight(4, 8)).astype(np.float32)
    largest = float(np.abs(run(before, x)).max())
    np.testing.assert_allclose(run(after.model, x), run(before, x), atol=0.02 * largest)


def test_an_output_that_is_read_again_keeps_its_name_and_type() -> None:
    """Inside it is fp16 under another name."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu"), helper.make_node("Neg", ["y"], ["z"], "neg")]
    before = model(nodes, {})
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["b", 8]))
    after = half_precision(before).model
    onnx.checker.check_model(after, full_check=True)
    assert ["y", "z"] == [o.name for o in after.graph.output]
    assert [TensorProto.FLOAT] * 2 == [types(after)[name] for name in ("y", "z")]


def test_control_flow_is_refused() -> None:
    """A branch reads tensors of the outside by name; the node is named."""
    value = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=value)], "b", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match=r"'choice' \(If\) is control flow"):
        half_precision(model([node], {"c": np.array(True)}))


def test_an_unknown_operator_s_type_is_not_guessed() -> None:
    """Its output's type is not known, so nothing behind it can be cast."""
    nodes = [helper.make_node("Odd", ["x"], ["o"], "odd", domain="mine"), helper.make_node("Relu", ["o"], ["y"], "r")]
    before = model(nodes, {})
    before.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(ModelError, match=r"type of 'o', which node 'odd' \(Odd\) writes, cannot be inferred"):
        half_precision(before)


def test_a_node_is_found_by_its_name_and_by_its_module() -> None:
    """The exporter writes the modules; the last one that is not the call itself counts."""
    node = helper.make_node("Conv", ["x"], ["y"], "node_Conv_7")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'layer1', 'layer1.0', 'layer1.0.bn1', 'batch_norm_1']"
    assert "layer1.0.bn1" == scope(node)
    assert [True, True, False] == [matches(node, [p]) for p in ("node_Conv_*", "layer1.*", "layer2.*")]
