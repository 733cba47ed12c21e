"""Laws of precision: an engine computes in what its kernels say, whatever was asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cpd_edge.deploy.quantize import CPU_SATURATING, quantise
from cpd_edge.deploy.typed import half_precision
from cpd_edge.errors import UsageError
from cpd_edge.measure.arithmetic import computed_in
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.environment import require_comparable
from cpd_edge.measure.runtimes import model_runner, require_precision

pytest.importorskip("onnxruntime")
RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def dense() -> onnx.ModelProto:
    return onnx.load_from_string(tiny_model(size=16))


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ([("Conv", "fp32"), ("Relu", "int8")], {"precision": "fp32", "layers": "fp32 1"}),
        ([("QConv", "int8"), ("Gemm", "fp32"), ("QGemm", "int8")], {"precision": "int8", "layers": "int8 2, fp32 1"}),
        ([("Subgraph", "fp16")], {"precision": "fp16", "layers": "fp16 1"}),
        ([("Convolution", "")], {}),
    ],
)  # fmt: skip
def test_weighted_layers_decide(kernels: list[tuple[str, str]], expected: dict[str, str]) -> None:
    """Where there are none, all kernels do; where no kernel tells, nothing is claimed."""
    assert expected == computed_in(kernels)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_quantised_file_runs_in_integers(runtime: str, dense: onnx.ModelProto) -> None:
    """Both runtimes say so of every weighted layer; two precisions are compared only where that is asked for."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model = quantise(dense, {}, CPU_SATURATING, unseen=(-1.0, 1.0))
    engines = [model_runner(runtime, m.SerializeToString()) for m in (dense, model)]
    seen = [engine.environment for engine in engines]
    assert [("fp32", "fp32 4"), ("int8", "int8 4")] == [(e["precision"], e["layers"]) for e in seen]
    with pytest.raises(Exception, match="precision"):
        require_comparable(seen[0], seen[1])
    require_comparable(seen[0], seen[1], across=("precision",))


def test_half_precision_in_the_file_is_not_half_precision_on_a_cpu(dense: onnx.ModelProto) -> None:
    """ONNX Runtime casts to fp32 and back; its kernels say so, and asking for it is refused."""
    runner = model_runner("onnxruntime", half_precision(dense).model.SerializeToString())
    assert "fp32" == runner.environment["precision"]
    assert np.isfinite(runner.outputs(runner.ring[0])).all()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="ONNX Runtime does not compute in fp16 here: it casts to fp32 and back"):
        require_precision("fp16", "onnxruntime")


def test_a_precision_that_the_cpu_lacks_is_refused_by_name(dense: onnx.ModelProto) -> None:
    """And if it is asked of the runtime all the same, the environment says what came of it."""
    openvino = pytest.importorskip("openvino")
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    engine = model_runner("openvino", dense.SerializeToString(), precision="fp16")
    assert ("fp16" if "FP16" in able else "fp32") == engine.environment["precision"]
    if "FP16" not in able:
        with pytest.raises(UsageError, match="this CPU has no fp16 in OpenVINO"):
            require_precision("fp16", "openvino")
    with pytest.raises(UsageError, match="unknown precision 'fp8'\n  give --precision fp32 or int8 or fp16 or bf16"):
        require_precision("fp8", "openvino")
