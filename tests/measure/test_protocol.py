"""Laws of the protocol, on a simulated device whose truth is known and whose clock does not wait."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cpd_edge.errors import EnvironmentMismatch, UsageError
from cpd_edge.measure import (
    Disturbance,
    Protocol,
    SimulatedDevice,
    SimulatedRunner,
    compare,
    measure,
    quantile_interval,
    verdict,
)
from cpd_edge.measure.protocol import INSIDE, outcome
from cpd_edge.store import measurement_from, plain
from cpd_edge.types import Comparison, Interval, Measurement

DRIFTING = Disturbance(noise=0.02, phi=0.6, drift_per_s=0.02, outlier_rate=0.01)


def measured(runner: SimulatedRunner, protocol: Protocol, quantile: float = 0.5, **more: Any) -> Measurement:
    return measure(runner, "it", protocol, quantile, **more)


def compared(device: SimulatedDevice, a_ms: float, b_ms: float, protocol: Protocol, **more: Any) -> Comparison:
    a, b = SimulatedRunner(a_ms, device), SimulatedRunner(b_ms, device)
    return compare(a, b, ("a", "b"), protocol, **more)


def interval_ms(measurement: Measurement, q: float) -> Interval:
    return quantile_interval(measurement.samples_ns / 1e6, q)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("slack", "expected"), [(1.05, "PASS"), (0.95, "FAIL")])
def test_a_budget_that_is_met_or_missed_is_told_apart(quantile: float, slack: float, expected: str) -> None:
    """5 % above the true quantile passes, 5 % below it fails."""
    runner = SimulatedRunner(5.0, SimulatedDevice(Disturbance(noise=0.02, phi=0.3)))
    interval = interval_ms(measured(runner, Protocol(), quantile), quantile)
    assert verdict(interval, slack * runner.true_ms(quantile)) == expected


def test_sampling_stops_when_the_interval_is_inside_the_target() -> None:
    """The half-width is inside, ten blocks are there, and the time limit is far."""
    runner = SimulatedRunner(5.0)
    found = measured(runner, Protocol(target=0.01))
    interval = interval_ms(found, 0.5)
    assert found.stop == INSIDE
    assert (interval.high - interval.low) / 2 <= 0.01 * interval.estimate
    assert np.unique(found.blocks).size >= 10
    assert found.steady


@pytest.mark.parametrize(
    ("protocol", "quantile", "noise", "words"),
    [
        (Protocol(limit_s=1.0), 0.999, 0.01, "p99.9 is not supported by n: 203 samples, 2995 are needed"),
        (Protocol(limit_s=0.1), 0.5, 0.01, "blocks, 10 are needed"),
        (Protocol(limit_s=1.0, target=0.001), 0.5, 0.2, "the target is ±0.1 %"),
    ],
)
def test_the_time_limit_names_the_condition_that_was_not_met(
    protocol: Protocol, quantile: float, noise: float, words: str
) -> None:
    """Too few samples, too few blocks or too wide an interval, in words and with numbers."""
    found = measured(SimulatedRunner(5.0, SimulatedDevice(Disturbance(noise=noise))), protocol, quantile)
    assert found.stop.startswith("time limit of ")
    assert words in found.stop


def test_below_the_floor_the_verdict_is_inconclusive() -> None:
    """Ten seconds' budget, and still nothing is known of p99.9 after 200 samples."""
    interval = interval_ms(measured(SimulatedRunner(5.0), Protocol(limit_s=1.0), 0.999), 0.999)
    assert math.isinf(interval.high)
    assert verdict(interval, 10_000) == "INCONCLUSIVE"


@pytest.mark.parametrize("after_s", [0.8, 1.0, 1.2, 1.4])
def test_throttling_is_not_steady(after_s: float) -> None:
    """A clock that drops in the window is seen, wherever in the window it drops."""
    throttling = SimulatedDevice(Disturbance(throttle_after_s=after_s))
    assert not measured(SimulatedRunner(5.0, throttling), Protocol(min_blocks=60, limit_s=2.0)).steady
    assert measured(SimulatedRunner(5.0), Protocol(min_blocks=60)).steady


def test_outliers_are_kept() -> None:
    """Every inference is in the samples: the clock accounts for all of the window."""
    runner = SimulatedRunner(5.0, SimulatedDevice(Disturbance(outlier_rate=0.05)))
    found = measured(runner, Protocol(warmup_s=0))
    assert found.samples_ns.sum() == runner.device.clock()
    assert (found.samples_ns > 12e6).any()


