"""The measuring protocol: warm-up, blocks, a stop rule fixed beforehand, ABBA comparison, paced mode."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import UsageError
from cpd_edge.measure.environment import moment, require_comparable
from cpd_edge.measure.stats import half_width, paired_speedup, quantile_interval, sample_floor, trend
from cpd_edge.types import Comparison, Interval, Measurement

INSIDE = "interval inside target"
"""The stop reason of a measurement that met its target; any other names the condition that was not met."""

Clock = Callable[[], int]
Sleep = Callable[[float], None]
Progress = Callable[[float, str], None]
Outcome = Literal["faster", "slower", "equivalent", "inconclusive"]

_GROWTH = 1.4


class Runner(Interface):
    """An engine that is ready to run: what a device must offer to be measured."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where and how it runs."""

    def run(self) -> None:
        """One inference, finished when this returns."""

    def close(self) -> None:
        """Gives back what the engine holds."""


@dataclass(frozen=True)
class Protocol:
    """How to sample, and when to stop.

    Attributes:
        level: coverage of the intervals.
        warmup_s: length of the warm-up of each engine [s].
        block_s: length of a block of back-to-back inferences [s]; a block holds at least one.
        min_blocks: blocks (ABBA blocks when comparing) without which no measurement ends before its limit.
        target: relative half-width of the interval at which sampling may stop.
        limit_s: time limit of sampling, warm-up aside [s].
        mode: `back-to-back`, or `paced`: one inference per `period_ms`.
        period_ms: frame period of paced mode [ms].
        margin: relative difference below which two engines count as equivalent.

    Raises:
        UsageError: a value that is no protocol.
    """

    level: float = 0.95
    warmup_s: float = 0.3
    block_s: float = 0.03
    min_blocks: int = 10
    target: float = 0.01
    limit_s: float = 20.0
    mode: Literal["back-to-back", "paced"] = "back-to-back"
    period_ms: float | None = None
    margin: float = 0.02

    def __post_init__(self) -> None:
        if self.mode not in ("back-to-back", "paced"):
            raise UsageError(f"mode {self.mode!r}: it must be 'back-to-back' or 'paced'")
        if (self.mode == "paced") != (self.period_ms is not None):
            raise UsageError(
                f"mode {self.mode!r} with period {self.period_ms} ms: a paced protocol, and no other, has a period",
                hint="for 30 frames a second: mode='paced', period_ms=33.3",
            )
        if not 0 < self.level < 1:
            raise UsageError(f"level {self.level}: it must lie between 0 and 1")
        for name in ("warmup_s", "block_s", "target", "limit_s", "margin", "min_blocks", "period_ms"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} of {value}: it must be 0 or more")
        if self.period_ms == 0 or self.limit_s == 0 or self.min_blocks < 1:
            raise UsageError("a protocol needs a period and a time limit above 0, and at least one block")

    @property
    def words(self) -> str:
        """The protocol in words, as it goes into the environment."""
        pace = self.mode if self.period_ms is None else f"paced every {self.period_ms:g} ms"
        return f"{pace}, blocks of {self.block_s:g} s, warm-up {self.warmup_s:g} s"


def measure(
    runner: Runner,
    name: str,
    protocol: Protocol,
    quantile: float = 0.5,
    *,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
    progress: Progress | None = None,
) -> Measurement:
    """Samples an engine until the quantile's interval is inside the target, or the time limit.

    Args:
        runner: the engine.
        name: what the measurement is called.
        protocol: how to sample.
        quantile: the budget's quantile, whose interval decides when to stop.
        clock: monotonic time [ns].
        sleep: waits so many seconds; used in paced mode.
        progress: told the fraction done and a short message.
    """

    def unmet(visits: int) -> str:
        return _unmet_blocks(visits, protocol) or _unmet_interval(recorder, quantile, protocol)

    recorder = _Recorder(runner, protocol, clock, sleep)
    stop, interference = _sample((recorder,), (recorder,), protocol, unmet, clock, progress)
    return recorder.measurement(name, stop, interference)


def compare(
    a: Runner,
    b: Runner,
    names: tuple[str, str],
    protocol: Protocol,
    quantile: float = 0.5,
    *,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
    progress: Progress | None = None,
) -> Comparison:
    """Samples two engines in ABBA blocks of one window, so that drift hits both alike.

    The speed-up pairs, in each ABBA block, the log of a's block medians with that of b's: a drift that is
    linear over the block cancels. Medians, because a block is too short for a tail; the tail's own interval
    comes from the raw samples of the measurements.

    Args:
        a: the reference. The same runner may be given twice, to see the noise floor.
        b: the candidate, of which the outcome speaks.
        names: of the two measurements.
        protocol: how to sample; the time limit is for both together.
        quantile: the budget's quantile; sampling stops when b's interval and the speed-up's are inside the target.
        clock: monotonic time [ns].
        sleep: waits so many seconds; used in paced mode.
        progress: told the fraction done and a short message.

    Raises:
        EnvironmentMismatch: the engines may not be compared.
    """

    def unmet(visits: int) -> str:
        return (
            _unmet_blocks(visits, protocol)
            or _unmet_interval(second, quantile, protocol)
            or _unmet_width(_speedup(first, second, protocol), protocol, "the speed-up")
        )

    require_comparable(a.environment, b.environment)
    first, second = _Recorder(a, protocol, clock, sleep), _Recorder(b, protocol, clock, sleep)
    order = (first, second, second, first)
    stop, interference = _sample((first, second), order, protocol, unmet, clock, progress)
    speedup = _speedup(first, second, protocol)
    return Comparison(
        first.measurement(names[0], stop, interference),
        second.measurement(names[1], stop, interference),
        speedup,
        outcome(speedup, protocol.margin),
        protocol.margin,
    )


