"""A model becomes an engine that runs: what a runtime needs in between, and where that is done.

ONNX Runtime and OpenVINO take the model as it is. TensorRT builds an engine from it on the device that runs it; here
that engine is kept, so that a model which was built once is only loaded the next time.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx

from cpd_edge.deploy.engine import EngineSpec
from cpd_edge.deploy.readable import readable
from cpd_edge.deploy.timing_cache import cache_folder
from cpd_edge.deploy.typed import half_precision
from cpd_edge.measure.devices import LOCAL
from cpd_edge.measure.driver import Gpu, require_gpu
from cpd_edge.measure.engine_file import record_path
from cpd_edge.measure.engine_runner import EngineRunner, runtime_module
from cpd_edge.measure.environment import state
from cpd_edge.measure.remote import UntypedModel, device_runner
from cpd_edge.measure.runtimes import TENSORRT, ModelRunner
from cpd_edge.pipeline.engines import build, read_model
from cpd_edge.store import held, write_bytes

KEEP_BYTES = 4 << 30
"""Engines that are kept, the ones used last."""


def open_model(
    device: str,
    runtime: str,
    model: Path | bytes,
    *,
    threads: int = 1,
    batch: int = 1,
    profile: bool = False,
    precision: str = "fp32",
) -> ModelRunner:
    """A model, ready to run on a runtime of a device.

    Args:
        device: `local`, or the name of a device that was added.
        runtime: a name of `runtimes.TITLES`.
        model: ONNX file, or its bytes.
        threads: of one inference, where the CPU computes.
        batch: images per inference.
        profile: with the runtime's profiler on from the start, so that `kernels` needs fewer loads.
        precision: of the model, or of the engine that is built from it.

    Raises:
        CpdError: what is missing, or what the runtime says of the model.
    """
    if device == LOCAL and runtime == TENSORRT:
        return EngineRunner(engine_of(model, precision, batch), batch=batch)
    options: dict[str, Any] = {"threads": threads, "batch": batch, "profile": profile, "precision": precision}
    if runtime != TENSORRT:
        return device_runner(device, runtime, model, **options)
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else read_model(model)[0]
    try:
        return device_runner(device, runtime, readable(proto).SerializeToString(), **options)
    except UntypedModel:  # which that device alone knows, once it is asked
        typed = half_precision(proto).model.SerializeToString()
        return device_runner(device, runtime, bytes(typed), typed=True, **options)


def engine_of(model: Path | bytes, precision: str = "fp32", batch: int = 1) -> Path:
    """The TensorRT engine of a model for this machine's GPU: built now, or kept from before.

    Raises:
        CpdError: as `engines.build`.
    """
    data = model if isinstance(model, bytes) else model.read_bytes()
    trt, gpu = runtime_module(TENSORRT), require_gpu(f"runtime {TENSORRT}")
    spec = EngineSpec(precision=precision, batch=(batch, batch, batch))  # type: ignore[arg-type]
    folder = cache_folder() / "engines"
    mode = str(state().get("power_mode", ""))
    name = _name(data, trt.__version__, gpu, spec, mode)
    engine = folder / f"{name}.plan"
    with held(cache_folder()):  # a builder times kernels: two at once would disturb each other
        if engine.is_file() and record_path(engine).is_file():
            os.utime(engine)
            return engine
        source = folder / f"{name}.onnx"
        write_bytes(source, data)
        try:
            build(source, TENSORRT, spec, out=engine, power_mode=mode)
        finally:
            source.unlink()
        _trim(folder, engine)
    return engine


def _name(data: bytes, version: str, gpu: Gpu, spec: EngineSpec, power_mode: str) -> str:
    """What makes an engine another one: the power mode decides which kernels win."""
    own = (version, gpu.name, gpu.arch, power_mode, spec.precision, spec.batch)
    parts: list[Any] = [hashlib.sha256(data).hexdigest(), *own]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _trim(folder: Path, keep: Path) -> None:
    """Removes the engines that were used longest ago, beyond a limit."""
    total = 0
    for engine in sorted(folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True):
        total += engine.stat().st_size
        if total > KEEP_BYTES and engine != keep:
            engine.unlink()
            record_path(engine).unlink(missing_ok=True)


__all__ = ["engine_of", "open_model"]
