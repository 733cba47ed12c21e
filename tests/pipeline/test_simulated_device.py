"""Laws of the whole path on a device whose truth is known: profile, solve and bench by the product's own code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cpd_edge.measure import Disturbance, Protocol, SimulatedDevice, compare, measure, quantile_interval, verdict
from cpd_edge.measure.runners import Kernel
from cpd_edge.measure.simulated_runtime import SimulatedRuntime
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable
from cpd_edge.score.importance import magnitude
from cpd_edge.solve.milp import solve
from cpd_edge.solve.pose import plan_from, problem_from

NOISY = Disturbance(noise=0.01, phi=0.9, outlier_rate=0.01)
DRIFTING = Disturbance(noise=0.01, phi=0.5, drift_per_s=0.01)
WITHIN = 0.03
"""What the table may be wrong by where a plan is held against a limit, beside the noise of one per cent."""


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3, stride=2), nn.Conv2d(64, 96, 3)
        self.c, self.head = nn.Conv2d(96, 128, 3, stride=2), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.a, self.b, self.c):
            x = torch.relu(conv(x))
        return self.head(x.mean((2, 3)))


@cache
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject.of(Chain(), (3, 32, 32))


@cache
def table(disturbance: Disturbance) -> LatencyTable:
    """The product's table, of a simulated device that does this."""
    at, device = subject(), SimulatedDevice(disturbance, seed=1)

    def make_runner(model: bytes, profiled: bool) -> SimulatedRuntime:
        return SimulatedRuntime(model, device, profile=profiled)

    key = {"device": "simulated"}
    chosen = {"model": at.dense_onnx, "samples": 36, "holdout": 6, "repeats": 16}
    return profile(at.build, at.regions, at.widths, make_runner, key, **chosen)  # type: ignore[arg-type]


@cache
def _opened(widths: tuple[tuple[str, int], ...]) -> SimulatedRuntime:
    return SimulatedRuntime(subject().build(dict(widths)), SimulatedDevice())


def opened(widths: Mapping[str, int]) -> SimulatedRuntime:
    """An engine at widths on a device of its own; only its truth is of use."""
    return _opened(tuple(widths.items()))


def true_regions(widths: Mapping[str, int]) -> dict[str, float]:
    """What each region truly costs at widths [ms]."""
    at = Attribution.of(subject().regions, subject().dense_onnx)
    costs = opened(widths).true_costs
    kernels = [Kernel(cost.name, cost.op, i, np.array([cost.ms])) for i, cost in enumerate(costs)]
    return at.adapted(onnx.load_from_string(subject().build(widths))).times(kernels).ms


