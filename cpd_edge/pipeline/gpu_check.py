"""`doctor --gpu`: what a person with a Jetson or a GPU runs once. Each check says what it proves and what came of it.

The driver is asked first, by its own library: TensorRT is not touched without one. The result is written before each
check begins and after it ended, so that a check that ends the process is named in the file that it leaves.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpd_edge import store
from cpd_edge.deploy.engine import EngineSpec
from cpd_edge.errors import CpdError, EnvironmentMismatch, RuntimeMissing, StoreError
from cpd_edge.kernels import Frames, Preprocess, launches, load, reference
from cpd_edge.measure.device_stream import DeviceStream, cuda_runtime
from cpd_edge.measure.doctor import aa_report, tiny_model
from cpd_edge.measure.driver import Gpu, require_gpu
from cpd_edge.measure.engine_file import load_engine, read_record, record_path
from cpd_edge.measure.engine_runner import EngineRunner, runtime_module
from cpd_edge.measure.environment import capture
from cpd_edge.measure.protocol import Protocol, compare
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.measure.runtimes import TENSORRT
from cpd_edge.measure.sensing import HereSensors
from cpd_edge.measure.tool_run import time_with_tool
from cpd_edge.pipeline.engines import build

FORMAT = 1
SIZE, IMAGES = 64, 8
TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1}
"""Largest difference from ONNX Runtime on the CPU that passes, relative to the largest output."""

State = Literal["passed", "failed", "not possible"]
Progress = Callable[[float, str], None]


class CheckFailed(CpdError):
    """What a check was to prove does not hold."""


@dataclass
class Bench:
    """What one check leaves for the next: a folder with the model, its engines and inputs."""

    folder: Path
    gpu: Gpu | None = None
    engines: dict[str, Path] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """A network of three convolutions, `[batch, 3, 64, 64] -> [batch, 10]`."""
        return self.folder / "tiny.onnx"

    @property
    def images(self) -> npt.NDArray[np.float32]:
        """Inputs, the same on every machine."""
        return np.random.default_rng(0).standard_normal((IMAGES, 3, SIZE, SIZE)).astype(np.float32)

    def engine(self, precision: str = "fp32") -> Path:
        """An engine that an earlier check has built.

        Raises:
            RuntimeMissing: it did not.
        """
        if precision not in self.engines:
            raise RuntimeMissing(f"no {precision} engine was built")
        return self.engines[precision]


def driver(bench: Bench) -> dict[str, Any]:
    """The driver starts and shows a GPU."""
    bench.gpu = require_gpu("this check")
    return {"gpu": bench.gpu.name, "arch": bench.gpu.arch, "driver": bench.gpu.driver, "bytes": bench.gpu.memory_bytes}


def packages(bench: Bench) -> dict[str, Any]:
    """TensorRT and CUDA's bindings import under this driver."""
    require_gpu("TensorRT")
    version = str(runtime_module(TENSORRT).__version__)
    cuda_runtime()
    return {"tensorrt": version}


def built(precision: str) -> Callable[[Bench], dict[str, Any]]:
    """A check that an engine of a precision builds, and that its layers are told."""

    def check(bench: Bench) -> dict[str, Any]:
        calibration = bench.folder / "images.npy"
        np.save(calibration, bench.images)
        found = build(
            bench.model, TENSORRT, EngineSpec(precision=precision), out=bench.folder / f"{precision}.plan",  # type: ignore[arg-type]
            images=calibration if precision == "int8" else None,
        )  # fmt: skip
        bench.engines[precision] = Path(found["engine"])
        return {k: found[k] for k in ("seconds", "size_bytes", "regions", "notes")}

    return check


def computes(precision: str) -> Callable[[Bench], dict[str, Any]]:
    """A check that an engine loads, runs and gives what ONNX Runtime gives."""

    def check(bench: Bench) -> dict[str, Any]:
        with contextlib.closing(OnnxRunner(bench.model)) as trusted:
            wanted = trusted.outputs(bench.images)
        with contextlib.closing(EngineRunner(bench.engine(precision))) as runner:
            got, load_ms = runner.outputs(bench.images), dict(runner.load_ms)
        error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        if not error <= TOLERANCES[precision]:
            raise CheckFailed(f"outputs differ by {error:.3g} of the largest, {TOLERANCES[precision]:g} is allowed")
        return {"error": error, "load_ms": load_ms}

    return check


def layers(bench: Bench) -> dict[str, Any]:
    """Per-layer times come, and their sum is of the size of an inference."""
    with contextlib.closing(EngineRunner(bench.engine())) as runner:
        runner.event_ms.clear()
        for _ in range(100):
            runner.run()
        whole_ms, times = float(np.median(runner.event_ms)), runner.kernel_times(50)
    rows = [{"name": k.name, "type": k.op, "nodes": k.nodes, "ms": float(np.median(k.ms))} for k in times.kernels]
    sum_ms = sum(float(np.median(k.ms)) for k in times.kernels)
    if not 0.2 <= sum_ms / whole_ms <= 5:
        raise CheckFailed(f"layers sum to {sum_ms:.4g} ms, an inference takes {whole_ms:.4g} ms")
    return {"sum_ms": sum_ms, "inference_ms": whole_ms, "layers": rows}


