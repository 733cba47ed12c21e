"""Runners of TensorRT engines: one inference on a stream, timed by the wall clock and by CUDA events at once.

Run by us on one GPU, an H200 with TensorRT 8.6, and on no Jetson: the tests run it on an emulated device, and hold
every name that it uses against the real bindings.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import CpdError, EnvironmentMismatch, ModelError, RuntimeMissing
from cpd_edge.measure.device_stream import DeviceStream, Launch, cuda_runtime
from cpd_edge.measure.driver import Gpu, require_gpu
from cpd_edge.measure.engine_file import load_engine, require_native
from cpd_edge.measure.environment import capture
from cpd_edge.measure.layers import EngineLayer, layers_from_inspector, timed
from cpd_edge.measure.listening import listener
from cpd_edge.measure.runners import RING, Kernel, KernelTimes
from cpd_edge.measure.stats import trend
from cpd_edge.types import Measurement

if TYPE_CHECKING:
    import tensorrt

MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Runtime to the module it is imported as."""

_WARM_RUNS = 3
_INSTALL: Mapping[str, str] = {
    "tensorrt": "pip install 'cpd-edge[gpu]'; on a Jetson it comes with JetPack: make the environment with "
    "python3 -m venv --system-site-packages",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}


@dataclass(frozen=True)
class Port:
    """One input or output of an engine, with its memory on the device."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int


class EngineRunner:
    """An engine with one input, on the GPU it was built for.

    Args:
        path: the engine; its record lies beside it.
        batch: images per inference, within the engine's profile.
        seed: of the ring of inputs.
        sample_input: images `[n, ...]` to fill the ring with, drawn at random; else standard normal values.
        graph: replay a CUDA graph instead of enqueueing kernel by kernel.
        transfers: copy the input to the device and the outputs back in each inference.
        blocking: the thread sleeps while it waits for the device; else the driver chooses.
        trt, cuda, gpu: stand-ins for the runtime's module, `cuda.bindings.runtime` and the driver's answer, for tests.

    Attributes:
        environment: device, runtime, how it is enqueued, shape, inputs and their range.
        load_ms: `first_load` and `first_inference`, apart.
        context_bytes: device memory that one inference works in, beside weights, inputs and outputs.
        event_ms: time between the CUDA events of each inference so far [ms].

    Raises:
        RuntimeMissing: no driver, no GPU, or a package is not installed.
        EnvironmentMismatch: the engine was built for something else.
        StoreError: the engine or its record is missing or damaged.
        ModelError: not one input, or a batch or shape outside its profile.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch: int = 1,
        seed: int = 0,
        sample_input: npt.NDArray[Any] | None = None,
        graph: bool = False,
        transfers: bool = False,
        blocking: bool = False,
        trt: Any = None,
        cuda: Any = None,
        gpu: Gpu | None = None,
    ) -> None:
        self._path, self._transfers = path, transfers
        plan, self._record = load_engine(path)
        gpu = gpu or require_gpu(f"engine {path}")
        self._trt = trt or runtime_module(self._record.runtime)
        require_native(path, self._record, self._record.runtime, self._trt.__version__, gpu)
        self._stream = DeviceStream(cuda or cuda_runtime(), blocking=blocking)
        self._log = listener(self._trt)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._runtime: tensorrt.Runtime = self._trt.Runtime(self._log)
            self._engine, first_load_ms = self._deserialised(plan)
            self._context: tensorrt.IExecutionContext = self._engine.create_execution_context()
            self._input, self._outputs = self._ports(batch, sample_input)
            self.context_bytes = self._context_bytes()
            self.ring = _ring(self._input, sample_input, seed)
            self._turn, self.event_ms = 0, list[float]()
            self._launches = self._prepare(graph)
            begun = time.perf_counter_ns()
            self.run()
            first_run_ms = (time.perf_counter_ns() - begun) / 1e6
            undo.pop_all()
        self.load_ms: Mapping[str, float] = {"first_load": first_load_ms, "first_inference": first_run_ms}
        how = ("CUDA graph" if graph else "enqueue", "with transfers" if transfers else "without transfers")
        here = capture(
            self._record.runtime, self._trt.__version__, 1, batch, self._input.shape, self._record.precision,
            providers=(gpu.arch, *how, "blocking wait" if blocking else "driver's wait"),
        )  # fmt: skip
        self.environment: Mapping[str, Any] = {
            **here, "device": f"{here['device']}, {gpu.name}", "gpu": gpu.name, "driver": gpu.driver, "clock": "wall",
            "power_mode_built": self._record.power_mode, "engine_sha256": self._record.engine_sha256,
            "context_bytes": self.context_bytes,
            "inputs": f"ring of {RING}, " + ("standard normal" if sample_input is None else "given samples"),
            "input_low": float(min(values.min() for values in self.ring)),
            "input_high": float(max(values.max() for values in self.ring)),
            "profiled": False,
        }  # fmt: skip

    @property
    def stream(self) -> DeviceStream:
        """The stream that it runs on, with its memory."""
        return self._stream

    @property
    def input(self) -> Port:
        """Where `enqueue` reads."""
        return self._input

    @property
    def outputs_there(self) -> tuple[Port, ...]:
        """Where every inference leaves its outputs on the device."""
        return self._outputs

    def enqueue(self, handle: int) -> None:
        """Enqueues one inference on what lies at `input`, and returns at once: for stages around the engine."""
        self._context.set_tensor_address(self._input.name, self._input.address)
        self._enqueue(self._context, handle)

    def run(self) -> None:
        """One inference on the next input of the ring, finished when this returns; its event time is kept."""
        self.event_ms.append(self._stream.timed(self._launches[self._turn]))
        self._turn = (self._turn + 1) % RING

    def by_events(self, measurement: Measurement) -> Measurement:
        """The inferences of a wall-clock measurement that has just ended, as the CUDA events saw them.

        Raises:
            ModelError: the measurement has more inferences than this runner ran.
        """
        n = len(measurement.samples_ns)
        if n > len(self.event_ms):
            raise ModelError(f"{n} inferences were measured, this engine ran {len(self.event_ms)}")
        ms = np.asarray(self.event_ms[-n:], np.float64)
        environment = {**measurement.environment, "clock": "CUDA events"}
        environment["protocol"] = f"{measurement.environment.get('protocol', '')}, CUDA events"
        samples_ns = np.round(ms * 1e6).astype(np.int64)
        return replace(measurement, samples_ns=samples_ns, environment=environment, steady=not trend(ms))

    def warm_load_ms(self) -> float:
        """Time to load the engine once more, now that file and runtime are warm [ms]."""
        return self._deserialised(self._path.read_bytes())[1]

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`, in pieces of the engine's batch."""
        size = self._input.shape[0]
        first, pieces = self._outputs[0], []
        address = self._input.address
        for start in range(0, len(feed), size):
            piece = feed[np.arange(start, start + size) % len(feed)]
            self._stream.upload(address, np.ascontiguousarray(piece, self._input.dtype))
            self._context.set_tensor_address(self._input.name, address)
            self._enqueue(self._context, self._stream.handle)
            values = np.empty(first.shape, first.dtype)
            self._stream.download(values, first.address)
            self._stream.wait()
            pieces.append(values)
        return np.concatenate(pieces)[: len(feed)]

    def layers(self) -> tuple[EngineLayer, ...]:
        """What the runtime fused, from its own inspector."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return layers_from_inspector(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def kernels(self, repeats: int) -> list[Kernel]:
        """`kernel_times` without the totals."""
        return list(self.kernel_times(repeats).kernels)

    def kernel_times(self, repeats: int) -> KernelTimes:
        """Times of every layer in `repeats` runs, from the runtime's own profiler, on a context of their own.

        The profiler waits after each layer, so the sum exceeds an inference without it: set it against `totals_ms`.

        Raises:
            ModelError: the runs did not all execute the same layers.
        """
        context = self._engine.create_execution_context()
        recorder = _recorder(self._trt)
        self._bind(context)
        context.profiler = recorder
        context.enqueue_emits_profile = False
        totals_ms = np.empty(repeats)
        for turn in range(_WARM_RUNS + repeats):
            recorder.runs.append([])
            begun = time.perf_counter_ns()
            self._enqueue(context, self._stream.handle)
            self._stream.wait()
            if turn >= _WARM_RUNS:
                totals_ms[turn - _WARM_RUNS] = (time.perf_counter_ns() - begun) / 1e6
            context.report_to_profiler()
        runs = recorder.runs[_WARM_RUNS:]
        names = [[name for name, _ in run] for run in runs]
        if not names or not names[0] or any(other != names[0] for other in names):
            raise ModelError("the profiled runs did not execute the same layers")
        ms = np.array([[value for _, value in run] for run in runs])  # [repeats, layers]
        return KernelTimes(layer_kernels(self.layers(), names[0], ms), totals_ms)

    def close(self) -> None:
        """Gives back the engine and everything on the device."""
        self._launches = []
        for name in ("_context", "_engine", "_runtime"):  # in this order
            self.__dict__.pop(name, None)
        self._stream.close()

    def _deserialised(self, plan: bytes) -> tuple[tensorrt.ICudaEngine, float]:
        """The engine, and its load time [ms]."""
        self._log.clear()
        begun = time.perf_counter_ns()
        engine = self._runtime.deserialize_cuda_engine(plan)
        load_ms = (time.perf_counter_ns() - begun) / 1e6
        if engine is None:
            said = self._log.errors[-1] if self._log.errors else "it gives no reason"
            raise EnvironmentMismatch(
                f"{self._record.runtime} {self._trt.__version__} does not load engine {self._path}: {said}",
                hint=f"build it here: cpd-edge build {self._record.onnx} --runtime {self._record.runtime}",
            )
        return engine, load_ms

    def _ports(self, batch: int, sample_input: npt.NDArray[Any] | None) -> tuple[Port, tuple[Port, ...]]:
        """Input and outputs with their shapes settled and memory on the device."""
        engine, mode = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == mode.INPUT]
        if len(inputs) != 1:
            raise ModelError(f"engine {self._path} has the inputs {inputs}, a vision model has one")
        fixed = tuple(engine.get_tensor_shape(inputs[0]))
        free = -1 in fixed
        low, _, high = engine.get_tensor_profile_shape(inputs[0], 0) if free else (fixed, fixed, fixed)
        rest = tuple(high)[1:] if sample_input is None else sample_input.shape[1:]
        shape = (batch, *(int(d) for d in rest))
        fits = len(shape) == len(low) and all(a <= d <= b for a, d, b in zip(low, shape, high, strict=True))
        if not fits:
            raise ModelError(
                f"engine {self._path} takes {list(low)} to {list(high)}, {list(shape)} was asked for",
                hint="build it with another --batch or --input",
            )
        if not self._context.set_input_shape(inputs[0], shape):
            raise ModelError(f"engine {self._path} refuses the shape {list(shape)}")
        ports = [self._port(name) for name in (inputs[0], *(n for n in names if n not in inputs))]
        return ports[0], tuple(ports[1:])

    def _port(self, name: str) -> Port:
        shape = tuple(int(d) for d in self._context.get_tensor_shape(name))
        dtype = _numpy_type(self._engine.get_tensor_dtype(name))
        port = Port(name, shape, dtype, self._stream.allocate(int(np.prod(shape)) * dtype.itemsize))
        self._context.set_tensor_address(name, port.address)
        return port

    def _bind(self, context: tensorrt.IExecutionContext) -> None:
        """Shapes and addresses of the ring's first input on another context."""
        context.set_input_shape(self._input.name, self._input.shape)
        for port in (self._input, *self._outputs):
            context.set_tensor_address(port.name, port.address)

    def _prepare(self, graph: bool) -> list[Launch]:
        """What enqueues one inference, for each input of the ring."""
        hosts = [self._stream.pinned(port.shape, port.dtype) for port in self._outputs] if self._transfers else []
        launches = [self._launch(values, hosts) for values in self.ring]
        if not graph:
            return launches
        for launch in launches:  # an engine sets itself up in its first runs, and that cannot be captured
            self._stream.timed(launch)
        return [self._stream.captured(launch) for launch in launches]

    def _launch(self, values: npt.NDArray[Any], hosts: list[npt.NDArray[Any]]) -> Launch:
        if self._transfers:
            source = self._stream.pinned(values.shape, values.dtype)
            source[...] = values
            address = self._input.address
        else:
            address = self._stream.allocate(values.nbytes)
            self._stream.upload(address, values)
            self._stream.wait()

        def launch(handle: int) -> None:
            if self._transfers:
                self._stream.upload(address, source)
            self._context.set_tensor_address(self._input.name, address)
            self._enqueue(self._context, handle)
            for host, port in zip(hosts, self._outputs if hosts else (), strict=True):
                self._stream.download(host, port.address)

        return launch

    def _enqueue(self, context: tensorrt.IExecutionContext, handle: int) -> None:
        if not context.execute_async_v3(handle):
            said = self._log.errors[-1] if self._log.errors else "it gives no reason"
            raise CpdError(f"engine {self._path} does not run: {said}")

    def _context_bytes(self) -> int:
        engine: Any = self._engine
        newer = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if newer else engine.device_memory_size)


def layer_kernels(
    layers: Sequence[EngineLayer], names: Sequence[str], ms: npt.NDArray[np.float64]
) -> tuple[Kernel, ...]:
    """What the profiler timed (`ms` `[repeats, names]`), with what the inspector says of each: type and ONNX nodes."""
    known = {layer.name: layer for layer in timed(layers, dict.fromkeys(names, 0.0))}
    return tuple(Kernel(name, known[name].type, i, ms[:, i].copy(), known[name].onnx) for i, name in enumerate(names))


def runtime_module(runtime: str) -> Any:
    """The module of a TensorRT runtime.

    Raises:
        RuntimeMissing: it is not installed, or is none of them.
    """
    if runtime not in MODULES:
        raise RuntimeMissing(f"runtime {runtime!r} builds no engines", hint=f"one of {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[runtime])
    except ImportError as error:
        raise RuntimeMissing(f"{runtime} is not installed", hint=_INSTALL[runtime]) from error


def _recorder(trt: Any) -> Any:
    """A profiler that keeps `(layer, ms)` under `runs[-1]`."""

    class Recorder(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.runs: list[list[tuple[str, float]]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.runs[-1].append((layer_name, ms))

    return Recorder()


def _numpy_type(told: Any) -> np.dtype[Any]:
    """NumPy's type for one of TensorRT's, whose own answer needs a NumPy as old as itself."""
    word = str(told.name)
    return np.dtype({"FLOAT": "float32", "HALF": "float16"}.get(word, word.lower()))


def _ring(port: Port, sample_input: npt.NDArray[Any] | None, seed: int) -> tuple[npt.NDArray[Any], ...]:
    """`RING` seeded inputs for a port: standard normal, or batches drawn from the samples."""
    random = np.random.default_rng(seed)
    if sample_input is None:
        return tuple(random.standard_normal(port.shape).astype(port.dtype) for _ in range(RING))
    picks = random.integers(0, len(sample_input), (RING, port.shape[0]))
    return tuple(np.ascontiguousarray(sample_input[rows], port.dtype) for rows in picks)


__all__ = ["MODULES", "EngineRunner", "layer_kernels", "runtime_module"]
