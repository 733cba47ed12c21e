"""Laws of what a run says of its outcome."""

from __future__ import annotations

from typing import Any

import pytest

from cpd_edge.pipeline.aim import Window
from cpd_edge.pipeline.outcome import _reason
from cpd_edge.types import Interval

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
    assert _reason({"round_log": log}, window, 0.05) == f"inside the budget by 7.0%, not the 5% aimed at: {why}"
