"""Laws of the loop's arithmetic: what a build took and what is asked of the next one are each other's inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpd_edge.errors import InfeasibleError
from cpd_edge.pipeline.aim import AIM, Window, delta_of, in_speedups, judge, learned_delta, limit_of, table_limit_ms
from cpd_edge.types import Budget, Comparison, Interval, Measurement

MS = st.floats(1e-3, 1e3)
PACE = st.floats(0.2, 5.0)


def exactly(ms: float) -> Interval:
    return Interval(ms, ms, ms, 100)


def comparison(dense_ms: float, pruned_ms: float, ratio: tuple[float, float], spread: float = 0.0) -> Comparison:
    """A window of constant latencies, but for a spread around the pruned engine's, with a given ratio."""
    factors = np.linspace(1 - spread, 1 + spread, 401)[np.random.default_rng(0).permutation(401)]

    def measurement(name: str, ms: np.ndarray) -> Measurement:  # type: ignore[type-arg]
        index = np.arange(len(ms))
        return Measurement(name, np.round(ms * 1e6).astype(np.int64), index, index, {}, True, "interval inside target")

    low, high = ratio
    speedup = Interval((low + high) / 2, low, high, 40)
    a, b = measurement("dense", dense_ms * np.ones(401)), measurement("pruned", pruned_ms * factors)
    return Comparison(a, b, speedup, "faster", 0.02)


@given(limit=MS, pace=PACE, beyond=st.floats(0.5, 10.0))
def test_a_build_far_beyond_its_prediction_leaves_a_limit_that_can_be_solved_for(
    limit: float, pace: float, beyond: float
) -> None:
    """What it took beyond may be more than the limit: the next plan is then impossible, not the request a wrong one."""
    left = table_limit_ms(limit, pace, beyond * limit / pace)
    assert 0 < left <= limit / pace


@given(predicted=MS, pace=PACE)
def test_a_build_exactly_as_predicted_has_no_delta(predicted: float, pace: float) -> None:
    """A build that takes its prediction at the window's pace took nothing beyond it."""
    window = Window(exactly(1.0), exactly(predicted * pace), exactly(1.0), 1.0, "PASS")
    assert delta_of(window, pace, predicted) == pytest.approx(0.0, abs=1e-9 * predicted)


@given(limit=MS, pace=PACE, beyond=st.floats(-1.0, 0.9))
def test_a_plan_at_the_table_limit_lands_at_the_aim(limit: float, pace: float, beyond: float) -> None:
    """What the table limit allows, built with the same delta, takes the aimed share of the limit on the device."""
    delta = beyond * limit / pace
    predicted = table_limit_ms(limit, pace, delta)
    assert (predicted + delta) * pace == pytest.approx(AIM * limit, rel=1e-9, abs=1e-9 * pace)


@given(limit=MS, pace=PACE, beyond=st.floats(-1.0, 0.9))
def test_delta_and_table_limit_are_inverse(limit: float, pace: float, beyond: float) -> None:
    """The delta of a build that lands at the aim is the delta it was aimed with."""
    delta = beyond * limit / pace
    window = Window(exactly(1.0), exactly(AIM * limit), exactly(1.0), limit, "PASS")
    assert delta_of(window, pace, table_limit_ms(limit, pace, delta)) == pytest.approx(
        delta, abs=1e-9 * (limit / pace + 1)
    )


def test_a_limit_in_milliseconds_is_itself() -> None:
    """A budget in ms is the same whatever the dense engine does; a speed-up is a share of the dense latency."""
    assert limit_of(Budget(limit_ms=3.0), exactly(10.0)) == 3.0
    assert limit_of(Budget(speedup=4.0), exactly(10.0)) == 2.5


@pytest.mark.parametrize(
    ("pruned_ms", "spread", "verdict"),
    [(4.9, 0.0, "PASS"), (5.0, 0.0, "PASS"), (5.1, 0.0, "FAIL"), (5.0, 0.3, "INCONCLUSIVE")],
)
def test_a_budget_in_ms_is_judged_by_the_interval(pruned_ms: float, spread: float, verdict: str) -> None:
    """Inside the limit is PASS, outside FAIL, and an interval that holds the limit is INCONCLUSIVE."""
    window = judge(comparison(10.0, pruned_ms, (1.9, 2.1), spread), Budget(limit_ms=5.0))
    assert (window.verdict, window.limit_ms) == (verdict, 5.0)


@pytest.mark.parametrize(
    ("pruned_ms", "ratio", "verdict"),
    [
        (4.5, (2.05, 2.1), "PASS"),
        (4.5, (1.95, 2.1), "INCONCLUSIVE"),  # the latency holds, the paired ratio does not
        (4.5, (1.8, 1.9), "FAIL"),
        (5.5, (2.05, 2.1), "FAIL"),  # the paired ratio holds, the latency does not
        (5.5, (1.8, 1.9), "FAIL"),
    ],
)
def test_a_speedup_must_hold_in_ratio_and_latency(pruned_ms: float, ratio: tuple[float, float], verdict: str) -> None:
    """A speed-up passes only where both the paired ratio and the latency itself are inside."""
    assert judge(comparison(10.0, pruned_ms, ratio), Budget(speedup=2.0)).verdict == verdict


@pytest.mark.parametrize(("pruned_ms", "verdict"), [(5.0, "INCONCLUSIVE"), (5.2, "FAIL")])
def test_a_speedup_is_missed_where_all_of_the_dense_interval_says_so(pruned_ms: float, verdict: str) -> None:
    """Half of the dense estimate is 4.97 ms, half of its upper bound 5.02; the ratio leaves it open."""
    window = comparison(10.0, pruned_ms, (1.98, 2.02))
    spread = 1 + 0.1 * np.random.default_rng(1).standard_normal(401)
    window = replace(window, a=replace(window.a, samples_ns=np.round(window.a.samples_ns * spread).astype(np.int64)))
    judged = judge(window, Budget(speedup=2.0))
    assert judged.latency.low > judged.limit_ms and 5.0 < judged.dense.high / 2 < 5.2
    assert judged.verdict == verdict


@pytest.mark.parametrize(
    ("floor_ms", "hint"), [(5.0, "--speedup 1.9 or less, or --budget-ms 9"), (9.8, "--budget-ms 9")]
)
def test_a_speedup_that_is_none_is_not_offered(floor_ms: float, hint: str) -> None:
    """Where the floor is hardly below the dense latency, only milliseconds are left to ask for."""
    error = InfeasibleError("no plan", floor_ms=floor_ms, binding=(), hint="ask for --budget-ms 9")
    assert in_speedups(error, Budget(speedup=2.0), 10.0).hint == f"ask for {hint}"


def test_close_is_the_upper_end_over_the_limit() -> None:
    """A window whose upper end is at the limit is at 1, below it under 1."""
    assert Window(exactly(10.0), Interval(4.0, 3.9, 4.5, 9), exactly(2.0), 5.0, "PASS").close == pytest.approx(0.9)


@pytest.mark.parametrize(("seen", "wanted"), [([], 0.0), ([0.3], 0.3), ([-0.1, 0.3], 0.1), ([0.0, 0.1, 5.0], 0.1)])
def test_one_odd_build_does_not_lead_the_loop_astray(seen: list[float], wanted: float) -> None:
    """The correction is the median over builds."""
    assert learned_delta(seen) == pytest.approx(wanted)
