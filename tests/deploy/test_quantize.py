"""Laws of quantisation: pairs where a runtime fuses them, the same integers as ONNX Runtime's own tool, names kept."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from cpd_edge.deploy.calibrate import calibration
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.deploy.quantize import (
    CPU,
    CPU_SATURATING,
    MARKS,
    TENSORRT,
    Scheme,
    calibrate,
    integer_nodes,
    is_quantised,
    quantise,
)
from cpd_edge.errors import DataError, ModelError
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.network import trace

ort = pytest.importorskip("onnxruntime")
IMAGES = np.random.default_rng(0).standard_normal((12, 3, 16, 16)).astype(np.float32)


class Residual(nn.Module):
    """What CPU runtimes keep in integers from end to end, and a norm, which they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.norm, self.wide, self.head = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.stem(x).relu(), 2)
        x = (self.b(functional.relu6(self.a(x))) + x).relu()
        x = self.norm(x.flatten(2).transpose(1, 2))
        return self.head(self.wide(x).relu()).mean(1)


@pytest.fixture(scope="module")
def residual() -> onnx.ModelProto:
    torch.manual_seed(0)
    return finish(export_onnx(trace(Residual().eval(), (3, 16, 16))).model)


def quantised(model: onnx.ModelProto, scheme: Scheme = TENSORRT, images: np.ndarray = IMAGES) -> onnx.ModelProto:
    return quantise(model, calibrate(model, images, scheme), scheme)


def kernels(proto: onnx.ModelProto) -> Counter[str]:
    """How often ONNX Runtime runs each operator."""
    return Counter(k.op for k in OnnxRunner(proto.SerializeToString(), profile=True).kernels(1))


def off(proto: onnx.ModelProto, dense: onnx.ModelProto) -> float:
    """Root mean square of the difference to fp32, over that of the output."""
    a, b = run(proto, IMAGES), run(dense, IMAGES)
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def run(proto: onnx.ModelProto, feed: np.ndarray, exactly: bool = False) -> np.ndarray:
    """What ONNX Runtime computes, or what the file says, node by node."""
    options = ort.SessionOptions()
    if exactly:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: feed})[0])


def test_weighted_operators_read_int8_and_write_floats() -> None:
    """So a convolution and the ReLU behind it can fuse; outputs stay within INT8's accuracy."""
    dense = onnx.load_from_string(tiny_model(size=16))
    done = quantised(dense)
    onnx.checker.check_model(done, full_check=True)
    readers = {name: n.op_type for n in done.graph.node for name in n.input}
    makers = {name: n.op_type for n in done.graph.node for name in n.output}
    fed = {makers[name] for n in done.graph.node if n.op_type in ("Conv", "MatMul") for name in n.input[:2]}
    assert {"DequantizeLinear"} == fed
    assert {"Relu"} == {readers[n.output[0]] for n in done.graph.node if n.op_type == "Conv"}
    wanted = run(dense, IMAGES)
    assert np.abs(run(done, IMAGES, exactly=True) - wanted).max() < 0.03 * np.abs(wanted).max()


