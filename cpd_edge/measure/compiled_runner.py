"""A second runtime beside ONNX Runtime: an ONNX model compiled by OpenVINO for this machine's CPU, and its profiler."""

from __future__ import annotations

import functools
import importlib
import io
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import ModelError, RuntimeMissing, UsageError
from cpd_edge.measure.arithmetic import NAMES, computed_in
from cpd_edge.measure.environment import capture
from cpd_edge.measure.fused import Step, held_nodes
from cpd_edge.measure.inputs import RING, described, ring_of, settled_shape
from cpd_edge.measure.quiet import quiet_ms
from cpd_edge.measure.runners import Kernel, KernelTimes

if TYPE_CHECKING:
    import onnx

SETTINGS: Mapping[str, str | int | bool] = {
    "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the CPU has it
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # the process decides where it runs, as for every other runtime
    "ENABLE_HYPER_THREADING": True,  # else fewer threads than were asked for
}
"""Properties that every model is compiled with, beside the number of threads; they are part of the environment."""

ROUND = 12
"""Profiled runs of one loaded engine: its counters tell averages, which get coarser with every run."""

_WARM_RUNS = 2
_BESIDE = ("Input", "Output", "Const")
_TOLD = ("execOrder", "layerType", "originalLayersNames", "outputLayouts", "primitiveType", "runtimePrecision")

HINTS: Mapping[str, str] = {"fp16": "f16", "bf16": "bf16"}
"""Precisions that are asked of the runtime; all others are the file's own."""


