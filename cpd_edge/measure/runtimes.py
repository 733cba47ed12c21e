"""The runtimes that run an ONNX model on this machine's CPU, by the name that `--runtime` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from cpd_edge.errors import UsageError
from cpd_edge.measure.compiled_runner import OpenVinoRunner, openvino
from cpd_edge.measure.runners import Kernel, OnnxRunner, onnxruntime


class ModelRunner(Protocol):
    """An ONNX model that is ready to be timed, asked, and looked into."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where and how it runs."""

    @property
    def load_ms(self) -> Mapping[str, float]:
        """`first_load` and `first_inference`, apart [ms]."""

    def run(self) -> None:
        """One inference on the next input of the ring."""

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`."""

    def kernels(self, repeats: int) -> Sequence[Kernel]:
        """Times of every kernel in about `repeats` inferences, in execution order."""

    def close(self) -> None:
        """Frees the engine."""


RUNNERS: Mapping[str, Callable[..., ModelRunner]] = {"onnxruntime": OnnxRunner, "openvino": OpenVinoRunner}
"""What makes a runner from a model, `threads`, `batch` and `profile`."""

TITLES: Mapping[str, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""What each runtime is called in sentences."""

_MODULES: Mapping[str, Callable[[], Any]] = {"onnxruntime": onnxruntime, "openvino": openvino}


def model_runner(
    runtime: str, model: Path | bytes, *, threads: int = 1, batch: int = 1, profile: bool = False
) -> ModelRunner:
    """A model, ready to run on a runtime.

    Args:
        runtime: a name in `RUNNERS`.
        model: ONNX file, or its bytes.
        threads: of one inference.
        batch: images per inference.
        profile: with the runtime's profiler on from the start, so that `kernels` needs fewer loads.

    Raises:
        UsageError: an unknown runtime.
        RuntimeMissing: it is not installed.
        ModelError: it does not take the model.
    """
    require_runtime(runtime)
    return RUNNERS[runtime](model, threads=threads, batch=batch, profile=profile)


def require_runtime(runtime: str) -> None:
    """Refuses a runtime that is unknown or not installed, before any work.

    Raises:
        UsageError: names those that are known.
        RuntimeMissing: says how to install it.
    """
    if runtime not in RUNNERS:
        known = " or ".join(f"--runtime {name}" for name in RUNNERS)
        raise UsageError(f"unknown runtime {runtime!r}", hint=f"this version builds for {known}")
    _MODULES[runtime]()


__all__ = ["RUNNERS", "TITLES", "ModelRunner", "model_runner", "require_runtime"]
