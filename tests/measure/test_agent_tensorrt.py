"""Laws of the agent's TensorRT engine, on an emulated TensorRT and an emulated CUDA: it has met no real one.

The emulation is that of `pipeline.emulated_tensorrt`; the agent's file is loaded as a module, with both put in.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from pipeline.emulated_tensorrt import ComputingCuda, emulated_tensorrt, layers_of

from cpd_edge.measure import ssh
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.engine_runner import layer_kernels
from cpd_edge.measure.layers import layers_from_inspector
from cpd_edge.measure.runners import OnnxRunner

OPTIONS = {"batch": 1, "seed": 0, "ring": None, "precision": "fp32", "typed": False}


class Cuda:
    """The agent's view of the emulated device."""

    def __init__(self, device: ComputingCuda) -> None:
        self.device, self.stream = device, ctypes.c_void_p(1)
        self.closed = False

    def arch(self) -> str:
        return "sm_87"

    def allocate(self, size: int) -> int:
        return self.device.cudaMalloc(size)[1]

    def upload(self, address: int, values: Any) -> None:
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def download(self, values: Any, address: int) -> None:
        self.device.before_download()
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def wait(self) -> None:
        """The emulated device is never behind."""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def trt() -> Any:
    device = ComputingCuda()
    module = emulated_tensorrt(device)
    module.device = device
    return module


@pytest.fixture
def agent(trt: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("agent_here", Path(ssh.__file__).with_name("agent.py"))
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    monkeypatch.setattr(found, "Cuda", lambda: Cuda(trt.device))
    monkeypatch.setattr(found, "module", lambda name: trt if name == "tensorrt" else np)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "files" / ("0" * 64)
    path.parent.mkdir()
    path.write_bytes(tiny_model())
    return path


def test_it_builds_runs_and_tells_its_layers(agent: ModuleType, model: Path) -> None:
    """Outputs are the model's, kernels come with the nodes that they hold, and everything is given back."""
    engine = agent.BuiltEngine(str(model), OPTIONS, None)
    feed = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(engine.outputs(feed), OnnxRunner(model).outputs(feed), rtol=1e-4, atol=1e-5)
    told = json.loads(json.dumps(engine.kernels(2, "")))
    found = layer_kernels(layers_from_inspector(told["inspector"]), told["names"], np.asarray(told["ms"]))
    truth = layers_of(onnx.load(model))
    seen = [(k.name, k.nodes, k.ms.tolist()) for k in found]
    assert seen == [(name, nodes, [ms, ms]) for name, _, nodes, ms in truth]
    assert ("tensorrt", "1x3x32x32") == (engine.environment["runtime"], engine.environment["shape"])
    assert {"first_load", "first_inference"} == engine.load_ms.keys()
    engine.close()
    assert engine.cuda.closed


def test_an_engine_is_built_once_for_a_model_and_precision(agent: ModuleType, model: Path, trt: Any) -> None:
    """It lies on the device, with the timing cache of all builds; another precision is another one."""
    for _ in range(2):
        agent.BuiltEngine(str(model), OPTIONS, None).close()
    assert 1 == len(trt.builds)
    agent.BuiltEngine(str(model), {**OPTIONS, "precision": "fp16"}, None).close()
    assert 2 == len(trt.builds) == len(list((model.parents[1] / "engines").glob("*.plan")))
    (timings,) = (model.parents[1] / "engines").glob("*.timing")
    assert b".." == timings.read_bytes()


def test_a_strongly_typed_runtime_asks_for_a_typed_model(agent: ModuleType, model: Path, trt: Any) -> None:
    """From TensorRT 11 on the types are the file's: the host converts it, which takes ONNX."""
    del trt.BuilderFlag.FP16
    with pytest.raises(agent.Trouble) as refused:
        agent.BuiltEngine(str(model), {**OPTIONS, "precision": "fp16"}, None)
    assert "typed" == refused.value.record["error"]
    agent.BuiltEngine(str(model), {**OPTIONS, "precision": "fp16", "typed": True}, None).close()


def test_a_tensorrt_that_does_not_start_is_not_taken_for_a_model_that_it_refuses(
    agent: ModuleType, model: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its binding says null pointer only; its log knows why."""

    def none(log: Any) -> None:
        log.log(SimpleNamespace(name="ERROR"), "Error Code 2: Internal Error (the kernels' digest differs)")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", none)
    with pytest.raises(agent.Trouble, match=r"does not start on the device: .*digest differs") as refused:
        agent.BuiltEngine(str(model), OPTIONS, None)
    assert "no-start" == refused.value.record["error"]


def test_without_a_driver_it_says_so(agent: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of TensorRT is touched, which would end the process."""
    spec = importlib.util.spec_from_file_location("agent_again", Path(ssh.__file__).with_name("agent.py"))
    assert spec is not None and spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    monkeypatch.setattr(plain.Cuda, "loaded", staticmethod(lambda name: None))
    with pytest.raises(plain.Trouble) as refused:
        plain.Cuda()
    assert "missing" == refused.value.record["error"]


def test_shapes_on_the_cpu_are_no_fallback(agent: ModuleType) -> None:
    """As on this machine: what writes integers and masks belongs there, what writes floats does not."""
    shape = {"output_type_shape": [{"int64": [4]}]}
    assert not agent.computes(shape)
    assert not agent.computes({"output_type_shape": [{"bool": [4]}, {"int32": []}]})
    assert agent.computes({"output_type_shape": [{"int64": [4]}, {"float16": [1, 3]}]})
    assert agent.computes({})
