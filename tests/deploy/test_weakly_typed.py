"""Laws of the builder before TensorRT 11, where precision is a flag: on an emulated module that notes what it is told.

Emulated: it shows which calls are made, and the contract test shows that the real bindings have them. What a real
TensorRT 8.6 or 10 makes of them has not been seen by us.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from cpd_edge.deploy.engine import EngineSpec, build_engine
from cpd_edge.errors import CpdError, ModelError, UsageError
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.listening import listener


def emulated(version: str = "8.6.1", *, dla_cores: int = 0, refuses: str = "", fails: str = "") -> Any:
    """A module like `tensorrt` before 11, with what it was told under `told`.

    Args:
        version: as it calls itself.
        dla_cores: of its device.
        refuses: operator that its parser does not take.
        fails: what its builder says when it gives no engine.
    """
    told: dict[str, Any] = {"flags": {"TF32"}, "layers": {}}

    class Config:
        profiling_verbosity = builder_optimization_level = default_device_type = DLA_core = None

        def set_flag(self, flag: str) -> None:
            told["flags"].add(flag)

        def clear_flag(self, flag: str) -> None:
            told["flags"].discard(flag)

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            told[pool] = size

        def add_optimization_profile(self, profile: Any) -> int:
            told["profile"] = profile.shapes
            return 0

        def create_timing_cache(self, data: bytes) -> bytes:
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            told["cache"] = cache
            return True

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: told["cache"] + b" timed")

    class Layer:
        num_outputs = 1
        precision = None

        def __init__(self, name: str) -> None:
            self.name = name

        def get_output(self, i: int) -> Any:
            return SimpleNamespace(dtype="float32" if self.name != "flatten" else "int32")

        def set_output_type(self, i: int, kind: str) -> None:
            told["layers"][self.name] = (self.precision, kind)

    class Network:
        num_inputs, num_layers = 1, 0

        def __init__(self, flags: int) -> None:
            told["creation"], self.layers = flags, []

        def get_input(self, i: int) -> Any:
            return SimpleNamespace(name="image", shape=(-1, 3, 32, 32))

        def get_layer(self, i: int) -> Layer:
            found: Layer = self.layers[i]
            return found

    class Parser:
        num_errors = 0

        def __init__(self, network: Network, log: Any) -> None:
            self.network = network

        def parse(self, data: bytes) -> bool:
            nodes = onnx.load_from_string(data).graph.node
            told["ops"] = [n.op_type for n in nodes]
            self.network.layers = [Layer(n.name) for n in nodes]
            self.network.num_layers = len(nodes)
            return refuses not in told["ops"]

        def supports_operator(self, op: str) -> bool:
            return op != refuses

    class Builder:
        num_DLA_cores = dla_cores

        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            told["config"] = Config()
            return told["config"]  # type: ignore[no-any-return]

        def create_optimization_profile(self) -> Any:
            profile = SimpleNamespace(shapes=None)
            profile.set_shape = lambda name, *shapes: setattr(profile, "shapes", (name, *shapes))
            return profile

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            if fails:
                self.log.log(SimpleNamespace(name="ERROR"), fails)
                return None
            self.log.log(
                SimpleNamespace(name="VERBOSE"), "Engine Layer Information:\nLayer(Cask): conv0, Tactic: 0x0, "
            )
            return b"plan"

    names = ("FP16", "INT8", "TF32", "GPU_FALLBACK", "OBEY_PRECISION_CONSTRAINTS")
    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__=version, told=told, Builder=Builder, OnnxParser=Parser, float32="float32", float16="float16",
        ILogger=type("ILogger", (), {"__init__": lambda self: None}),
        BuilderFlag=SimpleNamespace(**{n: n for n in names}), DeviceType=SimpleNamespace(DLA="DLA"),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
    )  # fmt: skip
    return module


def told(trt: Any, cache: Path | None = None, model: onnx.ModelProto | None = None, **spec: Any) -> dict[str, Any]:
    """What the module was told in one build."""
    model = model or onnx.load_from_string(tiny_model())
    build_engine(trt, listener(trt), model, EngineSpec(**spec), cache=cache)
    found: dict[str, Any] = trt.told
    return found


def quantised() -> onnx.ModelProto:
    """The tiny model with one Q/DQ pair in front."""
    model = onnx.load_from_string(tiny_model())
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["image", "scale"], ["q"], "q"),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], "d"),
    ]
    model.graph.initializer.append(onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.1]))
    model.graph.node[0].input[0] = "d"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*pair, *rest])
    return model


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", set()), ("tf32", {"TF32"}), ("fp16", {"TF32", "FP16"})],
)
def test_precision_is_a_flag_and_the_file_stays_as_it_is(precision: str, flags: set[str]) -> None:
    """No cast is put into the file; the batch is a dim of its own; everything is to be told of the layers."""
    found = told(emulated(), precision=precision, batch=(1, 4, 8))
    assert (flags, 1, "detailed") == (found["flags"], found["creation"], found["config"].profiling_verbosity)
    assert "Cast" not in found["ops"]
    assert ("image", (1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32)) == found["profile"]


@pytest.mark.parametrize(("precision", "flags"), [("int8", {"INT8"}), ("int8+fp16", {"INT8", "FP16"})])
def test_int8_is_a_flag_beside_the_file_s_own_q_dq(precision: str, flags: set[str]) -> None:
    """Without the flag the nodes would count for nothing."""
    assert flags | {"TF32"} == told(emulated(), model=quantised(), precision=precision)["flags"]


def test_layers_that_stay_in_fp32_are_constrained() -> None:
    """Their arithmetic and their outputs; layers that write no floats are left alone."""
    found = told(emulated(), precision="fp16", fp32_layers=("conv1", "flatten"))
    assert {"conv1": ("float32", "float32")} == found["layers"]
    assert "OBEY_PRECISION_CONSTRAINTS" in found["flags"]


def test_limits_are_the_config_s() -> None:
    """Workspace, level."""
    found = told(emulated(), workspace_bytes=1 << 20, level=5)
    assert (1 << 20, 5) == (found["workspace"], found["config"].builder_optimization_level)


def test_a_dla_core_comes_with_the_gpu_for_the_rest() -> None:
    """Where there is one."""
    found = told(emulated(dla_cores=2), precision="fp16", dla_core=1)
    assert ("DLA", 1) == (found["config"].default_device_type, found["config"].DLA_core)
    assert "GPU_FALLBACK" in found["flags"]
    with pytest.raises(UsageError, match="DLA core 1 was asked for, this device has 1"):
        told(emulated(dla_cores=1), precision="fp16", dla_core=1)


def test_the_timing_cache_goes_from_build_to_build(tmp_path: Path) -> None:
    """Read before, written after."""
    path = tmp_path / "orin.timing"
    assert b"" == told(emulated(), cache=path)["cache"]
    assert b" timed" == told(emulated(), cache=path)["cache"]
    assert b" timed timed" == path.read_bytes()


def test_a_parser_that_names_no_node_is_asked_for_each_operator() -> None:
    """As TensorRT 8 stops at the first."""
    with pytest.raises(
        ModelError, match=r"TensorRT 8\.6\.1 does not take 3 nodes .*\s+conv0 \(Conv\): no such operator"
    ):
        told(emulated(refuses="Conv"))


@pytest.mark.parametrize(
    ("said", "hint"),
    [("insufficient workspace", "--workspace-mib"), ("Out of memory", "--batch"), ("odd", "")],
)
def test_a_failed_build_says_why(said: str, hint: str) -> None:
    """In the runtime's words, with what may help."""
    with pytest.raises(CpdError, match=f"built no engine from the model: {said}") as caught:
        told(emulated(fails=said))
    assert hint in caught.value.hint


def test_a_runtime_that_does_not_start_says_why() -> None:
    """Its binding says null pointer only, and a user would look for the fault in the model."""
    trt = emulated()

    def none(log: Any) -> None:
        log.log(SimpleNamespace(name="ERROR"), "the kernels' digest differs")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = none  # type: ignore[attr-defined]
    with pytest.raises(CpdError, match=r"TensorRT 8\.6\.1 does not start: the kernels' digest differs"):
        told(trt)


def test_another_gpu_is_not_built_for() -> None:
    """Only TensorRT-RTX does."""
    with pytest.raises(UsageError, match="it builds for the GPU it runs on, and no other"):
        told(emulated(), arch="sm_87")
