"""Laws of the layer tables: what an engine fused, from every dialect in which a runtime says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpd_edge.errors import DataError
from cpd_edge.measure.layer_pairs import paired
from cpd_edge.measure.layers import EngineLayer, layers_from_inspector, layers_from_log, timed

EXPORTS = Path(__file__).parent / "exports"


def by_hand(version: int, name: str, kind: str, reads: str, writes: str, metadata: str) -> dict[str, Any]:
    """A layer as the inspector of TensorRT 10 or 11 describes it, written by hand after its documentation."""
    key = "Format/Datatype" if version < 11 else "Datatype"
    words = {"Half": "Row major linear FP16 format", "Float": "Row major linear FP32", "Int8": "Int8 format"}
    tensors = [{"Name": n, "Dimensions": [1, 8, 4, 4], key: words[t] if version < 11 else t} for n, t in
               (("in", reads), ("out", writes))]  # fmt: skip
    return {"Name": name, "LayerType": kind, "Inputs": tensors[:1], "Outputs": tensors[1:], "Metadata": metadata}


def test_a_recorded_export_of_an_a100_is_read() -> None:
    """Names, types, precisions and shapes; a reformat belongs to no ONNX node."""
    layers = layers_from_inspector((EXPORTS / "a100.layers.json").read_text())
    expected = [
        ((), "Reformat", "fp32→fp16", ("32x3x224x224",)),
        (("Conv_0", "Relu_1"), "CaskConvolution", "fp16", ("32x64x112x112",)),
        (("MaxPool_2",), "CudaPooling", "fp16", ("32x64x56x56",)),
        (("Conv_3", "Relu_4"), "CaskConvolution", "fp16", ("32x64x56x56",)),
        ((), "NoOp", "fp16", ("32x64x56x56",)),
        ((), "NoOp", "fp16", ("32x64x56x56",)),
        (("Conv_5", "Add_6", "Relu_7"), "CaskConvolution", "fp16", ("32x64x56x56",)),
    ]
    assert expected == [(la.onnx, la.type, la.precision, la.outputs) for la in layers]


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("mark", ["\x1e", "\x1f", ""])
def test_metadata_names_the_onnx_nodes_in_either_schema(version: int, mark: str) -> None:
    """`Format/Datatype` until 10, `Datatype` from 11; separators differ as well."""
    metadata = f"[ONNX Layer: /a/Conv]{mark}[ONNX Layer: /b[0]/Relu]"
    entry = by_hand(version, "__myl_Fc_0", "kgen", "Int8", "Half", metadata)
    (layer,) = layers_from_inspector(json.dumps({"Layers": [entry], "I/O Tensors": []}))
    assert (("/a/Conv", "/b[0]/Relu"), "int8→fp16", ("1x8x4x4",)) == (layer.onnx, layer.precision, layer.outputs)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("conv1.weight + QuantizeLinear_8 + Conv_12 + PWN(Clip_16)", ("QuantizeLinear_8", "Conv_12", "Clip_16")),
        ("PWN(PWN(/Sub), PWN(/Div))", ("/Sub", "/Div")),
        ("{ForeignNode[/a/Cast...(Unnamed Layer* 41) [Shuffle]]}", ("/a/Cast",)),
        ("Reformatting CopyNode for Output Tensor 0 to Conv_0", ()),
        ("gemm_0 [ONNX Layer: /fc/Gemm]", ("/fc/Gemm",)),
    ],
)
def test_a_layer_s_own_name_tells_where_there_is_no_metadata(name: str, nodes: tuple[str, ...]) -> None:
    """Weights, reformats and the runtime's own layers are no ONNX nodes."""
    (layer,) = layers_from_inspector(json.dumps({"Layers": [name], "Bindings": ["x"]}))
    assert EngineLayer(name, onnx=nodes) == layer


def test_names_that_a_raw_control_character_parts_are_read() -> None:
    """As TensorRT 8.6 wrote it on an H200: the separator stands in the text unescaped, which is not JSON."""
    entry = {"Name": "conv + relu", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv]#[ONNX Layer: relu]"}
    (layer,) = layers_from_inspector(json.dumps({"Layers": [entry]}).replace("#", "\x1e"))
    assert layer.onnx == ("conv", "relu")


