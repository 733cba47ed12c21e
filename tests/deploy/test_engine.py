"""Laws of the builder, on the real TensorRT-RTX, which builds without a GPU. No engine is run here.

What is fused for a desktop GPU says nothing about a Jetson.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from cpd_edge.deploy.engine import Built, EngineSpec, build_engine
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.deploy.quantize import TENSORRT, calibrate, quantise
from cpd_edge.deploy.unsupported import source_line
from cpd_edge.errors import CpdError, ModelError, UsageError
from cpd_edge.measure.layers import EngineLayer, layers_from_log
from cpd_edge.measure.listening import listener
from cpd_edge.network import trace

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'cpd-edge[dev]'")

SIZE = 64
IMAGES = np.random.default_rng(0).standard_normal((8, 3, SIZE, SIZE)).astype(np.float32)
WEIGHTED = ("Conv", "Gemm", "MatMul")


def built(model: onnx.ModelProto, **spec: Any) -> Built:
    return build_engine(trt, listener(trt), model, EngineSpec(**{"arch": "sm_86", **spec}))


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantise(model, calibrate(model, IMAGES, TENSORRT), TENSORRT)


def exported(module: nn.Module) -> onnx.ModelProto:
    """The file that would be shipped, for inputs of 3 x 64 x 64."""
    return finish(export_onnx(trace(module.eval(), (3, SIZE, SIZE))).model)


def resnet18() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10)


def mobilenet_v2() -> nn.Module:
    return pytest.importorskip("torchvision").models.mobilenet_v2(num_classes=10)


def vit() -> nn.Module:
    return pytest.importorskip("timm").create_model("vit_tiny_patch16_224", img_size=SIZE, depth=2, num_classes=10)


def arithmetic(model: onnx.ModelProto, layers: tuple[EngineLayer, ...]) -> dict[str, str]:
    """By weighted node, the precision of the layers that hold it."""
    weights = {i.name for i in model.graph.initializer}
    names = [n.name for n in model.graph.node if n.op_type in WEIGHTED and not weights.isdisjoint(n.input)]
    return {name: " ".join(la.precision for la in layers if name in la.onnx) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet18, mobilenet_v2, vit])
def test_a_real_network_is_built_in_every_precision(make: Callable[[], nn.Module]) -> None:
    """Nearly every weighted node is in a layer of the table that reads what was asked for; fp16 halves the engine.

    Nearly: a kernel that also does what stays in fp32, such as a mean and the classifier behind it, reads fp32; and of
    some kernels the runtime names not all nodes.
    """
    torch.manual_seed(0)
    model = exported(make())
    full = built(model, batch=(1, 2, 4))
    half, int8 = built(model, precision="fp16"), built(quantised(model), precision="int8+fp16")
    for engine, mark in ((full, "fp32"), (half, "fp16"), (int8, "int8")):
        found = arithmetic(model, layers_from_log(engine.messages))
        assert len(found) > 5
        assert sum(mark in precision for precision in found.values()) >= 0.9 * len(found)
    assert len(half.plan) < 0.75 * len(full.plan)
    assert [[1, 3, SIZE, SIZE], [2, 3, SIZE, SIZE], [4, 3, SIZE, SIZE]] == full.settings["shapes"]


@pytest.fixture(scope="module")
def tiny() -> onnx.ModelProto:
    """A network that exports fast: two convolutions, a norm and a softmax between matrix products."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.body = nn.Conv2d(8, 16, 3, 2, 1)
            self.norm = nn.LayerNorm(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(self.stem(x).relu()).relu().flatten(2).transpose(1, 2)
            return self.head((self.norm(y) @ y.transpose(1, 2)).softmax(-1).matmul(y).mean(1))

    torch.manual_seed(0)
    return exported(Tiny())


def test_layers_that_must_stay_in_fp32_are_named(tiny: onnx.ModelProto) -> None:
    """By module; the classifier, which reads fp16 otherwise, reads fp32. A pattern that fits nothing is refused."""
    (head,) = [n.name for n in tiny.graph.node if n.op_type == "Gemm"]
    engine = built(tiny, precision="fp16", fp32_layers=("head",))
    found = arithmetic(tiny, layers_from_log(engine.messages))
    assert "fp32" in found[head]
    assert f"{head} stays in fp32: asked for" in engine.notes
    with pytest.raises(UsageError, match="no layer is called nobody"):
        built(tiny, precision="fp16", fp32_layers=("nobody",))


def test_progress_ascends_to_its_end(tiny: onnx.ModelProto) -> None:
    """Fractions never go back, and the last one is 1."""
    seen: list[float] = []
    build_engine(trt, listener(trt), tiny, EngineSpec(arch="sm_86"), progress=lambda f, _: seen.append(f))
    assert sorted(seen) == seen
    assert (True, 1.0) == (len(seen) > 10, seen[-1])


def test_a_build_is_cancelled_by_its_listener(tiny: onnx.ModelProto) -> None:
    """Ctrl-C in the progress bar ends the build, and comes out as what it is."""

    def interrupt(fraction: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(trt, listener(trt), tiny, EngineSpec(arch="sm_86"), progress=interrupt)


def test_two_builds_are_the_same_engine(tiny: onnx.ModelProto) -> None:
    """TensorRT-RTX times nothing while it builds."""
    assert built(tiny).plan == built(tiny).plan


def test_a_workspace_too_small_is_said_in_the_runtime_s_words(tiny: onnx.ModelProto) -> None:
    """With the option that changes it."""
    with pytest.raises(CpdError, match=r"built no engine from the model: .*orkspace.*\n.*--workspace-mib"):
        built(tiny, workspace_bytes=0)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"arch": "sm_87"}, UsageError, r"does not build for sm_87: it builds for .*sm_86"),
        ({"precision": "int8"}, ModelError, r"no Q/DQ nodes.*\n.*--calibration"),
        ({"precision": "fp16", "dla_core": 0}, UsageError, "DLA core 0 was asked for, this device has 0"),
        ({"shape": (3, 32, 32)}, ModelError, r"takes \[-1, 3, 64, 64\] .* the image shape is \[3, 32, 32\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny: onnx.ModelProto, spec: dict[str, Any], error: type[CpdError], words: str
) -> None:
    """The device, the precision, the shape: with what there is."""
    with pytest.raises(error, match=words):
        built(tiny, **spec)


