"""`bench` of measurement files: what was measured before, judged again, or set against another file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cpd_edge import store
from cpd_edge.errors import EnvironmentMismatch, StoreError, UsageError
from cpd_edge.measure import stats
from cpd_edge.measure.environment import require_comparable
from cpd_edge.measure.protocol import Protocol, outcome
from cpd_edge.types import Budget, Interval, Measurement


def any_saved(engine: Path, against: Path | None, out: Path | None, force: bool) -> bool:
    """Whether measurement files are meant, not engines.

    Raises:
        UsageError: one of each, or options that the other kind has.
    """
    kinds = {path.suffix == ".json" for path in (engine, against) if path is not None}
    if len(kinds) == 2:
        raise UsageError(
            f"{engine} against {against}: one is a file of samples, the other an engine",
            hint="give two engines, to be measured in one window, or two files of bench --out",
        )
    saved = kinds == {True}
    if saved and out is not None:
        raise UsageError("--out with a file of samples: nothing is measured", hint="leave --out out")
    if force and not (saved and against is not None):
        raise UsageError("--force is for two files of samples", hint="give both as files of bench --out")
    return saved


def read_measurement(path: Path) -> Measurement:
    """The raw samples that `bench --out`, a run or `import-trtexec` kept.

    Raises:
        StoreError: the file is missing, or holds no measurement.
    """
    data = store.read_json(path)
    try:
        found = store.measurement_from(data)
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{path} holds no measurement: {error} is missing",
            hint="give a file of bench --out, or RUN/samples/NAME.json",
        ) from error
    if not found.samples_ns.size:
        raise StoreError(f"{path} holds no samples", hint="measure again: cpd-edge bench ENGINE --out FILE.json")
    return found


def judge_saved(
    path: Path, against: Path | None, *, budget_ms: float | None, quantile: float, force: bool
) -> dict[str, Any]:
    """The interval, verdict and ratio that raw samples give, without running anything; what `--json` prints.

    The two were not taken in one window, so a drift between them counts as a difference: the ratio is no paired one,
    and the result says so.

    Raises:
        EnvironmentMismatch: the two come from environments that may not be compared, and it was not forced.
        StoreError: a file holds no measurement.
    """
    budget = Budget(budget_ms, None if budget_ms is not None else 1.0, quantile)
    found = read_measurement(path)
    latency = stats.quantile_interval(found.samples_ns / 1e6, quantile)
    result: dict[str, Any] = {
        "engine": found.name, "quantile": quantile, "latency_ms": latency, "stop": found.stop, "steady": found.steady,
        "interference": found.interference, "outliers": len(stats.outliers(found.samples_ns / 1e6)),
        "environment": found.environment, "measured_now": False,
    }  # fmt: skip
    if against is not None:
        result |= _ratio(found, read_measurement(against), quantile, latency, force)
    if budget_ms is not None:
        result |= {"budget_ms": budget.limit_ms, "verdict": stats.verdict(latency, budget_ms)}
    plain: dict[str, Any] = store.plain(result)
    return plain


def _ratio(
    found: Measurement, reference: Measurement, quantile: float, latency: Interval, force: bool
) -> dict[str, Any]:
    differs = ""
    try:
        require_comparable(reference.environment, found.environment)
    except EnvironmentMismatch as error:
        if not force:
            raise EnvironmentMismatch(
                error.what, hint="measure both in one window: cpd-edge bench ENGINE --against ENGINE; or add --force"
            ) from None
        differs = error.what
    before = stats.quantile_interval(reference.samples_ns / 1e6, quantile)
    ratio = unpaired_speedup(before, latency)
    return {
        "against": reference.name,
        "against_latency_ms": before,
        "speedup": ratio,
        "outcome": outcome(ratio, Protocol().margin),
        "paired": False,
        "forced": differs or None,
        "macs_ratio": None,
    }


def unpaired_speedup(before: Interval, after: Interval) -> Interval:
    """The ratio of two latencies whose intervals are independent, before over after.

    The distances of each log's bounds from its estimate add in quadrature (MOVER, Zou & Donner 2008), so bounds need
    not lie evenly. `n` is the smaller number of samples.
    """
    a, b = (_logs(interval) for interval in (before, after))
    centre = a[1] - b[1]
    low, high = centre - math.hypot(a[1] - a[0], b[2] - b[1]), centre + math.hypot(a[2] - a[1], b[1] - b[0])
    return Interval(math.exp(centre), math.exp(low), math.exp(high), min(before.n, after.n))


def _logs(interval: Interval) -> tuple[float, float, float]:
    low = math.log(interval.low) if interval.low > 0 else -math.inf
    return low, math.log(interval.estimate), math.log(interval.high)


__all__ = ["any_saved", "judge_saved", "read_measurement", "unpaired_speedup"]