def test_the_older_build_log_is_read() -> None:
    """Lines written by hand after public logs of TensorRT 8.2, 8.5 and 10."""
    layers = layers_from_log(
        [
            "[02/08/2023-15:25:37] [V] [TRT] Engine Layer Information:\n"
            "Layer(Reformat): Reformatting CopyNode for Input Tensor 0 to Conv_0, Tactic: 0x0, "
            "in[Float(1,3,8,8)] -> Reformatted Input Tensor 0 to Conv_0[Int8(1,3,8,8)]\n"
            "Layer(CaskConvolution): Conv_0 + PWN(Clip_3), Tactic: 0x02d9f5, x[Int8(1,3,8,8)] -> 395[Half(1,4,8,8)]\n"
            "Layer(CaskConvolution): /d/d.0/Conv + /d/d.1/Relu, x (Float[-1,4,8,8]) -> h (Float[-1,2,8,8])"
        ]
    )
    expected = [
        ("Reformat", (), "fp32→int8", ("1x3x8x8",)),
        ("CaskConvolution", ("Conv_0", "Clip_3"), "int8→fp16", ("1x4x8x8",)),
        ("CaskConvolution", ("/d/d.0/Conv", "/d/d.1/Relu"), "fp32", ("-1x2x8x8",)),
    ]
    assert expected == [(la.type, la.onnx, la.precision, la.outputs) for la in layers]


@pytest.mark.parametrize("text", ["{", "[]", '{"Layers": []}', '{"layers": [1]}'])
def test_what_is_no_layer_information_is_refused(text: str) -> None:
    """And the file to give is named."""
    with pytest.raises(DataError, match="layer information"):
        layers_from_inspector(text)


def test_times_go_to_the_layer_of_that_name_and_the_rest_stays_visible() -> None:
    """What was timed and is in no table is appended, not lost."""
    layers = (EngineLayer("a", onnx=("n",)), EngineLayer("b"))
    assert [("a", 1.0), ("b", None), ("c", 2.0)] == [(la.name, la.ms) for la in timed(layers, {"a": 1.0, "c": 2.0})]


def test_layers_survive_a_round_trip() -> None:
    """load(save(x)) == x."""
    layer = EngineLayer("n", "gemm", ("a", "b"), "int8→fp16", ("1x2",), "tactic", 0.5)
    assert layer == EngineLayer.from_json(json.loads(json.dumps(layer.to_json())))


def test_engines_pair_by_shared_nodes_however_they_fuse() -> None:
    """Two kernels of one engine may do what one kernel of the other does; a node only one has stands alone."""
    left = [EngineLayer("k0", "conv", ("a", "b")), EngineLayer("move"), EngineLayer("k1", "gemm", ("c",))]
    right = [EngineLayer("j0", "conv", ("a",)), EngineLayer("j1", "add", ("b",)), EngineLayer("j2", "mul", ("d",))]
    rows = [([la.name for la in p.left], [la.name for la in p.right], p.change) for p in paired(left, right)]
    assert [
        (["k0"], ["j0", "j1"], "changed"),
        (["k1"], [], "only left"),
        ([], ["j2"], "only right"),
        (["move"], [], "only left"),
    ] == rows


def test_nodes_that_were_renumbered_pair_by_their_common_name() -> None:
    """`node_Conv_7` of one file is another convolution than `node_Conv_7` of the other."""
    left, right = (
        (EngineLayer("l", "conv", ("node_Conv_7",)),),
        (
            EngineLayer("r0", "conv", ("node_Conv_7",)),
            EngineLayer("r1", "conv", ("node_Conv_9",)),
        ),
    )
    names = {"node_Conv_7": "layer2/Conv"}, {"node_Conv_7": "layer1/Conv", "node_Conv_9": "layer2/Conv"}
    found = {p.nodes: ([la.name for la in p.left], [la.name for la in p.right]) for p in paired(left, right, *names)}
    assert {("layer2/Conv",): (["l"], ["r1"]), ("layer1/Conv",): ([], ["r0"])} == found