def test_the_given_model_is_left_alone_and_so_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a model in memory, the tool underneath moves its weights to files beside it."""
    monkeypatch.chdir(tmp_path)
    dense = onnx.load_from_string(tiny_model(size=16))
    copy = dense.SerializeToString()
    quantised(dense)
    assert (copy, []) == (dense.SerializeToString(), list(tmp_path.iterdir()))


def test_a_quantised_model_is_not_quantised_again() -> None:
    """It says what to do with it."""
    done = quantised(onnx.load_from_string(tiny_model(size=16)))
    assert is_quantised(done)
    with pytest.raises(ModelError, match="holds Q/DQ nodes already"):
        quantised(done)


@pytest.mark.parametrize(
    ("images", "words"),
    [(IMAGES[:, :2], r"are \[12, 2, 16, 16\], the model's input 'image' is"), (IMAGES * np.inf, "not finite")],
)
def test_images_that_are_not_the_model_s_are_refused(images: Any, words: str) -> None:
    """With both shapes."""
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=words):
        quantised(onnx.load_from_string(tiny_model(size=16)), images=images)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no calibration inputs at"), (b"text", "no array file"), (np.zeros((2, 3), np.int64), "holds int64")],
)
def test_calibration_files_are_judged(tmp_path: Path, content: Any, words: str) -> None:
    """Missing, no array, not of floats."""
    path = tmp_path / "images.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(DataError, match=words):
        calibration(path)


def test_calibration_inputs_are_read(tmp_path: Path) -> None:
    """As float32."""
    np.save(tmp_path / "images.npy", IMAGES.astype(np.float64))
    np.testing.assert_array_equal(IMAGES, calibration(tmp_path / "images.npy"))


def test_on_a_cpu_integers_stay_integers(residual: onnx.ModelProto) -> None:
    """From the first convolution to the norm, whose output is converted again, as are the floats of a product."""
    found = kernels(quantised(residual, CPU_SATURATING))
    assert (3, 1, 2) == (found["QLinearConv"], found["QLinearAdd"], found["QGemm"])
    assert {"Conv", "FusedConv", "Gemm", "MatMul"}.isdisjoint(found)
    assert (3, 1) == (found["QuantizeLinear"], found["DequantizeLinear"])


def test_the_integers_are_those_of_the_runtime_s_own_tool(
    residual: onnx.ModelProto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As near to fp32 as ONNX Runtime's `quantize_static`, with the same scales, in a fraction of the time."""
    tool = pytest.importorskip("onnxruntime.quantization")

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        feeds = iter([{"input": IMAGES}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    onnx.save(residual, tmp_path / "dense.onnx")
    kinds = {"activation_type": tool.QuantType.QUInt8, "weight_type": tool.QuantType.QInt8}
    caplog.set_level(logging.CRITICAL)
    tool.quantize_static(
        tmp_path / "dense.onnx", tmp_path / "theirs.onnx", Reader(), per_channel=True, reduce_range=True, **kinds
    )
    theirs, ours = onnx.load(tmp_path / "theirs.onnx"), quantised(residual, CPU_SATURATING)
    scales = [{i.name: numpy_helper.to_array(i) for i in m.graph.initializer} for m in (theirs, ours)]
    shared = [n for n in scales[0] if n.endswith("weight_scale") and n in scales[1]]
    assert len(shared) >= 3
    for name in shared:
        np.testing.assert_allclose(scales[1][name], scales[0][name], rtol=1e-5)
    assert off(ours, residual) <= 1.1 * off(theirs, residual) < 0.1


def test_names_and_order_of_nodes_hold(residual: onnx.ModelProto) -> None:
    """So a region of the fp32 network is found in the quantised one."""
    done = quantised(residual, CPU)
    assert [(n.name, n.op_type) for n in residual.graph.node] == [
        (n.name, n.op_type) for n in done.graph.node if n.op_type not in MARKS
    ]
    assert [o.name for o in residual.graph.output] == [o.name for o in done.graph.output]


def test_only_the_nodes_that_are_asked_for_become_integers(residual: onnx.ModelProto) -> None:
    """All others compute what they did."""
    first = next(n.name for n in residual.graph.node if n.op_type == "Conv")
    scheme = CPU_SATURATING
    done = quantise(residual, calibrate(residual, IMAGES, scheme), scheme, nodes=[first])
    assert (1, 2) == (kernels(done)["QLinearConv"], kernels(done)["Conv"] + kernels(done)["FusedConv"])
    assert 0 < off(done, residual) < off(quantised(residual, scheme), residual)


def exposed(proto: onnx.ModelProto, values: list[str]) -> list[np.ndarray]:
    """Some values of a model, as the file says them, node by node."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    out.graph.output.extend(onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, None) for v in values)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(out.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(values, {session.get_inputs()[0].name: IMAGES})]


@pytest.mark.parametrize("scheme", [CPU_SATURATING, TENSORRT], ids=["cpu", "tensorrt"])
def test_whatever_is_chosen_all_else_stays_as_it_was_bit_for_bit(residual: onnx.ModelProto, scheme: Scheme) -> None:
    """Weights that are not chosen are the same floats, and all that is computed before the first choice is equal."""
    weighted, passing = integer_nodes(residual, scheme)
    ranges, rng = calibrate(residual, IMAGES, scheme), np.random.default_rng(0)
    before = {i.name: i.raw_data for i in residual.graph.initializer}
    reads = {n.name: n.input[1] for n in residual.graph.node if n.name in weighted}
    assert len(weighted) == 5 and passing.isdisjoint(weighted)
    for _ in range(8):
        chosen = {name for name in weighted if rng.uniform() < 0.4}
        done = quantise(residual, ranges, scheme, nodes=chosen)
        for value, seen in calibrate(residual, IMAGES, scheme, nodes=chosen).items():
            assert seen == pytest.approx(ranges[value], rel=1e-4)
        kept = {i.name: i.raw_data for i in done.graph.initializer}
        there = {n.name: n.input[1] for n in done.graph.node if n.name in weighted}
        for name in weighted:
            stays = there[name] == reads[name] and kept.get(reads[name]) == before[reads[name]]
            assert stays == (name not in chosen)
        names = [n.name for n in residual.graph.node]
        first = min((names.index(name) for name in chosen), default=len(names))
        early = [n.output[0] for n in residual.graph.node[:first]]
        for a, b in zip(exposed(done, early), exposed(residual, early), strict=True) if early else ():
            assert np.array_equal(a, b)


def test_between_two_integer_regions_there_are_no_floats(residual: onnx.ModelProto) -> None:
    """What only bounds, pools or adds values between those that are chosen stays in integers, and else it does not."""
    scheme = CPU_SATURATING
    ranges, convolutions = calibrate(residual, IMAGES, scheme), integer_nodes(residual, scheme)[0][:3]
    together, apart = (quantise(residual, ranges, scheme, nodes=names) for names in (convolutions, convolutions[1:]))
    found = [kernels(proto) for proto in (together, apart)]
    assert [(k["QLinearConv"], k["QLinearAdd"]) for k in found] == [(3, 1), (2, 0)]
    assert [(k["QuantizeLinear"], k["DequantizeLinear"]) for k in found] == [(1, 1), (1, 1)]


def test_a_build_to_be_timed_needs_no_calibration_and_runs_the_same_kernels(residual: onnx.ModelProto) -> None:
    """Latency does not depend on values; a build to be shipped refuses a value without a range."""
    assert kernels(quantised(residual, CPU)) == kernels(quantise(residual, {}, CPU, unseen=(-1.0, 1.0)))
    with pytest.raises(ModelError, match="has no range"):
        quantise(residual, {}, CPU)