def plans(count: int) -> list[dict[str, int]]:
    """Random widths, half of them multiples of eight."""
    rng = np.random.default_rng(5)
    steps = [1, 8] * count
    return [
        {g: int(-(-rng.integers(n // 4, n + 1) // step) * step) for g, n in subject().widths.items()}
        for step in steps[:count]
    ]


@pytest.mark.parametrize("disturbance", [NOISY, DRIFTING], ids=["noisy", "drifting"])
def test_true_costs_are_recovered(disturbance: Disturbance) -> None:
    """Plans within 3 % in the median and 8 % at worst, regions of a plan 5 % and 25 %, whatever disturbs the device.

    A drift makes all milliseconds larger by one factor, that of the middle of the window; ratios are what is recovered.
    """
    found = table(disturbance)
    pace = found.predict(subject().widths) / opened(subject().widths).true_ms
    assert pace == pytest.approx(1.0, abs=0.02 if not disturbance.drift_per_s else 0.2)
    whole = [found.predict(w) / opened(w).true_ms / pace - 1 for w in plans(12)]
    assert np.median(np.abs(whole)) <= WITHIN
    assert max(map(abs, whole)) <= 0.08
    parts = [
        found.region_ms(name, w) / ms / pace / (1 + off) - 1
        for w, off in zip(plans(12), whole, strict=True) for name, ms in true_regions(w).items() if ms > 0.02
    ]  # fmt: skip
    assert np.median(np.abs(parts)) <= 0.05
    assert max(map(abs, parts)) <= 0.25


def test_the_staircase_is_recovered() -> None:
    """Flat within a block of 32 channels written, a step behind it."""
    region = next(r.name for r in subject().regions if r.fqn == "c.weight")
    at = {c: table(NOISY).region_ms(region, {"a": 64, "b": 96, "c": c}) for c in (68, 80, 96, 100)}
    assert at[68] == pytest.approx(at[80], rel=0.05)
    assert at[80] == pytest.approx(at[96], rel=0.05)
    assert at[100] > 1.1 * at[96]


@pytest.mark.parametrize("share", [0.75, 0.5])
def test_the_plan_is_as_good_as_on_the_true_costs(share: float) -> None:
    """Against every plan there is: inside the limit in truth, and no better one is 3 % faster than the limit."""
    at, found = subject(), table(NOISY)
    importance = magnitude(at.network.state_dict(), at.combed.groups)
    limit_ms = share * found.predict(at.widths)
    posed = problem_from(found, importance, limit_ms, multiple_of=32)
    plan = plan_from(solve(posed), importance, limit_ms)
    assert opened(plan.widths).true_ms <= limit_ms * (1 + WITHIN)
    every = [dict(zip(posed.candidates, map(int, w), strict=True)) for w in product(*posed.candidates.values())]
    fast = [w for w in every if opened(w).true_ms <= limit_ms * (1 - WITHIN)]
    losses = [sum(posed.loss[g][list(posed.candidates[g]).index(n)] for g, n in w.items()) for w in fast]
    assert plan.objective <= min(losses) + 1e-9


@pytest.mark.parametrize(("slack", "expected"), [(1.03, "PASS"), (0.97, "FAIL")])
def test_the_verdict_on_the_built_plan_is_the_truth(slack: float, expected: str) -> None:
    """A budget 3 % above the true median of the pruned engine passes, 3 % below fails."""
    device = SimulatedDevice(NOISY, seed=2)
    engine = SimulatedRuntime(subject().build({"a": 32, "b": 64, "c": 96}), device)
    found = measure(engine, "pruned", Protocol())
    assert verdict(quantile_interval(found.samples_ns / 1e6, 0.5), slack * engine.true_ms) == expected


def test_the_true_speed_up_is_in_its_interval_while_the_device_drifts() -> None:
    """The paired ratio of two built engines is that of their true costs."""
    device = SimulatedDevice(DRIFTING, seed=3)
    dense, pruned = (
        SimulatedRuntime(subject().build(w), device) for w in (subject().widths, {"a": 32, "b": 64, "c": 96})
    )
    found = compare(dense, pruned, ("dense", "pruned"), Protocol())
    assert found.outcome == "faster"
    assert found.speedup.low <= dense.true_ms / pruned.true_ms <= found.speedup.high


def test_throttling_is_flagged() -> None:
    """A clock that drops while the engine is measured is no steady measurement."""
    throttling = SimulatedDevice(Disturbance(noise=0.01, throttle_after_s=0.8))
    engine = SimulatedRuntime(subject().build(subject().widths), throttling)
    assert not measure(engine, "dense", Protocol(min_blocks=40)).steady
    assert measure(opened(subject().widths), "dense", Protocol(min_blocks=40)).steady


def test_a_table_of_a_throttled_device_still_ranks_networks() -> None:
    """The dense network is timed beside each sample, so a clock that drops half way is taken out."""
    found = table(Disturbance(noise=0.01, throttle_after_s=1.5, throttle_factor=1.4))
    pace = found.predict(subject().widths) / opened(subject().widths).true_ms
    assert np.median([abs(found.predict(w) / opened(w).true_ms / pace - 1) for w in plans(12)]) <= WITHIN