def graph(bench: Bench) -> dict[str, Any]:
    """An inference captured as a CUDA graph gives the same outputs."""
    medians, outputs = {}, []
    for name, captured in (("enqueue", False), ("graph", True)):
        with contextlib.closing(EngineRunner(bench.engine(), graph=captured)) as runner:
            for _ in range(100):
                runner.run()
            medians[f"{name}_ms"] = float(np.median(runner.event_ms[-100:]))
            outputs.append(runner.outputs(bench.images))
    if not np.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4):
        raise CheckFailed("outputs differ after a graph was captured")
    return medians


def noise(bench: Bench) -> dict[str, Any]:
    """An engine against itself shows no difference, and how small a one would show."""
    protocol = Protocol(limit_s=20.0)
    with contextlib.closing(EngineRunner(bench.engine())) as runner:
        found = aa_report(compare(runner, runner, ("a", "a again"), protocol), protocol.level)
    if not found["sound"]:
        raise CheckFailed(f"an engine against itself is {found['outcome']}")
    return found


def cubins(bench: Bench) -> dict[str, Any]:
    """The project's CUDA kernels load for this GPU and give, bit for bit, what NumPy gives."""
    require_gpu("CUDA kernels")
    stream = DeviceStream(cuda_runtime())
    try:
        return {name: check(stream) for name, check in _KERNELS.items()}
    finally:
        stream.close()


def _uploaded(stream: DeviceStream, values: npt.NDArray[Any]) -> int:
    address = stream.allocate(values.nbytes)
    stream.upload(address, values)
    return address


def _same(stream: DeviceStream, address: int, wanted: npt.NDArray[Any], name: str) -> None:
    got = np.empty_like(wanted)
    stream.download(got, address)
    stream.wait()
    if not np.array_equal(got, wanted):
        raise CheckFailed(f"kernel {name}: {int((got != wanted).sum())} of {got.size} values differ from NumPy's")


def _preprocess(stream: DeviceStream) -> str:
    module, random = load("preprocess"), np.random.default_rng(0)
    pixels = random.integers(0, 256, (1, 48, 80, 3), np.uint8)
    for dtype in ("float32", "float16", "int8"):
        recipe = Preprocess(32, 32, mean=(0.5,), std=(0.25,), letterbox=True, dtype=dtype, scale=0.02)
        wanted = reference.preprocess(recipe, pixels)
        out, source = stream.allocate(wanted.nbytes), _uploaded(stream, pixels)
        module.launch(launches.preprocess(recipe, Frames(source, 1, 48, 80), out), stream.handle)
        _same(stream, out, wanted, f"preprocess to {dtype}")
    return "equal"


def _segmentation(stream: DeviceStream) -> str:
    module, random = load("segmentation"), np.random.default_rng(0)
    logits = random.standard_normal((1, 19, 24, 40)).astype(np.float32)
    table, wanted = random.integers(0, 256, (256, 3), np.uint8), reference.argmax(logits)
    classes = Frames(stream.allocate(wanted.nbytes), 1, 24, 40, 1)
    module.launch(launches.argmax(_uploaded(stream, logits), logits.shape, classes), stream.handle)
    _same(stream, classes.data, wanted, "argmax")
    image = Frames(stream.allocate(3 * wanted.nbytes), 1, 24, 40, 3)
    module.launch(launches.palette(classes, image, _uploaded(stream, table)), stream.handle)
    _same(stream, image.data, reference.palette(wanted, table), "palette")
    return "equal"


def _topk(stream: DeviceStream) -> str:
    logits = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
    values, indices = reference.topk(logits, 5)
    best, at = stream.allocate(values.nbytes), stream.allocate(indices.nbytes)
    load("topk").launch(launches.topk(_uploaded(stream, logits), (4, 1000), best, at, 5), stream.handle)
    _same(stream, best, values, "topk")
    _same(stream, at, indices, "topk's indices")
    return "equal"


_KERNELS: Mapping[str, Callable[[DeviceStream], str]] = {
    "preprocess": _preprocess, "segmentation": _segmentation, "topk": _topk,
}  # fmt: skip


def telemetry(bench: Bench) -> dict[str, Any]:
    """Power, temperatures and clocks can be read by this user."""
    sensors = HereSensors(every_s=0.2)
    try:
        time.sleep(1.5)
        readings = sensors.readings()
    finally:
        sensors.close()
    last = readings[-1] if readings else None
    if last is None or not (last.power_mw or last.temperature_c or last.gpu_mhz or last.energy_uj):
        raise RuntimeMissing("no power, temperature or clock is readable by this user")
    return {"readings": len(readings), "last": store.plain(last)}


