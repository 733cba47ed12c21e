"""Laws of a window: a network against the dense one on a machine that changes its pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cpd_edge.measure.inputs import RING
from cpd_edge.measure.runners import Kernel
from cpd_edge.profile.attribution import Attribution, Times
from cpd_edge.profile.turns import Bench

DENSE_MS = 4.0


class Machine:
    """A clock that runs at one of two paces, which change at random after some milliseconds each."""

    def __init__(self, seed: int, slow: float, lasts_ms: float = 100.0, preempted: float = 0.0) -> None:
        self._rng, self._slow, self._lasts_ms = np.random.default_rng(seed), slow, lasts_ms
        self._preempted = preempted
        self._now_ms, self._pace, self._until_ms = 0.0, 1.0, 0.0

    def clock(self) -> int:
        return round(self._now_ms * 1e6)

    def work(self, ms: float) -> None:
        if self._now_ms >= self._until_ms:
            self._pace = float(self._rng.choice([1.0, self._slow]))
            self._until_ms = self._now_ms + float(self._rng.exponential(self._lasts_ms))
        self._now_ms += ms * self._pace + 4.0 * bool(self._preempted and self._rng.uniform() < self._preempted)


@dataclass
class Engine:
    machine: Machine
    ms: float
    cold: int = 0

    def run(self) -> None:
        self.machine.work(self.ms * (1.3 if self.cold > 0 else 1.0))
        self.cold -= 1

    def kernels(self, repeats: int) -> Sequence[Kernel]:
        return [Kernel("a", "Conv", 0, np.full(repeats, self.ms))]

    def close(self) -> None:
        pass


def bench(machine: Machine, repeats: int | None = None, cold: int = 0) -> Bench:
    """Networks whose latency is their width's share of the dense one's, after `cold` inferences of a new engine."""

    def make_runner(model: bytes, profiled: bool) -> Engine:
        return Engine(machine, float(model), cold)

    def build(widths: object) -> bytes:
        return str(DENSE_MS * widths["a"] / 64).encode()  # type: ignore[index]

    return Bench(build, make_runner, Attribution({"a": "a"}), {"a": 64}, repeats, machine.clock)


@pytest.mark.parametrize("held_out", [False, True])
def test_states_of_the_machine_do_not_reach_a_ratio(held_out: bool) -> None:
    """States 30 % apart move a network's ratio to the dense one by a few per cent, less where it is held out."""
    off = []
    for seed in range(20):
        sample = bench(Machine(seed, 1.3)).measure({"a": 24}, held_out)
        off.append(sample.total_ms / sample.reference_ms / (24 / 16) - 1)
    assert np.std(off) < (0.012 if held_out else 0.02)
    assert abs(np.mean(off)) < 0.01


def test_what_a_new_engine_touches_for_the_first_time_is_not_counted() -> None:
    """Its first inferences, one for each input of its ring, take longer than it will ever take again."""
    sample = bench(Machine(0, 1.0), cold=RING).measure({"a": 24}, False)
    assert sample.total_ms == pytest.approx(DENSE_MS * 24 / 64, rel=1e-3)


def test_inferences_that_lose_the_cpu_do_not_reach_a_ratio() -> None:
    """One inference in three hundred is held up for 4 ms, sixty times as long as it takes: no turn is moved by it."""
    for seed in range(3):
        sample = bench(Machine(seed, 1.0, preempted=1 / 300)).measure({"a": 1}, False)
        assert sample.total_ms / sample.reference_ms == pytest.approx(1 / 16, rel=0.02)


def test_noise_tells_how_far_off_a_ratio_is() -> None:
    """A window's own standard error is the spread of windows among each other, within a factor of three."""
    seen = [bench(Machine(seed, 1.3, lasts_ms=20)).measure({"a": 24}, False) for seed in range(40)]
    spread = np.std([s.total_ms / s.reference_ms for s in seen]) / np.mean([s.total_ms / s.reference_ms for s in seen])
    assert spread / 3 < np.sqrt(np.mean([s.noise**2 for s in seen])) < 3 * spread


def test_a_steady_machine_has_no_noise() -> None:
    """Nor does a single turn, which cannot tell."""
    steady = bench(Machine(0, 1.0)).measure({"a": 16}, False)
    assert steady.total_ms == pytest.approx(DENSE_MS / 4)
    assert steady.noise == pytest.approx(0.0, abs=1e-9)
    assert bench(Machine(0, 1.0), repeats=1).measure({"a": 16}, False).noise == 0.0


def test_a_network_whose_kernels_and_turns_disagree_is_measured_again() -> None:
    """The machine was slow for one of the two: once more, and what agrees is kept. What agrees is taken as it is."""
    before = [bench(Machine(0, 1.0)).measure({"a": width}, False) for width in (22, 24, 26)]
    machine = Machine(0, 1.0)
    slow = bench(machine)
    opened: list[int] = []
    inner = slow._profiled

    def profiled(data: bytes, repeats: int) -> Times:
        opened.append(repeats)
        times = inner(data, repeats)
        return replace(times, ms={"a": 2 * times.ms["a"]}) if len(opened) == 1 else times

    slow._profiled = profiled  # type: ignore[method-assign]
    sample = slow.measure({"a": 24}, False, before)
    assert (len(opened), sample.ms["a"]) == (2, DENSE_MS * 24 / 64)
    slow.measure({"a": 24}, False, before)
    assert len(opened) == 3
    opened.clear()
    slow.measure({"a": 24}, False, before[:2])
    assert len(opened) == 1, "two networks do not tell what is usual"


def test_a_network_whose_turns_met_a_slow_machine_is_known_by_its_kernels() -> None:
    """Nothing so slow was measured before; what takes as long in its kernels was, and says that the turns are off."""
    before = [bench(Machine(0, 1.0)).measure({"a": width}, False) for width in (22, 24, 26)]
    slow = bench(Machine(0, 1.0))
    windows = 0
    inner = slow._window

    def window(*given: Any) -> Any:
        nonlocal windows
        windows += 1
        found = inner(*given)
        return replace(found, ratios=2.4 * found.ratios) if windows == 1 else found

    slow._window = window  # type: ignore[method-assign]
    sample = slow.measure({"a": 24}, False, before)
    assert (windows, sample.total_ms) == (2, pytest.approx(DENSE_MS * 24 / 64))


@pytest.mark.parametrize(("share", "windows"), [(0.45, 1), (0.55, 2)])
def test_a_window_in_which_the_cpu_was_taken_away_is_measured_again(share: float, windows: int) -> None:
    """From one involuntary switch for two inferences on; the window without them is kept, whatever else it says."""
    seen: list[Any] = []
    bench_here = bench(Machine(0, 1.0))
    inner = bench_here._window

    def window(*given: Any) -> Any:
        found = replace(inner(*given), switches=0.0)
        first = replace(found, ratios=2 * found.ratios, switches=share * found.inferences)
        seen.append(found if seen else first)
        return seen[-1]

    bench_here._window = window  # type: ignore[method-assign]
    sample = bench_here.measure({"a": 24}, False)
    assert len(seen) == windows
    assert sample.total_ms == pytest.approx(DENSE_MS * 24 / 64 * (2 if windows == 1 else 1))