def test_the_warm_up_is_not_sampled() -> None:
    """Sampling begins after the warm-up, not before."""
    assert measured(SimulatedRunner(5.0), Protocol(warmup_s=0.5)).starts_ns[0] >= 0.5e9


def test_a_block_lasts_as_long_as_the_protocol_says_and_holds_at_least_one() -> None:
    """30 ms hold six of 5 ms, and one of 100 ms."""
    still = Disturbance(noise=0.0)
    for latency_ms, count in ((5.0, 6), (100.0, 1)):
        found = measured(SimulatedRunner(latency_ms, SimulatedDevice(still)), Protocol(block_s=0.03))
        assert set(np.bincount(found.blocks)) == {count}


def test_paced_mode_starts_one_inference_a_frame() -> None:
    """Starts lie on the camera's frames, one period apart."""
    found = measured(SimulatedRunner(5.0), Protocol(mode="paced", period_ms=20.0))
    assert set(np.diff(found.starts_ns)) == {20_000_000}


def test_an_engine_slower_than_the_period_skips_frames() -> None:
    """The camera does not wait: 25 ms of work at 20 ms a frame takes every second frame."""
    found = measured(SimulatedRunner(25.0), Protocol(mode="paced", period_ms=20.0))
    assert set(np.diff(found.starts_ns)) == {40_000_000}


@pytest.mark.parametrize(
    ("quantile", "phi", "trials"),
    [(0.5, 0.0, 150), (0.5, 0.5, 120), (0.5, 0.9, 120), (0.99, 0.9, 60)],
)
def test_a_measurement_that_stopped_by_itself_errs_as_seldom_as_it_says(
    quantile: float, phi: float, trials: int
) -> None:
    """Looking at the interval to decide when to stop does not make it lie: 92 to 98 % hold the truth.

    Held against a budget of exactly the truth, a PASS or a FAIL is a false one: each at most one in twenty.
    """
    verdicts = []
    for seed in range(trials):
        runner = SimulatedRunner(2.0, SimulatedDevice(Disturbance(noise=0.03, phi=phi), seed))
        found = measured(runner, Protocol(warmup_s=0.1, target=0.02), quantile)
        verdicts.append(verdict(interval_ms(found, quantile), runner.true_ms(quantile)))
    assert 0.92 <= verdicts.count("INCONCLUSIVE") / trials <= 0.98
    assert max(verdicts.count("PASS"), verdicts.count("FAIL")) / trials <= 0.05


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_an_engine_against_itself_is_not_faster(phi: float) -> None:
    """At most 7 % of A/A comparisons find a difference, however the noise of neighbours hangs together."""
    noise = Disturbance(noise=0.02, phi=phi)
    outcomes = [compared(SimulatedDevice(noise, seed), 2.0, 2.0, Protocol(margin=0.002)).outcome for seed in range(60)]
    assert (outcomes.count("faster") + outcomes.count("slower")) / len(outcomes) <= 0.07


def test_comparing_an_engine_with_itself_finds_no_difference_while_the_device_drifts() -> None:
    """At most 7 % of A/A comparisons are false, where A then B is fooled in most."""
    trials, protocol = 60, Protocol(warmup_s=0.1, limit_s=4, margin=0.002)
    false_abba = false_sequential = 0
    for seed in range(trials):
        found = compared(SimulatedDevice(DRIFTING, seed), 2.0, 2.0, protocol)
        false_abba += found.outcome in ("faster", "slower")
        device = SimulatedDevice(DRIFTING, seed)
        a, b = (measured(SimulatedRunner(2.0, device), Protocol(min_blocks=40)) for _ in range(2))
        first, second = interval_ms(a, 0.5), interval_ms(b, 0.5)
        false_sequential += first.high < second.low or second.high < first.low
    assert false_abba / trials <= 0.07
    assert false_sequential / trials > 0.5


def test_a_comparison_goes_on_until_the_speed_up_is_known() -> None:
    """A reference of another latency in each inference leaves the ratio open, however well the candidate is known."""

    class Wandering(SimulatedRunner):
        random = np.random.default_rng(0)

        def run(self) -> None:
            self.device.work(self.latency_ms * self.random.uniform(0.5, 1.5))

    device = SimulatedDevice()
    pair = Wandering(50.0, device), SimulatedRunner(50.0, device)
    found = compare(*pair, ("a", "b"), Protocol(target=0.01, block_s=0.0, limit_s=10.0))
    assert "the interval of the speed-up is" in found.b.stop


