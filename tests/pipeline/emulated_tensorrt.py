"""An emulated TensorRT that builds: any ONNX file becomes an engine, whose kernels take what a stated cost model says.

Emulated, not recorded. It fuses as TensorRT is known to (an operation with the elementwise chain behind it; two
operations in one kernel that cannot be split; a change of format in front), computes outputs by ONNX Runtime on the
CPU, and moves the clock of `EmulatedCuda`. So the path from a network to a table and a plan can be held against the
truth; what a real TensorRT fuses and how fast it is stays unknown.
"""

from __future__ import annotations

import ctypes
import json
from math import prod
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from measure.emulated_gpu import EmulatedCuda, array

from cpd_edge.measure.shapes import infer_shapes
from cpd_edge.profile.regions import find_regions

LAUNCH_MS, MS_PER_MAC, MS_PER_ELEMENT, REFORMAT_MS, GAP_MS = 0.004, 2e-7, 1e-6, 0.01, 0.02
"""The cost model: a kernel takes `launch + macs + elements written`; each inference has a gap that no layer has."""
TOGETHER = (3, 4)
"""Places of the operations that are one kernel."""


def layers_of(model: onnx.ModelProto) -> list[tuple[str, str, tuple[str, ...], float]]:
    """Name, type, ONNX nodes and time [ms] of every kernel of an engine, in execution order."""
    shapes = infer_shapes(model)
    outputs = {n.name or n.output[0]: n.output[0] for n in model.graph.node}
    found = [("Reformatting CopyNode for Input Tensor 0", "Reformat", tuple[str, ...](), REFORMAT_MS)]
    regions = find_regions(model, {})
    for place, region in enumerate(regions):
        written = prod(shapes.get(outputs[region.nodes[-1]], (1,)))
        ms = LAUNCH_MS + MS_PER_MAC * region.dense_macs + MS_PER_ELEMENT * written
        if place == TOGETHER[1]:
            _, _, nodes, before = found.pop()
            found.append((f"__myl_{place}", "Myelin", nodes + region.nodes, before + ms))
        else:
            found.append((f"{region.name}_fused", "gemm", region.nodes, ms))
    return found


def latency_ms(model: bytes) -> float:
    """The truth: what one inference of a model takes."""
    return GAP_MS + sum(ms for *_, ms in layers_of(onnx.load_from_string(model)))


def emulated_tensorrt(cuda: EmulatedCuda) -> Any:
    """A module like TensorRT 10.3; `module.builds` holds the ONNX of every engine that was built."""
    module = ModuleType("tensorrt")
    builds: list[bytes] = []

    class Config:
        profiling_verbosity = None

        def set_flag(self, flag: str) -> None:
            assert flag in ("FP16", "INT8")

        def clear_flag(self, flag: str) -> None:
            assert flag == "TF32"

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, data: bytes) -> bytes:
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: self.cache + b".")

    class Network:
        num_inputs, num_layers = 1, 0
        data = b""

        def get_input(self, i: int) -> Any:
            source = onnx.load_from_string(self.data).graph.input[0]
            dims = [d.dim_value or -1 for d in source.type.tensor_type.shape.dim]
            return SimpleNamespace(name=source.name, shape=tuple(dims))

    class Parser:
        def __init__(self, network: Network, log: Any) -> None:
            self.network = network

        def parse(self, data: bytes) -> bool:
            self.network.data = data
            return True

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> Network:
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, *shapes: None)

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            builds.append(network.data)
            return b"plan" + network.data

    class Context:
        profiler, enqueue_emits_profile = None, True

        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses = engine, dict[str, int]()

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.engine.shapes[name] = shape
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.engine.shape(name)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, handle: int) -> bool:
            cuda.enqueue(lambda: setattr(cuda, "now_ms", cuda.now_ms + self.engine.run_ms))
            return True

        def computed(self) -> None:
            """What the kernels write; done when it is read, since most inferences are only timed."""
            source, out = self.engine.names
            feed = array(self.addresses[source], self.engine.shape(source))
            found = self.engine.session().run([out], {source: feed})[0]
            array(self.addresses[out], found.shape)[:] = found

        def report_to_profiler(self) -> bool:
            for name, _, _, ms in self.engine.layers:
                self.profiler.report_layer_time(name, ms)  # type: ignore[attr-defined]
            return True

    class Engine:
        num_io_tensors, device_memory_size_v2 = 2, 1024

        def __init__(self, data: bytes) -> None:
            self.model = onnx.load_from_string(data)
            self.layers = layers_of(self.model)
            self.run_ms = GAP_MS + sum(ms for *_, ms in self.layers)
            self.names = [self.model.graph.input[0].name, self.model.graph.output[0].name]
            self.shapes: dict[str, tuple[int, ...]] = {}

        def session(self) -> Any:
            import onnxruntime

            options = onnxruntime.SessionOptions()  # its integer kernels saturate on some CPUs, plain ones do not
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            return onnxruntime.InferenceSession(self.model.SerializeToString(), options, ["CPUExecutionProvider"])

        def shape(self, name: str) -> tuple[int, ...]:
            ends = (*self.model.graph.input, *self.model.graph.output)
            dims = next(e for e in ends if e.name == name).type.tensor_type.shape.dim
            batch = self.shapes[self.names[0]][0]
            return (batch, *(d.dim_value for d in list(dims)[1:]))

        def get_tensor_name(self, i: int) -> str:
            return str(self.names[i])

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name == self.names[0] else "out"

        def get_tensor_dtype(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(name="FLOAT")

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            dims = self.model.graph.input[0].type.tensor_type.shape.dim
            return tuple(d.dim_value or -1 for d in dims)

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(1, *self.get_tensor_shape(name)[1:])] * 3

        def create_execution_context(self) -> Context:
            cuda.before_download = (context := Context(self)).computed  # type: ignore[attr-defined]
            return context

        def create_engine_inspector(self) -> Any:
            entries = [
                {"Name": n, "LayerType": t, "Metadata": "\x1e".join(f"[ONNX Layer: {x}]" for x in nodes)}
                for n, t, nodes, _ in self.layers
            ]
            return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": entries}))

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            return Engine(plan.removeprefix(b"plan"))

    plain = ("ILogger", "IProfiler")
    module.__dict__.update(
        {name: type(name, (), {"__init__": lambda self: None}) for name in plain},
        __version__="10.3.0", builds=builds, Runtime=Runtime, Builder=Builder, OnnxParser=Parser,
        TensorIOMode=SimpleNamespace(INPUT="in"), LayerInformationFormat=SimpleNamespace(JSON="json"),
        BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8", TF32="TF32"),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
    )  # fmt: skip
    return module


class ComputingCuda(EmulatedCuda):
    """The emulated device, which lets the engine compute when its output is read."""

    before_download: Any = None

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Any) -> Any:
        if kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self.before_download()
        ctypes.memmove(to, source, size)
        return super().cudaMemcpyAsync(to, source, size, kind, stream)

    def clock(self) -> int:
        """What only kernels move [ns]."""
        return round(self.now_ms * 1e6)
