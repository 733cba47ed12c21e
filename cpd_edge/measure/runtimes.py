"""The runtimes, by the name that `--runtime` takes, and what each needs before it can be asked for.

Some take an ONNX model as it is (`RUNNERS`). TensorRT runs an engine that is built from it first, where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from cpd_edge.errors import UsageError
from cpd_edge.measure.compiled_runner import OpenVinoRunner, openvino, require_computes
from cpd_edge.measure.device_stream import cuda_runtime
from cpd_edge.measure.devices import LOCAL
from cpd_edge.measure.driver import require_gpu
from cpd_edge.measure.engine_runner import runtime_module
from cpd_edge.measure.providers import NAMES, provider_chain
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

    def warm_load_ms(self) -> float:
        """Time to load the model once more, now that file and runtime are warm [ms]."""

    def outputs(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The first output for `feed` `[any batch, ...]`."""

    def kernels(self, repeats: int) -> Sequence[Kernel]:
        """Times of every kernel in about `repeats` inferences, in execution order."""

    def close(self) -> None:
        """Frees the engine."""


TENSORRT = "tensorrt"

RUNNERS: Mapping[str, Callable[..., ModelRunner]] = {
    "onnxruntime": OnnxRunner,
    "openvino": OpenVinoRunner,
    "onnxruntime-cuda": partial(OnnxRunner, provider="cuda"),
    "onnxruntime-tensorrt": partial(OnnxRunner, provider="tensorrt"),
}
"""What makes a runner from a model, `threads`, `batch` and `profile`, in this process."""

TITLES: Mapping[str, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "onnxruntime-cuda": "ONNX Runtime with CUDA",
    "onnxruntime-tensorrt": "ONNX Runtime with TensorRT",
    TENSORRT: "TensorRT",
}
"""All runtimes, and what each is called in sentences."""

LAUNCHES = ("onnxruntime-cuda", "onnxruntime-tensorrt")
"""Of these the profiler tells how long launching a kernel took, not what it took."""
ON_CPU = ("onnxruntime", "openvino")
"""Those that need no GPU."""

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "int8", "fp16", "bf16"),
    "onnxruntime-cuda": ("fp32",),
    "onnxruntime-tensorrt": ("fp32",),
    TENSORRT: ("fp32", "tf32", "fp16", "int8", "int8+fp16"),
}
"""What engines of each runtime may compute in; of OpenVINO's, the CPU has its say too."""
MIXED = "mixed"
"""Stands for a precision where each region of a network has its own, fp32 or int8: on the runtimes of `ON_CPU`."""


def model_runner(
    runtime: str,
    model: Path | bytes,
    *,
    threads: int = 1,
    batch: int = 1,
    profile: bool = False,
    precision: str = "fp32",
) -> ModelRunner:
    """A model, ready to run on a runtime.

    Args:
        runtime: a name in `RUNNERS`.
        model: ONNX file, or its bytes.
        threads: of one inference.
        batch: images per inference.
        profile: with the runtime's profiler on from the start, so that `kernels` needs fewer loads.
        precision: what it shall compute in; see `require_precision`.

    Raises:
        UsageError: an unknown runtime.
        RuntimeMissing: it is not installed.
        ModelError: it does not take the model.
    """
    require_runtime(runtime)
    return RUNNERS[runtime](model, threads=threads, batch=batch, profile=profile, precision=precision)


def require_precision(precision: str, runtime: str) -> None:
    """Refuses a precision that a runtime does not compute in, before any work.

    Raises:
        UsageError: says why, and what to give.
    """
    if not any(precision in names for names in PRECISIONS.values()):
        raise UsageError(
            f"unknown precision {precision!r}", hint=f"give --precision {' or '.join(PRECISIONS[runtime])}"
        )
    if precision not in PRECISIONS[runtime]:
        why = ": it casts to fp32 and back" if runtime == "onnxruntime" else ""
        raise UsageError(
            f"{TITLES[runtime]} does not compute in {precision} here{why}",
            hint=f"give --precision {' or '.join(PRECISIONS[runtime])}, or another --runtime",
        )
    if runtime == "openvino":
        require_computes(precision)


def require_mixed(runtime: str) -> None:
    """Refuses a runtime on which precisions are not chosen by region.

    Raises:
        UsageError: says what to give.
    """
    if runtime not in ON_CPU:
        own = ": TensorRT takes the faster of both by itself" if runtime == TENSORRT else ""
        instead = "int8+fp16" if runtime == TENSORRT else " or ".join(PRECISIONS[runtime])
        raise UsageError(
            f"--precision {MIXED} is not for {TITLES[runtime]}{own}",
            hint=f"give --precision {instead}, or --runtime {' or '.join(ON_CPU)}",
        )


def require_known(runtime: str) -> None:
    """Refuses a runtime that is unknown.

    Raises:
        UsageError: names those that are known.
    """
    if runtime not in TITLES:
        known = " or ".join(f"--runtime {name}" for name in TITLES)
        raise UsageError(f"unknown runtime {runtime!r}", hint=f"this version builds for {known}")


def require_runtime(runtime: str, device: str = LOCAL) -> None:
    """Refuses a runtime that is unknown or cannot run here, before any work; another device says itself what it lacks.

    Raises:
        UsageError: names those that are known.
        RuntimeMissing: it is not installed, its build has no such provider, or there is no driver or GPU.
    """
    require_known(runtime)
    if device != LOCAL:
        return
    _NEEDS[runtime]()


def _require_provider(name: str) -> None:
    """ONNX Runtime with a provider, and the GPU that it is for."""
    provider_chain(NAMES[name], onnxruntime().get_available_providers())
    require_gpu(f"runtime onnxruntime-{name}")


def _require_tensorrt() -> None:
    runtime_module(TENSORRT)
    require_gpu(f"runtime {TENSORRT}")
    cuda_runtime()


_NEEDS: Mapping[str, Callable[[], object]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "onnxruntime-cuda": partial(_require_provider, "cuda"),
    "onnxruntime-tensorrt": partial(_require_provider, "tensorrt"),
    TENSORRT: _require_tensorrt,
}

__all__ = [
    "LAUNCHES", "MIXED", "ON_CPU", "PRECISIONS", "RUNNERS", "TENSORRT", "TITLES", "ModelRunner", "model_runner",
    "require_known", "require_mixed", "require_precision", "require_runtime",
]  # fmt: skip