def refused(bench: Bench) -> dict[str, Any]:
    """An engine of another TensorRT, and one whose ONNX file has changed, are refused by name."""
    engine = bench.engine()
    foreign = bench.folder / "foreign.plan"
    foreign.write_bytes(engine.read_bytes())
    record = replace(read_record(engine), runtime_version="0.0.0")
    store.write_json(record_path(foreign), record.to_json())
    other = bench.folder / "other.onnx"
    other.write_bytes(tiny_model(size=32))
    said = []
    for wanted, attempt in (
        (EnvironmentMismatch, lambda: EngineRunner(foreign)),
        (StoreError, lambda: load_engine(engine, other)),
    ):
        try:
            attempt()
        except wanted as error:
            said.append(error.what)
        else:
            raise CheckFailed("an engine that does not belong here was taken")
    return {"said": said}


def provider(bench: Bench) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider runs the model, and nothing of it falls back to the CPU."""
    require_gpu("ONNX Runtime's CUDA provider")
    with contextlib.closing(OnnxRunner(bench.model, provider="cuda")) as runner:
        runner.outputs(bench.images)
        return {"providers": runner.environment["providers"]}


def tool(bench: Bench) -> dict[str, Any]:
    """Trtexec builds and times the model, and what it exports is read."""
    require_gpu("trtexec")
    found = time_with_tool(bench.model, bench.folder / "tool", shape=("image", (1, 3, SIZE, SIZE)), duration_s=2)
    median_ms = float(np.median(found.measurement.samples_ns)) / 1e6
    return {"samples": len(found.measurement.samples_ns), "median_ms": median_ms, "layers": len(found.layers)}


CHECKS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "driver": driver,
    "packages": packages,
    **{f"build {precision}": built(precision) for precision in TOLERANCES},
    **{f"outputs {precision}": computes(precision) for precision in TOLERANCES},
    "layer times": layers,
    "CUDA graph": graph,
    "noise floor": noise,
    "kernels": cubins,
    "telemetry": telemetry,
    "foreign and stale engines": refused,
    "ONNX Runtime on CUDA": provider,
    "trtexec": tool,
}
"""All checks in order; an earlier one leaves its engine to the later ones."""

PROVES: Mapping[str, str] = {
    **{name: (check.__doc__ or "").strip() for name, check in CHECKS.items()},
    **{f"build {p}": f"The builder makes an {p} engine here, and says what it fused." for p in TOLERANCES},
    **{f"outputs {p}": f"The {p} engine loads, runs and gives what ONNX Runtime gives." for p in TOLERANCES},
}
"""What each check proves, in a sentence."""


def gpu_check(out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Runs every check and writes what came of them; plain data.

    Keys: `format`, `environment`, `possible` (there is a driver with a GPU), `failed` (names), `checks`: for each its
    `name`, `proves`, `state` (`passed`, `failed`, `not possible`), `reason`, `seconds`, `figures`.

    Args:
        out: JSON file, written anew before and after each check.
        progress: gets a fraction and the check's name.

    Raises:
        StoreError: the file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    environment = capture(TENSORRT, "", 1, 1, (1, 3, SIZE, SIZE))
    result: dict[str, Any] = {"format": FORMAT, "environment": environment, "possible": False, "failed": []}
    with tempfile.TemporaryDirectory(prefix="cpd-edge-gpu-") as folder:
        bench = Bench(Path(folder))
        bench.model.write_bytes(tiny_model(size=SIZE))
        for i, (name, check) in enumerate(CHECKS.items()):
            if progress is not None:
                progress(i / len(CHECKS), name)
            begun = {"name": name, "proves": PROVES[name], "state": "begun"}
            store.write_json(out, {**result, "checks": [*rows, begun]})
            rows.append({**begun, **_examined(check, bench)})
            result["possible"] = bench.gpu is not None
            result["failed"] = [row["name"] for row in rows if row["state"] == "failed"]
            store.write_json(out, {**result, "checks": rows})
    if progress is not None:
        progress(1.0, "")
    return {**result, "checks": rows, "file": str(out)}


def _examined(check: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    """What came of one check."""
    begun = time.perf_counter()
    state: State = "passed"
    reason, figures = "", dict[str, Any]()
    try:
        figures = check(bench)
    except RuntimeMissing as error:
        state, reason = "not possible", error.what
    except CpdError as error:
        state, reason = "failed", error.what
    except Exception as error:  # what no one foresaw is a result too, and ends no other check
        state, reason = "failed", f"{type(error).__name__}: {error}"
    seconds = round(time.perf_counter() - begun, 3)
    return {"state": state, "reason": reason, "seconds": seconds, "figures": store.plain(figures)}


__all__ = ["CHECKS", "PROVES", "gpu_check"]
