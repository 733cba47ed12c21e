"""A second runtime beside ONNX Runtime: an ONNX model compiled by OpenVINO for this machine's CPU, and its profiler."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.errors import ModelError, RuntimeMissing, UsageError
from cpd_edge.measure.environment import capture
from cpd_edge.measure.fused import Step, held_nodes
from cpd_edge.measure.inputs import RING, described, ring_of, settled_shape
from cpd_edge.measure.quiet import quiet_ms
from cpd_edge.measure.runners import Kernel, KernelTimes

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
_NOTHING = "unknown"


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
        precision: of the model's weights, as the environment shall say it; the arithmetic is float32.

    Attributes:
        environment: device, runtime, properties, threads, shape, inputs and their range.
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
        self._source, self._threads = model, threads
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
        self._turn, self._profiled = 0, profile
        self.environment: Mapping[str, Any] = {
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

    def run(self) -> None:
        """One inference on the next input of the ring, which lies where the runtime reads it."""
        self._requests[self._turn].infer(share_outputs=True)
        self._turn = (self._turn + 1) % RING

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
        graph = self._fixed(self._read())
        found = [self._round(graph, -(-repeats // rounds), first=not i) for i in range(rounds)]
        steps, ms = found[0][0], np.stack([ms for _, ms, _ in found])  # [rounds, steps]
        held = held_nodes(steps, self._onnx())
        kernels = tuple(
            Kernel(",".join(held[step.name]) or step.name, step.op, order, ms[:, order].copy())
            for order, step in enumerate(steps)
        )
        works = tuple(k for k, step in zip(kernels, steps, strict=True) if step.works)
        return KernelTimes(works, np.array([whole for _, _, whole in found]))

    def close(self) -> None:
        """Frees the compiled models and their tensors."""
        self._requests, self._feeds = [], []
        self._compiled = self._free = None

    def _round(
        self, graph: Any, runs: int, *, first: bool
    ) -> tuple[tuple[Step, ...], npt.NDArray[np.float64], float]:
        """All kernels of one load, their mean times over its quiet runs `[steps]` and the whole's [ms]."""
        compiled = self._compile(graph, True)
        requests = self._bind(compiled)
        for turn in range(_WARM_RUNS):
            requests[turn].infer(share_outputs=True)
        steps = _steps(compiled.get_runtime_model())
        reads, walls = [_averages_us(requests[0], steps)], np.empty(runs)
        for run in range(runs):
            request = requests[(run + _WARM_RUNS) % RING]
            started = time.perf_counter_ns()
            request.infer(share_outputs=True)
            walls[run] = (time.perf_counter_ns() - started) / 1e6
            reads.append(_averages_us(request, steps))
        ms, whole_ms = quiet_ms(np.stack(reads), _WARM_RUNS + np.arange(runs + 1), walls)
        return steps, ms, whole_ms
