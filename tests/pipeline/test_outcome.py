"""Laws of what a run says of its outcome."""

from __future__ import annotations

from typing import Any

import pytest

from cpd_edge.pipeline.aim import Window
from cpd_edge.pipeline.outcome import _reason
from cpd_edge.types import Budget, Interval

NEAR = {"verdict": "PASS", "limit_ms": 10.0, "measured": {"estimate": 9.6, "low": 9.5, "high": 9.7, "n": 90}}
FASTER = "the finished engine came out faster than the build that the loop stopped at"
NO_NEARER = "no nearer plan was found"


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ([NEAR], FASTER),
        ([{**NEAR, "limit_ms": 12.0}], NO_NEARER),
        ([{**NEAR, "verdict": "INCONCLUSIVE"}], NO_NEARER),
        ([NEAR, {**NEAR, "step": 1}], NO_NEARER),
        ([], NO_NEARER),
    ],
)
def test_why_an_engine_is_far_inside_its_budget(log: list[dict[str, Any]], why: str) -> None:
    """That no nearer plan was found is said only where the loop had not stopped at one that was near enough."""
    window = Window(*(Interval(ms, ms, ms, 90) for ms in (20.0, 9.3, 2.1)), 10.0, "PASS")
    said = _reason({"round_log": log}, window, Budget(speedup=2))
    assert said == f"inside the budget by 7.0%, not the 5% aimed at: {why}"


@pytest.mark.parametrize(
    ("latency_ms", "ratio", "why"),
    [
        ((9.7, 9.8, 9.9), (1.9, 2.0, 2.1), "2 x lies inside the interval of the speed-up"),
        ((10.1, 10.2, 10.3), (2.01, 2.02, 2.1), "the dense engine's interval leaves open what latency is asked for"),
        ((9.9, 10.0, 10.1), (2.01, 2.02, 2.1), "the budget lies inside the interval"),
    ],
)
def test_what_leaves_a_verdict_open_is_named(latency_ms: tuple[float, ...], ratio: tuple[float, ...], why: str) -> None:
    """The speed-up, the dense engine's latency or the pruned one's: whichever interval the budget lies in."""
    dense, latency, speedup = (
        Interval(mid, low, high, 90) for low, mid, high in ((19.8, 20.0, 20.9), latency_ms, ratio)
    )
    window = Window(dense, latency, speedup, 10.0, "INCONCLUSIVE")
    assert _reason({}, window, Budget(speedup=2)).startswith(f"{why}: measure longer")


def test_a_run_without_rounds_left_says_how_to_give_it_more() -> None:
    """Twice as many as it had."""
    window = Window(*(Interval(ms, ms, ms, 90) for ms in (20.0, 11.0, 1.8)), 10.0, "FAIL")
    assert "start again with --rounds 8" in _reason({"request": {"rounds": 4}}, window, Budget(speedup=2))
