"""The loop's arithmetic: from a limit on the device to a limit in the table, and how far a build was off.

The table's milliseconds and the device's of this minute differ by the machine's pace. The dense engine
is timed in every window, so `pace` is known in every window, and only what a plan adds on top of
the table, `delta_ms`, is left to be learned from builds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cpd_edge.errors import InfeasibleError
from cpd_edge.measure import stats
from cpd_edge.solve.problem import LATENCY
from cpd_edge.types import Budget, Comparison, Interval, Plan, Verdict

AIM = 0.975
"""Share of the limit that is aimed at: the upper end of the interval must be inside too."""

NOTHING = 1e-6
"""Share of the limit that is still solved for where builds took all of it beyond their predictions."""

LEEWAY = 1.05
"""How far above the floor a limit is that can be asked for."""


@dataclass(frozen=True)
class Window:
    """One ABBA window: the dense engine and a candidate.

    Attributes:
        dense, latency: intervals of the budget's quantile [ms].
        speedup: paired ratio.
        limit_ms: the budget in milliseconds of this window.
        verdict: of the candidate.
    """

    dense: Interval
    latency: Interval
    speedup: Interval
    limit_ms: float
    verdict: Verdict

    @property
    def close(self) -> float:
        """Upper end over the limit: 1 is just inside."""
        return self.latency.high / self.limit_ms


def judge(comparison: Comparison, budget: Budget) -> Window:
    """What a window says of a budget. A speed-up must hold in the paired ratio and in the latency itself.

    It is missed where the ratio is below it, or the latency above what all of the dense engine's interval allows.
    """
    dense = stats.quantile_interval(comparison.a.samples_ns / 1e6, budget.quantile)
    latency = stats.quantile_interval(comparison.b.samples_ns / 1e6, budget.quantile)
    limit_ms = limit_of(budget, dense)
    verdict = stats.verdict(latency, limit_ms)
    if budget.speedup is not None:
        ratio, most_ms = comparison.speedup, dense.high / budget.speedup
        doubts = {"PASS": ratio.low < budget.speedup, "FAIL": latency.low <= most_ms}
        if ratio.high < budget.speedup:
            verdict = "FAIL"
        elif doubts.get(verdict):
            verdict = "INCONCLUSIVE"
    return Window(dense, latency, comparison.speedup, limit_ms, verdict)


def limit_of(budget: Budget, dense: Interval) -> float:
    """The budget in milliseconds, given the dense engine's latency in the same window."""
    if budget.limit_ms is not None:
        return budget.limit_ms
    assert budget.speedup is not None
    return dense.estimate / budget.speedup


def in_speedups(error: InfeasibleError, budget: Budget, dense_ms: float) -> InfeasibleError:
    """The same error, which tells milliseconds, with how much faster than dense that is, where that was asked for.

    Args:
        error: in the device's milliseconds.
        budget: what was asked for.
        dense_ms: the dense engine's latency [ms].
    """
    if budget.speedup is None or error.resource != LATENCY:
        return error
    reached = dense_ms / error.floor_ms
    ask = error.hint
    if reached >= LEEWAY:
        ask = f"ask for --speedup {_down(reached / LEEWAY)} or less, or {error.hint.removeprefix('ask for ')}"
    return InfeasibleError(
        f"{error.what}; that is {_down(reached)} x faster than dense, {budget.speedup:g} x was asked for",
        floor_ms=error.floor_ms,
        binding=error.binding,
        hint=ask,
        resource=error.resource,
        floor=error.floor,
        beside=error.beside,
    )


def _down(ratio: float) -> str:
    """A ratio to two places, never more than it is."""
    return f"{math.floor(100 * ratio) / 100:g}"


def table_limit_ms(limit_ms: float, pace: float, delta_ms: float, share: float = AIM) -> float:
    """The limit to solve for, in the table's milliseconds.

    Where builds took so much beyond their predictions that nothing is left of it, it is next to nothing: no plan meets
    that, and the solver says what holds it up.
    """
    return max(limit_ms * share / pace - delta_ms, NOTHING * limit_ms / pace)


def delta_of(window: Window, pace: float, predicted_ms: float) -> float:
    """What a build took beyond its prediction, in the table's milliseconds."""
    return window.latency.estimate / pace - predicted_ms


def learned_delta(deltas_ms: Iterable[float]) -> float:
    """What to expect of the next build: the median of what builds took beyond their predictions so far, 0 at first.

    One plan that the table misjudges badly says little of the next one, which is another plan.
    """
    known = list(deltas_ms)
    return statistics.median(known) if known else 0.0


def delta_before(log: Iterable[Mapping[str, Any]], number: int) -> float:
    """What was expected of a round's build, from the rounds before it: its own measurement is no prediction."""
    return learned_delta(row["delta_ms"] for row in log if row["round"] < number)


def round_row(number: int, window: Window, plan: Plan, pace: float, delta_ms: float) -> dict[str, Any]:
    """One round of the loop, in the device's milliseconds except for `delta_ms`, which is the table's."""
    return {
        "round": number,
        "limit_ms": window.limit_ms,
        "predicted_ms": (plan.predicted_ms + delta_ms) * pace,
        "measured": window.latency,
        "delta_ms": delta_ms,
        "verdict": window.verdict,
    }