def test_the_true_speed_up_is_recovered_while_the_device_drifts() -> None:
    """The interval holds the ratio of the true latencies and is inside the target."""
    found = compared(SimulatedDevice(DRIFTING), 3.0, 2.0, Protocol(target=0.02))
    assert found.a.stop == INSIDE
    assert found.outcome == "faster"
    assert found.speedup.low <= 1.5 <= found.speedup.high
    assert found.speedup.high - found.speedup.low <= 0.04 * found.speedup.estimate


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.99, 1.01, "equivalent"), (1.001, 1.015, "equivalent"), (1.01, 1.03, "faster"), (1.5, 1.6, "faster"),
        (0.7, 0.8, "slower"), (0.97, 1.01, "inconclusive"), (0.0, math.inf, "inconclusive"),
    ],
)  # fmt: skip
def test_the_outcome_is_said_by_the_interval(low: float, high: float, expected: str) -> None:
    """Inside the margin nothing matters; outside, an interval that holds 1 proves nothing."""
    assert outcome(Interval(1.0, low, high, 10), 0.02) == expected


def test_both_measurements_carry_their_raw_samples_in_abba_order() -> None:
    """Blocks of a and b alternate as a b b a, and each has two blocks per ABBA block."""
    found = compared(SimulatedDevice(), 3.0, 2.0, Protocol())
    starts = sorted(
        (m.starts_ns[m.blocks == block][0], m.name) for m in (found.a, found.b) for block in np.unique(m.blocks)
    )
    names = "".join(name for _, name in starts)
    assert names == "abba" * found.speedup.n


def test_engines_of_different_environments_are_not_compared() -> None:
    """Two threads against one is no comparison."""

    class TwoThreads(SimulatedRunner):
        @property
        def environment(self) -> dict[str, Any]:
            return {**super().environment, "threads": 2}

    with pytest.raises(EnvironmentMismatch, match=r"threads \(1 against 2\)"):
        compare(SimulatedRunner(1.0), TwoThreads(1.0), ("a", "b"), Protocol())


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "paced"}, {"period_ms": 5.0}, {"mode": "fast"}, {"target": -1.0}, {"limit_s": math.nan}, {"level": 1.0},
     {"min_blocks": 0}, {"mode": "paced", "period_ms": 0.0}],
)  # fmt: skip
def test_a_protocol_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    """At the door, not after a minute of sampling."""
    with pytest.raises(UsageError):
        Protocol(**wrong)


def test_progress_ends_at_one_and_never_leaves_its_range() -> None:
    """A bar that is drawn from it ends full."""
    seen: list[float] = []
    measured(SimulatedRunner(5.0), Protocol(), progress=lambda done, _: seen.append(done))
    assert seen[-1] == 1.0
    assert all(0 <= done <= 1 for done in seen)


def test_a_measurement_survives_its_file() -> None:
    """load(save(x)) == x, the environment included."""
    found = measured(SimulatedRunner(5.0), Protocol())
    assert plain(measurement_from(plain(found))) == plain(found)  # type: ignore[arg-type]


class Displaced(SimulatedRunner):
    """An engine whose first inferences after another one take twice as long: its memory has left the caches."""

    def __init__(self, latency_ms: float, device: SimulatedDevice, ran: list[float]) -> None:
        super().__init__(latency_ms, device)
        self.ran = ran

    def run(self) -> None:
        warm = self.ran[-3:] == [self.latency_ms] * 3
        self.ran.append(self.latency_ms)
        self.device.work(self.latency_ms * (1 if warm else 2))


def test_what_another_engine_took_from_the_caches_does_not_count() -> None:
    """The first inferences after a switch are a lead-in: what counts is how each engine runs alone."""
    device, ran = SimulatedDevice(Disturbance(noise=0.001)), list[float]()
    found = compare(Displaced(5.0, device, ran), Displaced(4.0, device, ran), ("a", "b"), Protocol())
    assert found.speedup.estimate == pytest.approx(5 / 4, rel=0.005)
    for measurement, latency_ms in ((found.a, 5.0), (found.b, 4.0)):
        assert measurement.samples_ns.max() / 1e6 < 1.02 * latency_ms