class OpenVinoRunner:
    """An ONNX model with one input, compiled by OpenVINO for this machine's CPU.

    Args:
        model: file, or the model's bytes.
        threads: of one inference; never fewer than asked for.
        batch: images per inference; takes the place of the input's free first dim.
        seed: of the ring of inputs, which are the same as those of other runtimes.
        profile: compile with the runtime's counters on, so that `kernels` needs one load less. Latencies then carry
            the counters' cost, and the environment says so.
        sample_input: images `[n, ...]` to fill the ring with, drawn at random; else standard normal values.
        precision: what it shall compute in: `fp16` and `bf16` are asked of the runtime, else the file decides, so
            `int8` is a quantised file. The environment says what the kernels really compute in.

    Attributes:
        load_ms: `first_load` and `first_inference`, apart.

    Raises:
        RuntimeMissing: OpenVINO is not installed.
        ModelError: no model that the runtime takes, not one input, or one that does not take this batch.
        UsageError: more threads than the runtime uses here.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 1,
        batch: int = 1,
        seed: int = 0,
        profile: bool = False,
        sample_input: npt.NDArray[Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        self._ov, self._core = openvino(), _core()
        self._source, self._threads, self._precision = model, threads, precision
        started = time.perf_counter_ns()
        graph = self._read()
        port = self._input(graph)
        self._shape = settled_shape(_dims(port), batch, sample_input)
        self.ring = ring_of(self._shape, port.get_element_type().to_dtype(), sample_input, seed)
        self._compiled: Any = self._compile(self._fixed(graph), profile)
        first_load_ms = (time.perf_counter_ns() - started) / 1e6
        self._require_threads()
        self._free: Any = None
        self._feeds = [self._tensor(values) for values in self.ring]
        self._requests = self._bind(self._compiled)
        self._turn, self._ran, self._profiled = 0, 0, profile
        self._graph: Any = graph if profile else None
        self._captured: Mapping[str, Any] = {
            **capture(
                "openvino", version(), threads, batch, self._shape, precision, providers=self._properties()
            ),
            **described(self.ring, sample_input),
            "profiled": profile,
            "runtime_build": self._ov.__version__,
        }  # fmt: skip
        started = time.perf_counter_ns()
        self.run()
        self.load_ms: Mapping[str, float] = {
            "first_load": first_load_ms,
            "first_inference": (time.perf_counter_ns() - started) / 1e6,
        }

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """Device, runtime, properties, precision of its kernels, threads, shape, inputs and their range."""
        steps = _steps(self._compiled.get_runtime_model())
        return {**self._captured, **computed_in((step.op, step.precision) for step in steps if step.works)}

    def run(self) -> None:
        """One inference on the next input of the ring, which lies where the runtime reads it."""
        self._requests[self._turn].infer(share_outputs=True)
        self._turn = (self._turn + 1) % RING
        self._ran += 1

    def in_place(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The input that `run` reads from now on, and the first output that it writes; nothing is copied."""
        request = self._requests[0]
        request.infer(share_outputs=True)
        self._requests = [request] * RING
        return self._feeds[0].data, request.get_output_tensor(0).data

    def warm_load_ms(self) -> float:
        """Time to read and compile the model once more, now that file and runtime are warm [ms]."""
        started = time.perf_counter_ns()
        self._compile(self._fixed(self._read()), False)
        return (time.perf_counter_ns() - started) / 1e6

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`, from an engine whose batch is free.

        Raises:
            ModelError: the model's batch is fixed, and it is another one.
        """
        if self._free is None:
            self._free = self._compile(self._read(), False).create_infer_request()
        extent = _dims(self._free.model_inputs[0])[0]
        if extent is not None and extent != len(feed):
            raise ModelError(
                f"the model's batch is fixed at {extent}, the feed has {len(feed)}",
                hint="export it with a dynamic batch, or feed it in pieces",
            )
        self._free.infer([self._tensor(np.ascontiguousarray(feed, self.ring[0].dtype))], share_outputs=True)
        return np.array(self._free.get_output_tensor(0).data)

    def kernels(self, repeats: int) -> list[Kernel]:
        """`kernel_times` without the totals."""
        return list(self.kernel_times(repeats).kernels)

    def kernel_times(self, repeats: int) -> KernelTimes:
        """Times of every kernel in about `repeats` runs, from the runtime's own counters, in execution order.

        One figure a kernel for each round of at most `ROUND` runs: the mean over the fastest of them, see `quiet`.
        Each round loads the model anew. A kernel is called after the ONNX nodes that it holds, joined by commas.
        """
        rounds = max(1, -(-repeats // ROUND))
        found = [self._round(-(-repeats // rounds)) for _ in range(rounds)]
        steps, ms = found[0][0], np.stack([ms for _, ms, _ in found])  # [rounds, steps]
        held = held_nodes(steps, self._onnx())
        working = [i for i, step in enumerate(steps) if step.works or ms[:, i].any()]
        kernels = tuple(
            Kernel(
                ",".join(held[steps[i].name]) or steps[i].name,
                steps[i].op,
                order,
                ms[:, i].copy(),
                precision=steps[i].precision,
            )
            for order, i in enumerate(working)
        )
        return KernelTimes(kernels, np.array([whole_ms for _, _, whole_ms in found]))

    def close(self) -> None:
        """Frees the compiled models and their tensors."""
        self._requests, self._feeds = [], []
        self._graph = self._compiled = self._free = None

    def _round(self, runs: int) -> tuple[tuple[Step, ...], npt.NDArray[np.float64], float]:
        """All kernels of one load, their mean times over its quiet runs `[steps]` and the whole's [ms]."""
        compiled, requests, before = self._compiled, self._requests, self._ran
        if not self._profiled or before > _WARM_RUNS:
            compiled, before = self._compile(self._fixed_graph(), True), 0
            requests = self._bind(compiled)
        for request in requests[: _WARM_RUNS - before]:
            request.infer(share_outputs=True)
        self._ran += runs  # of the engine at hand, which no further round may use
        steps = _steps(compiled.get_runtime_model())
        reads, walls = [_averages_us(requests[0], steps)], np.empty(runs)
        for run in range(runs):
            request = requests[run % RING]
            started = time.perf_counter_ns()
            request.infer(share_outputs=True)
            walls[run] = (time.perf_counter_ns() - started) / 1e6
            reads.append(_averages_us(request, steps))
        ms, whole_ms = quiet_ms(np.stack(reads), _WARM_RUNS + np.arange(runs + 1), walls)
        return steps, ms, whole_ms

    def _read(self) -> Any:
        """The model as the runtime understands it, dims as they are.

        Raises:
            ModelError: it is no model that the runtime takes.
        """
        try:
            reader = _reader()
            source = io.BytesIO(self._source) if isinstance(self._source, bytes) else str(self._source)
            return reader.convert(reader.load(source))
        except _refusals() as error:
            raise self._refusal(error) from error

    def _fixed(self, graph: Any) -> Any:
        """The model with its input's shape settled."""
        try:
            graph.reshape({graph.inputs[0]: list(self._shape)})
        except RuntimeError as error:
            raise self._refusal(error) from error
        return graph

    def _fixed_graph(self) -> Any:
        """The model to be compiled once more, read once."""
        if self._graph is None:
            self._graph = self._fixed(self._read())
        return self._graph

    def _compile(self, graph: Any, profile: bool) -> Any:
        settings = {**SETTINGS, "INFERENCE_NUM_THREADS": self._threads, "PERF_COUNT": profile}
        settings["INFERENCE_PRECISION_HINT"] = HINTS.get(self._precision, SETTINGS["INFERENCE_PRECISION_HINT"])
        try:
            return self._core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ModelError:
        what = "the model" if isinstance(self._source, bytes) else str(self._source)
        return ModelError(
            f"OpenVINO {version()} does not take {what}: {_reason(error)}",
            hint="give an ONNX file that this version supports, such as RUN/pruned.onnx, or take --runtime onnxruntime",
        )

    def _require_threads(self) -> None:
        used = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        if used != self._threads:
            raise UsageError(
                f"OpenVINO uses {used} threads on the CPUs that this process may use, {self._threads} were asked for",
                hint=f"--threads {used}, or allow the process more CPUs",
            )

    def _properties(self) -> list[str]:
        """The device and the properties that the compiled model really has."""
        return ["CPU", *(f"{name}={_value(self._compiled.get_property(name))}" for name in SETTINGS)]

    def _input(self, graph: Any) -> Any:
        """The one input of a model."""
        if len(graph.inputs) != 1:
            names = [port.get_any_name() for port in graph.inputs]
            raise ModelError(f"the ONNX model has the inputs {names}, a vision model has one")
        return graph.inputs[0]

    def _tensor(self, values: npt.NDArray[Any]) -> Any:
        """Values in memory of the runtime's, aligned as it likes it."""
        tensor = self._ov.Tensor(self._ov.Type(values.dtype), list(values.shape))
        tensor.data[...] = values
        return tensor

    def _bind(self, compiled: Any) -> list[Any]:
        """One request for each input of the ring; outputs stay with the runtime."""
        requests = [compiled.create_infer_request() for _ in self._feeds]
        for request, feed in zip(requests, self._feeds, strict=True):
            request.set_input_tensor(feed)
        return requests

    def _onnx(self) -> onnx.ModelProto:
        import onnx

        if isinstance(self._source, bytes):
            return onnx.load_from_string(self._source)
        return onnx.load(self._source, load_external_data=False)


def openvino() -> Any:
    """The `openvino` module.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise RuntimeMissing("OpenVINO is not installed", hint="pip install 'cpd-edge[openvino]'") from error


def require_computes(precision: str) -> None:
    """Refuses a precision that the runtime does not have on this CPU.

    Raises:
        UsageError: says so.
    """
    openvino()
    able = [str(name) for name in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    if precision in HINTS and precision.upper() not in able:
        raise UsageError(
            f"this CPU has no {precision} in OpenVINO: it computes in {', '.join(able)}",
            hint="--precision fp32 or int8",
        )


def version() -> str:
    """Release of the runtime, such as `2026.4.1`; the build's name is in the environment."""
    return str(openvino().__version__).partition("-")[0]


@functools.lru_cache(maxsize=1)
def _core() -> Any:
    """The runtime itself: it loads its CPU code once and holds no model."""
    return openvino().Core()


@functools.lru_cache(maxsize=1)
def _reader() -> Any:
    """What reads ONNX: asked for by name, since the runtime tries every format it knows on a damaged file."""
    return importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")


def _refusals() -> tuple[type[Exception], ...]:
    """What the reader raises; the classes have no common base."""
    found = importlib.import_module("openvino.frontend")
    names = ("GeneralFailure", "InitializationFailure", "NotImplementedFailure")
    return (RuntimeError, *(getattr(found, name) for name in (*names, "OpConversionFailure", "OpValidationFailure")))


def _dims(port: Any) -> tuple[int | None, ...]:
    """Shape of a port; a free dim is None."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise ModelError("the model's input has no known rank", hint="export it with a fixed number of dims")
    return tuple(None if dim.is_dynamic else int(dim.get_length()) for dim in shape)


def _steps(graph: Any) -> tuple[Step, ...]:
    """The kernels of a compiled model in execution order, from its own description."""
    found = []
    for node in graph.get_ordered_ops():
        told = {name: node.rt_info[name].astype(str) for name in _TOLD}
        sources = (node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size()))
        beside = told["layerType"] in _BESIDE
        step = Step(
            name=node.get_friendly_name(),
            op=told["layerType"],
            kept=() if beside else tuple(name for name in told["originalLayersNames"].split(",") if name),
            sources=tuple(sources),
            plain=all(_plain(layout) for layout in told["outputLayouts"].split(",")),
            works=not beside and not told["primitiveType"].startswith("unknown"),
            precision=NAMES.get(told["runtimePrecision"], ""),
        )
        found.append((int(told["execOrder"]), step))
    return tuple(step for _, step in sorted(found, key=lambda pair: pair[0]))


def _plain(layout: str) -> bool:
    """Whether a layout's name (`abcd`, `acdb`, `aBcd16b`) is the one of the model's own tensors."""
    return layout == "".join(sorted(layout)) and layout.isalpha() and layout.islower()


def _averages_us(request: Any, steps: tuple[Step, ...]) -> npt.NDArray[np.int64]:
    """What the counters say now: average of each kernel since the model was compiled `[steps]` [µs]."""
    told = {info.node_name: round(info.real_time.total_seconds() * 1e6) for info in request.profiling_info}
    return np.array([told.get(step.name, 0) for step in steps], np.int64)


def _reason(error: Exception) -> str:
    """What a refusal says, without the places in the runtime's own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    items = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return "; ".join(items) or next(iter(reversed(said)), "it gives no reason")


def _value(value: Any) -> str:
    """A property as it was given."""
    named = getattr(value, "get_type_name", None)
    return str(named() if named is not None else value)


__all__ = ["ROUND", "SETTINGS", "OpenVinoRunner", "openvino", "require_computes", "version"]
