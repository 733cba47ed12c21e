"""A TensorRT engine with its stages as CUDA kernels, all on the engine's own stream, timed apart by CUDA events.

Never run on a GPU by us: the tests run it through the real CUDA bindings into an emulated driver, where the kernels are
their CPU build and the engine is emulated. That shows what is enqueued, in which order and on which memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpd_edge.kernels import Frames, Module, launches, load
from cpd_edge.kernels.launches import Launch, LogitType
from cpd_edge.measure import host_stages
from cpd_edge.measure.device_stream import Launch as Enqueue
from cpd_edge.measure.engine_runner import EngineRunner
from cpd_edge.measure.frames import MOST, Camera, Milliseconds, by_stage, colours, refused

STAGES = ("upload", "preprocess", "engine", "postprocess", "download")
"""Frames come from the host's memory and results go back there; a camera that writes to the GPU's saves the first."""

_FLOATS = ("float32", "float16")


class DeviceFrames:
    """An engine on its GPU, from a frame in the host's memory to a result there.

    Args:
        engine: opened without transfers and without a CUDA graph.
        camera: where frames come from.
        seed: of the frames.
        loaded: loads a source of kernels into the current context.

    Attributes:
        environment: the engine's, with frames and stages.
        result: of the last frame: values and indices of the top-k `[1, k]`, or a colour image `[1, h, w, 3]`.

    Raises:
        ModelError: it is no network from one frame to classes or a class map, or not in floats.
        RuntimeMissing: no compiler for this GPU.
    """

    def __init__(
        self, engine: EngineRunner, camera: Camera, *, seed: int = 0, loaded: Callable[[str], Module] = load
    ) -> None:
        self._engine, self._stream, self._modules = engine, engine.stream, list[Module]()
        self._turn, self._begun_ns, self._stage_ms = 0, list[int](), list[tuple[float, ...]]()
        dtype = engine.input.dtype.name
        if dtype not in _FLOATS:
            raise refused(f"the engine reads {dtype}, the kernels write {', '.join(_FLOATS)}")
        recipe = camera.recipe(engine.input.shape, dtype)
        with contextlib.ExitStack() as undo:
            undo.callback(self._unload)
            finish, self.result, sources, ending = self._head(loaded)
            module = self._loaded(loaded, "preprocess")
            shape = (camera.h, camera.w, recipe.channels)
            frame = self._stream.allocate(int(np.prod(shape)))
            first = launches.preprocess(recipe, Frames(frame, 1, *shape), engine.input.address)
            random = np.random.default_rng(seed)
            hosts = [self._stream.pinned(shape, np.uint8) for _ in range(host_stages.RING)]
            for host in hosts:
                host[...] = random.integers(0, 256, shape, np.uint8)
            self._runs = [
                (
                    lambda _, host=host: self._stream.upload(frame, host),
                    lambda handle: module.launch(first, handle),
                    engine.enqueue,
                    finish,
                    lambda _: self._download(sources),
                )
                for host in hosts
            ]
            undo.pop_all()
        words = f"CUDA kernels of cpd-edge on the engine's stream, {ending}, host to host"
        self.environment: Mapping[str, Any] = {**engine.environment, **camera.described(recipe.channels, words)}

    def run(self) -> None:
        """One frame, from the host's memory to a result there."""
        stages: Sequence[Enqueue] = self._runs[self._turn]
        self._begun_ns.append(time.perf_counter_ns())
        self._stage_ms.append(tuple(self._stream.timed_each(stages)))
        self._turn = (self._turn + 1) % host_stages.RING

    def stage_ms(self, starts_ns: npt.NDArray[np.int64]) -> Mapping[str, Milliseconds]:
        """See `StagedRunner`; by CUDA events."""
        rows = np.searchsorted(self._begun_ns, starts_ns)
        return by_stage(STAGES, np.asarray(self._stage_ms, np.float64)[rows] * 1e6)

    def close(self) -> None:
        """Gives back kernels, engine and memory."""
        self._unload()
        self._runs = []
        self._engine.close()

    def _head(
        self, loaded: Callable[[str], Module]
    ) -> tuple[Enqueue, tuple[npt.NDArray[Any], ...], tuple[int, ...], str]:
        """What turns logits into a result, the host's arrays for it, where they come from, and its name."""
        output = self._engine.outputs_there[0]
        shape, dtype = output.shape, output.dtype.name
        if dtype not in _FLOATS:
            raise refused(f"the engine writes {dtype}, the kernels read {', '.join(_FLOATS)}")
        if len(shape) == 2:
            k = min(MOST, shape[1])
            return self._best(loaded, output.address, (shape[0], shape[1]), k, dtype)
        if len(shape) == 4 and shape[1] <= 256:
            return self._painted(loaded, output.address, shape, dtype)
        raise refused(f"an output of {list(shape)} is neither [1, classes] nor [1, up to 256 classes, h, w]")

    def _best(
        self, loaded: Callable[[str], Module], logits: int, shape: tuple[int, int], k: int, dtype: LogitType
    ) -> tuple[Enqueue, tuple[npt.NDArray[Any], ...], tuple[int, ...], str]:
        module = self._loaded(loaded, "topk")
        hosts = tuple(self._stream.pinned((shape[0], k), kind) for kind in (np.float32, np.int32))
        there = tuple(self._stream.allocate(host.nbytes) for host in hosts)
        work = launches.topk(logits, shape, there[0], there[1], k, dtype=dtype)
        return (lambda handle: module.launch(work, handle)), hosts, there, f"top-{k}"

    def _painted(
        self, loaded: Callable[[str], Module], logits: int, shape: tuple[int, int, int, int], dtype: LogitType
    ) -> tuple[Enqueue, tuple[npt.NDArray[Any], ...], tuple[int, ...], str]:
        module = self._loaded(loaded, "segmentation")
        n, _, h, w = shape
        table = self._stream.pinned((256, 3), np.uint8)
        table[...] = colours()
        there = self._stream.allocate(table.nbytes)
        self._stream.upload(there, table)
        self._stream.wait()
        classes = Frames(self._stream.allocate(n * h * w), n, h, w, 1)
        image = Frames(self._stream.allocate(n * h * w * 3), n, h, w, 3)
        works: tuple[Launch, ...] = (
            launches.argmax(logits, shape, classes, dtype=dtype),
            launches.palette(classes, image, there),
        )

        def finish(handle: int) -> None:
            for work in works:
                module.launch(work, handle)

        return finish, (self._stream.pinned((n, h, w, 3), np.uint8),), (image.data,), "argmax and palette"

    def _download(self, sources: tuple[int, ...]) -> None:
        for host, source in zip(self.result, sources, strict=True):
            self._stream.download(host, source)

    def _loaded(self, loaded: Callable[[str], Module], source: str) -> Module:
        self._modules.append(loaded(source))
        return self._modules[-1]

    def _unload(self) -> None:
        while self._modules:
            self._modules.pop().unload()


__all__ = ["STAGES", "DeviceFrames"]