@pytest.mark.parametrize(
    "spec",
    [{"precision": "fp8"}, {"batch": (2, 1, 4)}, {"level": 6}, {"workspace_bytes": -1}, {"dla_core": 0}],
)
def test_a_spec_that_is_none_is_refused(spec: dict[str, Any]) -> None:
    """Before anything is loaded."""
    with pytest.raises(UsageError):
        EngineSpec(**spec)


def test_a_quantised_model_is_not_built_as_another_precision(tiny: onnx.ModelProto) -> None:
    """Its Q/DQ nodes would count for nothing."""
    with pytest.raises(ModelError, match="holds Q/DQ nodes, precision fp32 was asked for"):
        built(quantised(tiny))


def test_a_fixed_batch_is_the_only_batch(tiny: onnx.ModelProto) -> None:
    """With the batch that the file has."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(tiny)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ModelError, match=r"batch fixed at 2, \(1, 1, 1\) was asked for"):
        built(fixed)


def test_unsupported_operators_are_all_reported_with_their_nodes() -> None:
    """Before anything is built, in the order of the nodes."""
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 3, 8, 8]), ("y", None))]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "fine"),
        helper.make_node("Unique", ["a"], ["c"], "unique"),
        helper.make_node("Frobnicate", ["c"], ["y"], "frob", domain="mine"),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=8)
    with pytest.raises(
        ModelError, match=r"does not take 2 nodes of the model:\s+unique \(Unique\): .*\s+frob \(mine\."
    ):
        built(model)


def test_an_unsupported_operator_is_reported_with_the_line_of_the_model() -> None:
    """The exporter keeps the stack; torch's own frames are left out."""

    class Determined(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.det(x)  # the line that is named

    model = exported(Determined())
    (node,) = [n for n in model.graph.node if n.op_type == "Det"]
    here = Path(__file__)
    line = 1 + next(i for i, text in enumerate(here.read_text().splitlines()) if "the line that is named" in text)
    assert source_line(node).startswith(f"{here}:{line}: return torch.det(x)")
    with pytest.raises(ModelError, match=rf"\(Det\) at .*test_engine\.py:{line}: return torch\.det"):
        built(model)


def test_without_a_driver_an_engine_does_not_load_and_nothing_crashes(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    """The real runtime, in a process of its own: an error, heard by our listener, and no engine."""
    plan = tmp_path / "tiny.plan"
    plan.write_bytes(built(tiny).plan)
    code = (
        "import sys, tensorrt_rtx as trt\n"
        "from cpd_edge.measure.driver import find_gpu\n"
        "from cpd_edge.measure.listening import listener\n"
        "if find_gpu()[0]: sys.exit('gpu')\n"
        "engine = trt.Runtime(listener(trt)).deserialize_cuda_engine(open(sys.argv[1], 'rb').read())\n"
        "print(engine, listener(trt).errors[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plan)], capture_output=True, text=True, check=False)
    if done.stderr.strip() == "gpu":
        pytest.skip("this machine has a GPU")
    assert (0, True) == (done.returncode, done.stdout.startswith("None ")), done.stderr
    assert "CUDA driver version is insufficient" in done.stdout


def test_one_logger_serves_runtime_and_builder(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    """The library keeps the first it is given: with one for each, the table of a later build would be lost."""
    onnx.save(tiny, tmp_path / "tiny.onnx")
    code = (
        "import sys, onnx, tensorrt_rtx as trt\n"
        "from cpd_edge.deploy.engine import EngineSpec, build_engine\n"
        "from cpd_edge.measure.listening import listener\n"
        "runtime = trt.Runtime(listener(trt))\n"
        "built = build_engine(trt, listener(trt), onnx.load(sys.argv[1]), EngineSpec(arch='sm_86'))\n"
        "print(len(built.messages))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "tiny.onnx")]
    assert "1\n" == subprocess.run(words, capture_output=True, text=True, check=True).stdout
