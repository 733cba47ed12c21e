"""`bench` in several processes: what a fresh process changes (memory, placement, autotuning) belongs to the number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from cpd_edge.store import plain
from cpd_edge.types import Interval

OWN = ("load_ms", "stages", "stages_sum_ms", "mean_ms", "unattributed_ms")
"""What is told of each process and not of all together."""
KEPT = (
    "latency_ms", "against_latency_ms", "speedup", "outcome", "stop", "steady", "interference", "outliers", "energy",
    "throttling", *OWN,
)  # fmt: skip


def replicated(count: int, *, out: Path | None, progress: Progress, **request: Any) -> dict[str, Any]:
    """`bench` once in each of `count` fresh processes, one after the other; what `--json` prints.

    The latency's estimate is the median of the processes'; its interval spans theirs, so a verdict holds for each.
    Energy is the mean over processes; a slow-down of the device in any of them counts, and so does the most that other
    work took the CPU. Loads and stages are each process's own. Added: `processes`, what each found, and
    `process_spread`, the relative distance between the fastest and the slowest estimate.

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
    latency = _spanned(rows, "latency_ms")
    estimates = [row["latency_ms"]["estimate"] for row in rows]
    out = {name: value for name, value in rows[-1].items() if name not in OWN}
    out |= {"latency_ms": latency, "outliers": sum(row["outliers"] for row in rows)}
    out |= {
        "processes": [{name: row[name] for name in KEPT if name in row} for row in rows],
        "process_spread": max(estimates) / min(estimates) - 1,
        "energy": mean_energy([row["energy"] for row in rows]),
        "throttling": _each_once(what for row in rows for what in row["throttling"]),
        "void": _each_once(what for row in rows for what in row["void"]),
        "steady": all(row["steady"] for row in rows),
        "interference": max((row["interference"] for row in rows if row["interference"] is not None), default=None),
        "stop": "; ".join(_each_once(row["stop"] for row in rows)),
    }
    if "speedup" in out:
        ratio = _spanned(rows, "speedup")
        against = _spanned(rows, "against_latency_ms")
        out |= {"against_latency_ms": against, "speedup": ratio, "outcome": outcome(ratio, Protocol().margin)}
    if "verdict" in out:
        out["verdict"] = stats.verdict(latency, out["budget_ms"])
    found: dict[str, Any] = plain(out)
    return found


def mean_energy(spent: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Energy of an inference in the mean over processes; none where one of them has none, or one of something else.

    Args:
        spent: of each process, as `Energy` in its JSON form; times and readings add up.
    """
    total = {name: sum(e[name] for e in spent) for name in ("seconds", "readings")}
    scopes = _each_once(e["scope"] for e in spent)
    reasons = _each_once(e["reason"] for e in spent if e["reason"])
    if len(scopes) > 1 and not reasons:
        reasons = [f"the processes' energies are of different things: {', '.join(scopes)}"]
    if reasons:
        nothing = dict.fromkeys(("gross_mj", "net_mj", "mean_mw"))
        return {**nothing, "scope": ", ".join(filter(None, scopes)), **total, "reason": "; ".join(reasons)}
    means = {name: _mean([e[name] for e in spent]) for name in ("gross_mj", "net_mj", "mean_mw")}
    return {**means, "scope": scopes[0], **total, "reason": ""}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where one is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _each_once(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _spanned(rows: Sequence[dict[str, Any]], name: str) -> Interval:
    """From the lowest bound to the highest, around the median of the estimates."""
    intervals = [Interval.from_json(row[name]) for row in rows]
    return Interval(
        float(np.median([i.estimate for i in intervals])),
        min(i.low for i in intervals),
        max(i.high for i in intervals),
        sum(i.n for i in intervals),
    )


def _silent(stage: str, fraction: float, text: str) -> None:
    """Progress of a process that nobody watches."""


__all__ = ["joined", "replicated"]