def outcome(speedup: Interval, margin: float) -> Outcome:
    """What an interval of the speed-up says: equivalent inside the margin, else faster or slower if it excludes 1."""
    if 1 / (1 + margin) <= speedup.low and speedup.high <= 1 + margin:
        return "equivalent"
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else "inconclusive"


class _Recorder:
    """Runs one engine and keeps what it took: the only mutable state of a measurement."""

    def __init__(self, runner: Runner, protocol: Protocol, clock: Clock, sleep: Sleep) -> None:
        self.environment = {**runner.environment, **moment(), "protocol": protocol.words}
        self.medians_ns: list[float] = []
        self._runner, self._clock, self._sleep = runner, clock, sleep
        self._block_ns = round(protocol.block_s * 1e9)
        self._warmup_ns = round(protocol.warmup_s * 1e9)
        self._period_ns = None if protocol.period_ms is None else round(protocol.period_ms * 1e6)
        self._samples: list[int] = []
        self._starts: list[int] = []
        self._blocks: list[int] = []

    def warm_up(self) -> None:
        end = self._clock() + self._warmup_ns
        while self._clock() < end:
            self._await_frame()
            self._runner.run()

    def block(self) -> None:
        """Runs one block: back to back for the block's length, at least once."""
        clock, run = self._clock, self._runner.run
        samples: list[int] = []
        end = clock() + self._block_ns
        while True:
            self._await_frame()
            start = clock()
            run()
            finish = clock()
            self._starts.append(start)
            samples.append(finish - start)
            if finish >= end:
                break
        self._blocks += [len(self.medians_ns)] * len(samples)
        self._samples += samples
        self.medians_ns.append(float(np.median(samples)))

    def _await_frame(self) -> None:
        """In paced mode, waits for the next frame of a camera that does not wait: a late engine skips frames."""
        if self._period_ns is not None:
            gap_ns = -self._clock() % self._period_ns
            if gap_ns:
                self._sleep(gap_ns / 1e9)

    @property
    def samples_ms(self) -> npt.NDArray[np.float64]:
        return np.asarray(self._samples, np.float64) / 1e6

    def measurement(self, name: str, stop: str, interference: float | None) -> Measurement:
        return Measurement(
            name,
            np.asarray(self._samples, np.int64),
            np.asarray(self._starts, np.int64),
            np.asarray(self._blocks, np.int64),
            self.environment,
            not trend(self.samples_ms),
            stop,
            interference,
        )


def _sample(
    recorders: Sequence[_Recorder],
    order: Sequence[_Recorder],
    protocol: Protocol,
    unmet: Callable[[int], str],
    clock: Clock,
    progress: Progress | None,
) -> tuple[str, float | None]:
    """Warms up, then visits `order` again and again, until nothing is unmet or time is up.

    What is unmet is asked at numbers of visits that grow geometrically, fixed before the first sample: looking
    after each block would stop on lucky intervals.

    Returns:
        Why it stopped, and involuntary context switches per second.
    """
    for recorder in recorders:
        recorder.warm_up()
    begin, switches = clock(), _involuntary_switches()
    limit_ns = round(protocol.limit_s * 1e9)
    visits, check = 0, protocol.min_blocks
    while True:
        for recorder in order:
            recorder.block()
        visits += 1
        elapsed_ns = clock() - begin
        late = elapsed_ns >= limit_ns
        if visits >= check or late:
            missing = unmet(visits)
            if progress is not None:
                progress(min(1.0, elapsed_ns / limit_ns) if missing else 1.0, missing or INSIDE)
            if not missing or late:
                break
            check = math.ceil(check * _GROWTH)
    after = _involuntary_switches()
    rate = None if switches is None or after is None else (after - switches) / max(elapsed_ns / 1e9, 1e-9)
    return (INSIDE if not missing else f"time limit of {protocol.limit_s:g} s: {missing}"), rate


def _unmet_blocks(visits: int, protocol: Protocol) -> str:
    return "" if visits >= protocol.min_blocks else f"{visits} blocks, {protocol.min_blocks} are needed"


def _unmet_interval(recorder: _Recorder, quantile: float, protocol: Protocol) -> str:
    """What keeps the quantile's interval from its target, in words; '' where nothing does."""
    label, floor = f"p{100 * quantile:g}", sample_floor(quantile, protocol.level)
    interval = quantile_interval(recorder.samples_ms, quantile, protocol.level)
    if interval.n < floor:
        return f"{label} is not supported by n: {interval.n} samples, {floor} are needed"
    if math.isinf(interval.high):
        return f"{label} is not supported by n: {interval.n} autocorrelated samples are worth fewer than {floor}"
    return _unmet_width(interval, protocol, label)


def _unmet_width(interval: Interval, protocol: Protocol, what: str) -> str:
    width = half_width(interval)
    if width <= protocol.target:
        return ""
    return f"the interval of {what} is ±{100 * width:.2g} %, the target is ±{100 * protocol.target:.2g} %"


def _speedup(first: _Recorder, second: _Recorder, protocol: Protocol) -> Interval:
    """The paired speed-up from the block medians, two of each engine per ABBA block."""
    a, b = (np.log(np.maximum(r.medians_ns, 1.0)).reshape(-1, 2).mean(axis=1) for r in (first, second))
    return paired_speedup(a - b, protocol.level)


def _involuntary_switches() -> int | None:
    """Times the system took the CPU from this process so far; None where the system does not count."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
