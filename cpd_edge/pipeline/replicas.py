"""`bench` in several processes: what a fresh process changes (memory, placement, autotuning) belongs to the number."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cpd_edge.errors import UsageError
from cpd_edge.measure import stats
from cpd_edge.measure.protocol import Protocol, outcome
from cpd_edge.pipeline.bench import Progress, bench
from cpd_edge.pipeline.outcome import interval_from
from cpd_edge.store import plain
from cpd_edge.types import Interval


def replicated(count: int, *, out: Path | None, progress: Progress, **request: Any) -> dict[str, Any]:
    """`bench` once in each of `count` fresh processes, one after the other; what `--json` prints.

    The latency's estimate is the median of the processes'; its interval spans theirs, so a verdict holds for each.
    Added to what the last one said: `processes`, what each found, and `process_spread`, the relative distance between
    the fastest and the slowest estimate.

    Args:
        count: of processes.
        out: raw samples of process i go to `out` with `-i` behind its stem.
        progress: told of whole processes.
        request: the other arguments of `bench`.

    Raises:
        UsageError: no processes.
        CpdError: what `bench` raises.
    """
    if count < 1:
        raise UsageError(f"processes of {count}: at least 1", hint="for example --processes 5")
    rows: list[dict[str, Any]] = []
    for i in range(count):
        progress("bench", i / count, f"process {i + 1} of {count}")
        into = None if out is None else out.with_stem(f"{out.stem}-{i + 1}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            rows.append(fresh.submit(partial(bench, out=into, progress=_silent, **request)).result())
    progress("bench", 1.0, "")
    return joined(rows)


def joined(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result from those of several processes."""
    latency = _spanning([interval_from(row["latency_ms"]) for row in rows])
    estimates = [row["latency_ms"]["estimate"] for row in rows]
    kept = (
        "latency_ms",
        "against_latency_ms",
        "speedup",
        "outcome",
        "stop",
        "steady",
        "interference",
        "outliers",
        "load_ms",
    )
    out = {**rows[-1], "latency_ms": latency, "outliers": sum(row["outliers"] for row in rows)}
    out |= {
        "processes": [{name: row[name] for name in kept if name in row} for row in rows],
        "process_spread": max(estimates) / min(estimates) - 1,
        "void": list(dict.fromkeys(what for row in rows for what in row["void"])),
        "steady": all(row["steady"] for row in rows),
        "stop": "; ".join(dict.fromkeys(row["stop"] for row in rows)),
    }
    if "speedup" in out:
        ratio = _spanning([interval_from(row["speedup"]) for row in rows])
        out |= {"speedup": ratio, "outcome": outcome(ratio, Protocol().margin)}
    if "verdict" in out:
        out["verdict"] = stats.verdict(latency, out["budget_ms"])
    found: dict[str, Any] = dict(plain(out))  # type: ignore[call-overload]
    return found


def _spanning(intervals: Sequence[Interval]) -> Interval:
    """From the lowest bound to the highest, around the median of the estimates."""
    return Interval(
        float(np.median([i.estimate for i in intervals])),
        min(i.low for i in intervals),
        max(i.high for i in intervals),
        sum(i.n for i in intervals),
    )


def _silent(stage: str, fraction: float, text: str) -> None:
    """Progress of a process that nobody watches."""


__all__ = ["joined", "replicated"]
