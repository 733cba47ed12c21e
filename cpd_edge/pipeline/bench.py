"""`bench`: an engine timed alone or against another. It returns what `--json` prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import onnx

from cpd_edge import store
from cpd_edge.errors import DataError, UsageError
from cpd_edge.measure import stats
from cpd_edge.measure.devices import LOCAL, SIMULATED
from cpd_edge.measure.end_to_end import end_to_end
from cpd_edge.measure.engine_file import record_path
from cpd_edge.measure.environment import pin
from cpd_edge.measure.frames import Camera
from cpd_edge.measure.protocol import Protocol, Runner, compare, measure
from cpd_edge.measure.remote import require_device
from cpd_edge.measure.runtimes import require_known, require_precision, require_runtime
from cpd_edge.measure.sensing import IDLE_S, idle_power, observed, sensing
from cpd_edge.measure.telemetry import LEAST_S
from cpd_edge.pipeline.engines import open_runner
from cpd_edge.pipeline.opening import open_model
from cpd_edge.pipeline.precision import require_computed
from cpd_edge.profile.regions import find_regions
from cpd_edge.types import Budget, Measurement

Progress = Callable[[str, float, str], None]


def bench(
    engine: Path,
    against: Path | None,
    *,
    budget_ms: float | None,
    quantile: float,
    runtime: str = "onnxruntime",
    device: str = "local",
    threads: int,
    precision: str | None = None,
    limit_s: float,
    target: float,
    period_ms: float | None,
    camera: Camera | None = None,
    energy: bool = False,
    cpus: tuple[int, ...] = (),
    out: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Times an engine, alone or paired with a reference; from a camera's frame to a result where one is given.

    With `energy`, the idle power is looked at first, and sampling takes long enough for an energy. Engines stay on
    `cpus` of this machine where some are given. Those that are made of ONNX files are made in `precision`; without one
    the file says what a CPU computes in, and TensorRT builds in fp32.

    Raises:
        EnvironmentMismatch: the engine computes in another precision than was asked for.
        CpdError: bad input, or what is missing.
    """
    require_device(device, runtime)
    if precision is not None:
        require_known(runtime)
        require_precision(precision, runtime)
    if cpus and device != LOCAL:
        raise UsageError(f"--pin on device {device}", hint="--pin is for this machine: --device local")
    if device == SIMULATED and (camera is not None or energy):
        what = "--energy" if energy else "--end-to-end"
        raise UsageError(f"{what} on a device that computes nothing", hint=f"leave {what} or --device out")
    if device == LOCAL and any(p is not None and not record_path(p).exists() for p in (engine, against)):
        require_runtime(runtime, device)
    for path in (engine, against):
        if path is not None and not path.is_file():
            raise DataError(f"no engine at {path}", hint="give an ONNX file, such as RUN/pruned.onnx")
    if threads < 1:
        raise UsageError(f"threads of {threads}: at least 1", hint="for example --threads 1")
    budget = Budget(budget_ms, None if budget_ms is not None else 1.0, quantile)
    mode: Literal["paced", "back-to-back"] = "paced" if period_ms is not None else "back-to-back"
    least_s = LEAST_S + 1 if energy else 0.0
    limit_s = max(limit_s, 1.2 * least_s)
    protocol = Protocol(limit_s=limit_s, least_s=least_s, target=target, mode=mode, period_ms=period_ms)

    def tell(fraction: float, text: str) -> None:
        progress("bench", fraction, text)

    def opened(path: Path) -> Runner:
        if record_path(path).exists():
            runner: Runner = open_runner(path)
        else:
            runner = open_model(device, runtime, path, threads=threads, precision=precision or "fp32")
        if camera is None:
            return runner
        with contextlib.ExitStack() as undo:
            undo.callback(runner.close)
            staged = end_to_end(runner, camera)
            undo.pop_all()
        return staged

    reference_found: Measurement | None = None
    with pin(cpus), contextlib.closing(opened(engine)) as runner, sensing(runner) as sensors:
        if precision is not None:
            require_computed(runner.environment, precision)
        if energy:
            progress("idle", 0.0, f"{IDLE_S:g} s of idle power")
        idle = idle_power(sensors) if energy else None
        progress("idle", 1.0, "")
        if against is None:
            found, extra = measure(runner, engine.stem, protocol, quantile, progress=tell), {}
        else:
            with contextlib.closing(opened(against)) as reference:
                names = (against.stem, engine.stem)  # an engine's precision is its own, as its file is
                both = compare(reference, runner, names, protocol, quantile, progress=tell, across=("precision",))
            found, reference_found, extra = both.b, both.a, _compared(engine, against, both, quantile)
        seen = observed(sensors, found, idle)
        if camera is not None:
            extra |= _staged(runner, found, quantile)
        else:
            extra |= _loads(runner)
    latency = stats.quantile_interval(found.samples_ns / 1e6, quantile)
    result = {"engine": str(engine), "quantile": quantile, "latency_ms": latency, "stop": found.stop}
    result |= {"steady": found.steady, "interference": found.interference}
    result |= {
        "outliers": len(stats.outliers(found.samples_ns / 1e6)),
        "environment": found.environment,
        **extra,
        **seen,
    }
    if budget_ms is not None:
        result |= {"budget_ms": budget.limit_ms, "verdict": stats.verdict(latency, budget_ms)}
    if out is not None:
        beside = {} if reference_found is None else {"against": reference_found}
        store.write_json(out, {"format": store.FORMAT, **store.plain(found), **beside})
    plain: dict[str, Any] = store.plain(result)
    return plain


def _loads(runner: Any) -> dict[str, Any]:
    """The first load, one more now that file and runtime are warm, and the first inference, apart [ms]."""
    return {"load_ms": {**runner.load_ms, "warm_load": runner.warm_load_ms()}}


def _staged(runner: Any, found: Measurement, quantile: float) -> dict[str, Any]:
    """Each stage's own interval and mean, what ran them, and what the whole has beside their sum.

    Quantiles do not add, means do: `unattributed_ms` is the mean of the whole less the means of its stages.
    """
    times_ms = runner.stage_ms(found.starts_ns)
    intervals = {name: stats.quantile_interval(ms, quantile) for name, ms in times_ms.items()}
    means_ms = {name: float(ms.mean()) for name, ms in times_ms.items()}
    whole_ms = float(found.samples_ns.mean() / 1e6)
    return {
        "stages": {name: {"latency_ms": intervals[name], "mean_ms": mean_ms} for name, mean_ms in means_ms.items()},
        "stages_sum_ms": sum(interval.estimate for interval in intervals.values()),
        "mean_ms": whole_ms,
        "unattributed_ms": whole_ms - sum(means_ms.values()),
        "frame": found.environment["frame"],
        "ran_by": found.environment["stages"],
    }


def _compared(engine: Path, against: Path, both: Any, quantile: float) -> dict[str, Any]:
    built = any(record_path(path).exists() for path in (against, engine))
    macs = [0 if built else sum(r.dense_macs for r in find_regions(onnx.load(p), {})) for p in (against, engine)]
    return {
        "against": str(against),
        "against_latency_ms": stats.quantile_interval(both.a.samples_ns / 1e6, quantile),
        "speedup": both.speedup,
        "outcome": both.outcome,
        "paired": True,
        "macs_ratio": macs[0] / macs[1] if macs[1] else None,
    }


__all__ = ["bench"]
