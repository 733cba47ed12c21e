"""One CUDA stream with its memory, events and graphs, through NVIDIA's own Python bindings; every call is checked."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import CpdError, RuntimeMissing

Launch = Callable[[int], None]
"""Enqueues work on the stream with this handle, and returns at once."""


def cuda_runtime() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise RuntimeMissing("cuda-bindings is not installed", hint="pip install 'cpd-edge[gpu]'") from error


class DeviceStream:
    """A stream, and what was allocated for it.

    Args:
        runtime: `cuda.bindings.runtime`, or what stands in for it. The caller has seen a driver.
        blocking: the thread sleeps until the device wakes it; else the driver chooses, which mostly is to spin.

    Raises:
        CpdError: a CUDA call failed; says which and how.
    """

    def __init__(self, runtime: Any, *, blocking: bool = False) -> None:
        self._runtime = runtime
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[tuple[Any, Any]] = []
        self._stream = self._call("cudaStreamCreate")
        self.handle = int(self._stream)
        self._flags = int(runtime.cudaEventBlockingSync) if blocking else 0
        self._events: list[Any] = []

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory."""
        self._device.append(int(self._call("cudaMalloc", max(size_bytes, 1))))
        return self._device[-1]

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A new host array that the device copies from and to by itself."""
        size_bytes = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        self._pinned.append(int(self._call("cudaMallocHost", size_bytes)))
        memory = memoryview((ctypes.c_byte * size_bytes).from_address(self._pinned[-1])).cast("B")
        found: npt.NDArray[Any] = np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
        return found

    def upload(self, address: int, values: npt.NDArray[Any]) -> None:
        """Enqueues a copy of a contiguous host array to the device."""
        self._copy(address, values.ctypes.data, values.nbytes, "cudaMemcpyHostToDevice")

    def download(self, values: npt.NDArray[Any], address: int) -> None:
        """Enqueues a copy from the device into a contiguous host array."""
        self._copy(values.ctypes.data, address, values.nbytes, "cudaMemcpyDeviceToHost")

    def wait(self) -> None:
        """Returns when all that was enqueued is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def timed(self, launch: Launch) -> float:
        """Runs `launch` to its end, and gives the time between the events before and after it [ms]."""
        return self.timed_each([launch])[0]

    def timed_each(self, launches: Sequence[Launch]) -> list[float]:
        """Enqueues all of `launches`, waits for their end, and gives the time between the events around each [ms]."""
        while len(self._events) <= len(launches):
            self._events.append(self._call("cudaEventCreateWithFlags", self._flags))
        events = self._events[: len(launches) + 1]
        self._call("cudaEventRecord", events[0], self._stream)
        for launch, event in zip(launches, events[1:], strict=True):
            launch(self.handle)
            self._call("cudaEventRecord", event, self._stream)
        self._call("cudaEventSynchronize", events[-1])
        return [float(self._call("cudaEventElapsedTime", a, b)) for a, b in pairwise(events)]

    def captured(self, launch: Launch) -> Launch:
        """The same work as a CUDA graph, which is enqueued in one call."""
        self._call("cudaStreamBeginCapture", self._stream, self._runtime.cudaStreamCaptureMode(1))  # thread-local
        try:
            launch(self.handle)
        finally:
            graph = self._call("cudaStreamEndCapture", self._stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._graphs.append((graph, ready))

        def replay(handle: int) -> None:
            self._call("cudaGraphLaunch", ready, self._stream)

        return replay

    def close(self) -> None:
        """Gives everything back. A second call does nothing."""
        for graph, ready in self._graphs:
            self._call("cudaGraphExecDestroy", ready)
            self._call("cudaGraphDestroy", graph)
        for address in self._device:
            self._call("cudaFree", address)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        for event in self._events:
            self._call("cudaEventDestroy", event)
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
        self._graphs, self._device, self._pinned, self._events, self._stream = [], [], [], [], None

    def _copy(self, to: int, source: int, size_bytes: int, kind: str) -> None:
        direction = getattr(self._runtime.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", to, source, size_bytes, direction, self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """One call of the CUDA runtime: its result, if it has one."""
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            hint = "free memory on the device, or use a smaller batch" if "Memory" in str(status) else ""
            raise CpdError(f"CUDA's {name} failed: {getattr(status, 'name', status)}", hint=hint)
        return values[0] if values else None


__all__ = ["DeviceStream", "Launch", "cuda_runtime"]
