"""An emulated GPU: the calls of `cuda.bindings.runtime` and of TensorRT that the engine runner makes, on host memory.

Emulated, not recorded: it shows that the runner orders its calls, addresses, shapes and times as it means to, and frees
what it takes. It shows nothing about a real driver or a real TensorRT.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from cpd_edge.measure.driver import Gpu
from cpd_edge.measure.engine_file import EngineRecord, save_engine
from cpd_edge.measure.engine_runner import EngineRunner

ORIN = Gpu("Orin", "sm_87", "12.6", 8 << 30)
LAYERS = ("conv", "pool")
LAYER_MS = {"conv": 1.25, "pool": 0.5}


class Status(IntEnum):
    """Two of CUDA's many."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class EmulatedCuda:
    """One stream in order; a clock that only kernels move; memory on the host."""

    cudaEventBlockingSync = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, fail: str = "") -> None:
        self.fail, self.now_ms = fail, 0.0
        self.live: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.copies: list[int] = []
        self.replays = self.runs = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name == object.__getattribute__(self, "fail"):
            return lambda *a: (Status.cudaErrorMemoryAllocation, None)
        return object.__getattribute__(self, name)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Now, or into the graph that is being captured."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def take(self, what: Any) -> tuple[Status, int]:
        handle = ctypes.addressof(what) if isinstance(what, ctypes.Array) else 1000 + len(self.live)
        self.live[handle] = what
        return Status.cudaSuccess, handle

    def give(self, handle: int) -> tuple[Status]:
        del self.live[handle]
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        return self.take((ctypes.c_byte * size)())

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Any) -> tuple[Status]:
        self.enqueue(lambda: (self.copies.append(kind), ctypes.memmove(to, source, size))[0])
        return (Status.cudaSuccess,)

    def cudaStreamCreate(self) -> tuple[Status, int]:
        return self.take("stream")

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        return self.take([0.0])

    def cudaEventRecord(self, event: int, stream: Any) -> tuple[Status]:
        self.live[event][0] = self.now_ms
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    cudaStreamSynchronize = cudaEventSynchronize

    def cudaEventElapsedTime(self, begin: int, end: int) -> tuple[Status, float]:
        return Status.cudaSuccess, self.live[end][0] - self.live[begin][0]

    def cudaStreamCaptureMode(self, mode: int) -> int:
        return mode

    def cudaStreamBeginCapture(self, stream: Any, mode: int) -> tuple[Status]:
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Status, int]:
        work, self.capturing = self.capturing, None
        return self.take(work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Status, int]:
        return self.take(list(self.live[graph]))

    def cudaGraphLaunch(self, ready: int, stream: Any) -> tuple[Status]:
        self.replays += 1
        for work in self.live[ready]:
            work()
        return (Status.cudaSuccess,)

    cudaMallocHost = cudaMalloc
    cudaFree = cudaFreeHost = cudaEventDestroy = cudaStreamDestroy = cudaGraphDestroy = cudaGraphExecDestroy = give


def emulated_tensorrt(
    cuda: EmulatedCuda, *, older: bool = False, inputs: int = 1, profile_high: int = 4, head: str = "mean"
) -> Any:
    """A module like `tensorrt`, whose one network makes something of images `[b, 3, 8, 8]`.

    Args:
        cuda: the device that it runs on.
        older: without what came after TensorRT 8.6.
        inputs: how many inputs the engine has.
        profile_high: largest batch of the engine's profile.
        head: `mean` of each image `[b, 1]`, `means` of its channels `[b, 3]`, or the `image` itself as logits.
    """
    extents, axes = {"mean": ((1,), (1, 2, 3)), "means": ((3,), (2, 3)), "image": ((3, 8, 8), ())}[head]

    class Context:
        def __init__(self) -> None:
            self.addresses: dict[str, int] = {}
            self.batch, self.profiler, self.enqueue_emits_profile = 0, None, True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.batch = shape[0]
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self.batch, *extents) if name == "logits" else (self.batch, 3, 8, 8)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, handle: int) -> bool:
            source, to, batch = self.addresses["image"], self.addresses["logits"], self.batch

            def work() -> None:
                images = array(source, (batch, 3, 8, 8))
                array(to, (batch, *extents))[:] = images.mean(axis=axes).reshape(batch, *extents)
                cuda.runs += 1
                cuda.now_ms += sum(LAYER_MS.values()) * batch * (10 if cuda.runs <= 2 else 1)  # cold at first

            cuda.enqueue(work)
            return bool(images_known(source))

        def report_to_profiler(self) -> bool:
            assert self.profiler is not None and not self.enqueue_emits_profile
            for name in LAYERS:
                self.profiler.report_layer_time(name, LAYER_MS[name])
            return True

    def images_known(source: int) -> bool:
        return source in cuda.live

    class Inspector:
        execution_context = None

        def get_engine_information(self, form: str) -> str:
            layers = [{"Name": n, "LayerType": n.upper(), "Metadata": f"[ONNX Layer: /{n}]"} for n in LAYERS]
            return json.dumps({"Layers": layers, "Bindings": []})

    class Engine:
        num_io_tensors = 1 + inputs

        def get_tensor_name(self, i: int) -> str:
            return ["image", "logits", "more"][i]

        def get_tensor_mode(self, name: str) -> str:
            return "out" if name == "logits" else "in"

        def get_tensor_dtype(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(name="FLOAT")

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, 3, 8, 8)

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(1, 3, 8, 8), (1, 3, 8, 8), (profile_high, 3, 8, 8)]

        def create_execution_context(self) -> Context:
            return Context()

        def create_engine_inspector(self) -> Inspector:
            return Inspector()

    setattr(Engine, "device_memory_size" if older else "device_memory_size_v2", 4096)

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan.startswith(b"plan"):
                return Engine()
            self.log.log(SimpleNamespace(name="ERROR"), "magic tag does not match")
            return None

    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__="8.6.1" if older else "10.3.0", Runtime=Runtime,
        ILogger=type("ILogger", (), {"__init__": lambda self: None}),
        IProfiler=type("IProfiler", (), {"__init__": lambda self: None}),
        TensorIOMode=SimpleNamespace(INPUT="in"), LayerInformationFormat=SimpleNamespace(JSON="json"),
    )  # fmt: skip
    return module


def array(address: int, shape: tuple[int, ...]) -> Any:
    """Emulated device memory as an array."""
    count = int(np.prod(shape))
    memory = memoryview((ctypes.c_byte * (4 * count)).from_address(address)).cast("B")
    return np.frombuffer(memory, np.float32, count).reshape(shape)


def engine_in(folder: Path, version: str = "10.3.0", plan: bytes = b"plan") -> Path:
    record = EngineRecord("net.onnx", "", "tensorrt", version, "sm_87", "Orin", "MAXN", "fp16", {}, 1.0)
    save_engine(folder / "net.plan", plan, record)
    return folder / "net.plan"


def runner_in(folder: Path, cuda: EmulatedCuda, *, older: bool = False, **options: Any) -> EngineRunner:
    trt = emulated_tensorrt(cuda, older=older, **{k: options.pop(k) for k in ("inputs", "head") if k in options})
    return EngineRunner(engine_in(folder, trt.__version__), trt=trt, cuda=cuda, gpu=ORIN, **options)
