"""Runners: engines that are ready to be measured. Here ONNX Runtime, on the CPU or a GPU, with its own profiler."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import ModelError, RuntimeMissing, UsageError
from cpd_edge.measure.arithmetic import NAMES, computed_in
from cpd_edge.measure.driver import find_gpu
from cpd_edge.measure.environment import capture
from cpd_edge.measure.inputs import RING, described, ring_of, settled_shape
from cpd_edge.measure.protocol import Runner
from cpd_edge.measure.providers import (
    CPU,
    ON_GPU,
    STILL,
    load_cuda,
    provider_chain,
    provider_name,
    provider_options,
    require_first,
    require_no_fallback,
    runtime_name,
)

_DTYPES: Mapping[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_KERNEL = "_kernel_time"
_WARM_RUNS = 3


@dataclass(frozen=True)
class Kernel:
    """What the runtime's profiler saw of one node.

    Attributes:
        name: of the node in the graph as the runtime optimised it. A fused node may be called after its head, or
            after the tensor that it writes (`relu0_nchwc` for a convolution and the ReLU that writes `relu0`).
        op: its operator, fusions included (`Conv`, `FusedConv`, `ReorderInput`).
        order: place in the execution order.
        ms: its time in each run `[repeats]` [ms].
        nodes: names of the ONNX nodes in it, where the runtime says so.
        precision: what it computes in (`fp32`, `int8`), where the runtime says so.
    """

    name: str
    op: str
    order: int
    ms: npt.NDArray[np.float64]
    nodes: tuple[str, ...] = ()
    precision: str = ""


@dataclass(frozen=True)
class KernelTimes:
    """All kernels in execution order, and the wall time of the runs they belong to `[repeats]` [ms]."""

    kernels: tuple[Kernel, ...]
    totals_ms: npt.NDArray[np.float64]


class OnnxRunner:
    """An ONNX model with one input, on one of ONNX Runtime's providers and on no other.

    Args:
        model: file, or the model's bytes.
        threads: intra-op threads; inter-op is 1.
        batch: images per inference; takes the place of the input's symbolic first dim.
        seed: of the ring of inputs.
        profile: switch the runtime's profiler on from the start, so that `kernels` needs no second load. Latencies
            then carry the profiler's cost, and the environment says so.
        sample_input: images `[n, ...]` to fill the ring with, drawn at random; else standard normal values.
        precision: what it shall compute in. The file decides, so `int8` is a quantised file; in half precision this
            runtime has no kernels for a CPU. The environment says what the kernels really compute in.
        provider: what shall run it: `cpu`, `cuda`, `tensorrt`, or a provider's full name. A node that falls back to
            the CPU is an error.

    Attributes:
        load_ms: `first_load` and `first_inference`, apart.

    Raises:
        RuntimeMissing: ONNX Runtime is not installed, or its build has no such provider.
        ModelError: no model that the runtime takes, not one input, or one that does not take this batch.
        EnvironmentMismatch: the provider did not start, or nodes fell back to the CPU; names them.
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
        provider: str = "cpu",
    ) -> None:
        self._ort = onnxruntime()
        self._provider = provider_name(provider)
        if self._provider in ON_GPU:
            load_cuda(self._ort)
        self._model, self._threads, self._batch = model, threads, batch
        self._free: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="cpd-edge-") if profile else None
        into = None if self._folder is None else Path(self._folder.name)
        self._overrides: dict[str, int] = {"batch": batch}
        self._session, first_load_ms = self._open(self._overrides, into)
        self._profiled = self._session if profile else None
        (source,) = self._inputs(self._session)
        self._name, wanted = str(source.name), settled_shape(source.shape, batch, sample_input)
        symbols = {d: n for d, n in zip(source.shape, wanted, strict=True) if isinstance(d, str)}
        if symbols:
            self._overrides |= symbols
            self._session, _ = self._open(self._overrides, into)
            self._profiled = self._session if profile else None
        self.ring = ring_of(wanted, _DTYPES.get(source.type, np.void), sample_input, seed)
        if self._provider != CPU:
            self._require_placed()
        self._bindings = self._bind(self._session)
        self._turn = 0
        here = capture(
            runtime_name(self._provider), self._ort.__version__, threads, batch,
            self._inputs(self._session)[0].shape, precision, providers=self._session.get_providers(),
        )  # fmt: skip
        inputs = described(self.ring, sample_input)
        self._captured: Mapping[str, Any] = {**here, **inputs, "profiled": profile, **self._gpu(here["device"])}
        self.load_ms: Mapping[str, float] = {"first_load": first_load_ms, "first_inference": self._timed_ms()}

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """Device, runtime, provider really used, precision of its kernels, threads, shape, inputs and their range."""
        return {**self._captured, **computed_in((k.op, k.precision) for k in self.kernels(1))}

    def run(self) -> None:
        """One inference on the next input of the ring."""
        self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn = (self._turn + 1) % RING

    def in_place(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The input that `run` reads from now on, and the first output that it writes; nothing is copied.

        Raises:
            UsageError: the model runs on a GPU, whose memory is not this process's.
        """
        if self._provider != CPU:
            raise UsageError(f"{self._provider} runs on other memory", hint="take the provider cpu")
        source, outputs = self.ring[0].copy(), self._session.get_outputs()
        made = np.ascontiguousarray(self._session.run([outputs[0].name], {self._name: source})[0])
        binding = self._session.io_binding()
        value = self._ort.OrtValue.ortvalue_from_numpy
        binding.bind_ortvalue_input(self._name, value(source, "cpu", 0))
        binding.bind_ortvalue_output(outputs[0].name, value(made, "cpu", 0))
        for output in outputs[1:]:
            binding.bind_output(output.name, "cpu")
        self._bindings = [binding] * RING
        return source, made

    def warm_load_ms(self) -> float:
        """Time to load the model once more, now that file and runtime are warm [ms]."""
        return self._open(self._overrides, None)[1]

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`, from a session whose batch is free.

        Raises:
            ModelError: the model's batch is fixed, and it is another one.
        """
        if self._free is None:
            self._free = self._open({}, None)[0]
        (source,) = self._inputs(self._free)
        if isinstance(source.shape[0], int) and source.shape[0] != len(feed):
            raise ModelError(
                f"the model's batch is fixed at {source.shape[0]}, the feed has {len(feed)}",
                hint="export it with a dynamic batch, or feed it in pieces",
            )
        output: npt.NDArray[Any] = self._free.run(None, {self._name: feed})[0]
        return output

    def kernels(self, repeats: int) -> list[Kernel]:
        """`kernel_times` without the totals."""
        return list(self.kernel_times(repeats).kernels)

    def kernel_times(self, repeats: int) -> KernelTimes:
        """Times of every kernel in `repeats` runs, from the runtime's own profiler, in execution order.

        The profiler stops at the end of this, so a second call loads the model again. It adds its own cost to
        each kernel: set the sum against `totals_ms`, not against latencies measured without it.

        Raises:
            ModelError: the runs did not all execute the same kernels (control flow).
        """
        folder, session = self._folder, self._profiled
        if folder is None or session is None:
            folder = tempfile.TemporaryDirectory(prefix="cpd-edge-")
            session = self._open(self._overrides, Path(folder.name))[0]
        self._folder = self._profiled = None
        with folder:
            bindings = self._bind(session)
            for turn in range(_WARM_RUNS):
                session.run_with_iobinding(bindings[turn % RING])
            totals_ms = np.empty(repeats)
            for turn in range(repeats):
                start = time.perf_counter_ns()
                session.run_with_iobinding(bindings[turn % RING])
                totals_ms[turn] = (time.perf_counter_ns() - start) / 1e6
            events = json.loads(Path(session.end_profiling()).read_text())
        return KernelTimes(_kernels(events, repeats), totals_ms)

    def close(self) -> None:
        """Frees the sessions and the profiler's files."""
        if self._folder is not None:
            self._session.end_profiling()
            self._folder.cleanup()
        self._bindings = []
        self._session = self._profiled = self._free = self._folder = None

    def _open(self, overrides: Mapping[str, int], folder: Path | None) -> tuple[Any, float]:
        """A session with symbolic dims fixed, profiled into `folder` if one is given, and its load time [ms]."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.add_session_config_entry(*STILL)
        for name, extent in overrides.items():
            options.add_free_dimension_override_by_name(name, extent)
        if folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "run")
        model = self._model if isinstance(self._model, bytes) else str(self._model)
        chain = provider_chain(self._provider, self._ort.get_available_providers())
        start = time.perf_counter_ns()
        try:
            session = self._ort.InferenceSession(model, options, chain, provider_options(chain))
        except _refusals() as error:
            what = "the model" if isinstance(self._model, bytes) else str(self._model)
            raise ModelError(
                f"ONNX Runtime {self._ort.__version__} does not take {what}: {str(error).splitlines()[0]}",
                hint="give an ONNX file that this version supports, such as RUN/pruned.onnx",
            ) from error
        load_ms = (time.perf_counter_ns() - start) / 1e6
        require_first(session.get_providers(), self._provider)
        return session, load_ms

    def _gpu(self, device: str) -> dict[str, str]:
        """The device's name with its GPU's, where that is what runs the model."""
        gpu = find_gpu()[0] if self._provider in ON_GPU else None
        return {} if gpu is None else {"device": f"{device}, {gpu.name}", "driver": gpu.driver}

    def _require_placed(self) -> None:
        """Runs the model once with the profiler on, and refuses it where a node ran on the CPU."""
        with tempfile.TemporaryDirectory(prefix="cpd-edge-") as folder:
            session = self._open(self._overrides, Path(folder))[0]
            session.run(None, {self._name: self.ring[0]})
            require_no_fallback(json.loads(Path(session.end_profiling()).read_text()), self._provider)

    def _inputs(self, session: Any) -> tuple[Any]:
        """The one input of a session."""
        inputs = session.get_inputs()
        if len(inputs) != 1:
            names = [source.name for source in inputs]
            raise ModelError(f"the ONNX model has the inputs {names}, a vision model has one")
        return (inputs[0],)

    def _bind(self, session: Any) -> list[Any]:
        """One binding of `session` for each input of the ring; outputs stay with the runtime."""
        device = "cuda" if self._provider in ON_GPU else "cpu"
        bindings = []
        for values in self.ring:
            binding = session.io_binding()
            binding.bind_ortvalue_input(self._name, self._ort.OrtValue.ortvalue_from_numpy(values, device, 0))
            for output in session.get_outputs():
                binding.bind_output(output.name, device)
            bindings.append(binding)
        return bindings

    def _timed_ms(self) -> float:
        start = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - start) / 1e6


def onnxruntime() -> Any:
    """The `onnxruntime` module.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(
            "ONNX Runtime is not installed", hint="pip install 'cpd-edge[cpu]' (or 'cpd-edge[gpu]', never both)"
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when it cannot open a model; the classes have no common base."""
    found = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented")
    return tuple(getattr(found, name) for name in (*names, "RuntimeException"))


def _precision(args: Mapping[str, Any]) -> str:
    """What a kernel computes in: the type of the first tensor that it reads."""
    types = [kind for read in args.get("input_type_shape", ()) for kind in read]
    return NAMES.get(types[0], "") if types else ""


def _kernels(events: Sequence[Mapping[str, Any]], repeats: int) -> tuple[Kernel, ...]:
    """The last `repeats` runs of a profile as kernels.

    A run is the window of one `model_run` event; the kernels inside are in execution order.
    """
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")[-repeats:]
    nodes = sorted(
        (e for e in events if e["cat"] == "Node" and e["name"].endswith(_KERNEL)), key=lambda event: int(event["ts"])
    )
    found = [[n for n in nodes if start <= n["ts"] <= end] for start, end in runs]
    names = [[n["name"] for n in run] for run in found]
    if not names or any(other != names[0] for other in names):
        raise ModelError(
            f"the {len(runs)} profiled runs did not execute the same kernels",
            hint="a model with control flow has no fixed regions; export it without",
        )
    ms = np.array([[n["dur"] for n in run] for run in found], np.float64) / 1e3  # [repeats, kernels]
    return tuple(
        Kernel(
            node["name"].removesuffix(_KERNEL),
            node["args"]["op_name"],
            order,
            ms[:, order].copy(),
            precision=_precision(node["args"]),
        )
        for order, node in enumerate(found[0])
    )


__all__ = ["RING", "Kernel", "KernelTimes", "OnnxRunner", "Runner", "onnxruntime"]
