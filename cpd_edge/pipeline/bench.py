"""`bench`: an engine timed alone or against another. It returns what `--json` prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from cpd_edge import store
from cpd_edge.errors import DataError, UsageError
from cpd_edge.measure import stats
from cpd_edge.measure.engine_file import record_path
from cpd_edge.measure.protocol import Protocol, Runner, compare, measure
from cpd_edge.measure.remote import device_runner, observed, require_device
from cpd_edge.measure.runtimes import require_runtime
from cpd_edge.pipeline.engines import open_runner
from cpd_edge.profile.regions import find_regions
from cpd_edge.types import Budget

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
    limit_s: float,
    target: float,
    period_ms: float | None,
    out: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Times an engine, alone or paired with a reference."""
    require_device(device, runtime)
    if device == "local" and any(p is not None and not record_path(p).exists() for p in (engine, against)):
        require_runtime(runtime)
    for path in (engine, against):
        if path is not None and not path.is_file():
            raise DataError(f"no engine at {path}", hint="give an ONNX file, such as RUN/pruned.onnx")
    if threads < 1:
        raise UsageError(f"threads of {threads}: at least 1", hint="for example --threads 1")
    budget = Budget(budget_ms, None if budget_ms is not None else 1.0, quantile)
    mode = "paced" if period_ms is not None else "back-to-back"
    protocol = Protocol(limit_s=limit_s, target=target, mode=mode, period_ms=period_ms)  # type: ignore[arg-type]

    def tell(fraction: float, text: str) -> None:
        progress("bench", fraction, text)

    def opened(path: Path) -> Runner:
        if record_path(path).exists():
            return open_runner(path)
        return device_runner(device, runtime, path, threads=threads)

    with contextlib.closing(opened(engine)) as runner:
        if against is None:
            found, extra = measure(runner, engine.stem, protocol, quantile, progress=tell), {}
        else:
            with contextlib.closing(opened(against)) as reference:
                both = compare(reference, runner, (against.stem, engine.stem), protocol, quantile, progress=tell)
            found, extra = both.b, _compared(engine, against, both, quantile)
        seen = observed(runner, found)
    latency = stats.quantile_interval(found.samples_ns / 1e6, quantile)
    result = {"engine": str(engine), "quantile": quantile, "latency_ms": latency, "stop": found.stop}
    result |= {"steady": found.steady, "environment": found.environment, **extra, **seen}
    if budget_ms is not None:
        result |= {"budget_ms": budget.limit_ms, "verdict": stats.verdict(latency, budget_ms)}
    if out is not None:
        store.write_json(out, {"format": store.FORMAT, **dict(store.plain(found))})  # type: ignore[call-overload]
    plain: dict[str, Any] = dict(store.plain(result))  # type: ignore[call-overload]
    return plain


def _compared(engine: Path, against: Path, both: Any, quantile: float) -> dict[str, Any]:
    built = any(record_path(path).exists() for path in (against, engine))
    macs = [0 if built else sum(r.dense_macs for r in find_regions(onnx.load(p), {})) for p in (against, engine)]
    return {
        "against": str(against),
        "against_latency_ms": stats.quantile_interval(both.a.samples_ns / 1e6, quantile),
        "speedup": both.speedup,
        "outcome": both.outcome,
        "macs_ratio": macs[0] / macs[1] if macs[1] else None,
    }


__all__ = ["bench"]
