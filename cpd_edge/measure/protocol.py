"""The measuring protocol: warm-up, blocks, a stop rule fixed beforehand, ABBA comparison, paced mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import UsageError
from cpd_edge.measure.environment import require_comparable
from cpd_edge.measure.site import Block, Clock, Pace, Runner, Site, Sleep, site_of
from cpd_edge.measure.stats import half_width, paired_speedup, quantile_interval, sample_floor, trend
from cpd_edge.types import Comparison, Interval, Measurement

INSIDE = "interval inside target"
"""The stop reason of a measurement that met its target; any other names the condition that was not met."""

Progress = Callable[[float, str], None]
Outcome = Literal["faster", "slower", "equivalent", "inconclusive"]

_GROWTH = 1.4
_LEAD = 3
"""Inferences until an engine's memory is back in the caches: on a CPU the first one may take a quarter longer."""


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
        least_s: shortest time of sampling, whatever the interval [s].
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
    least_s: float = 0.0
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
        for name in ("warmup_s", "block_s", "target", "limit_s", "least_s", "margin", "min_blocks", "period_ms"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} of {value}: it must be 0 or more")
        if self.least_s > self.limit_s:
            raise UsageError(f"at least {self.least_s:g} s of sampling within {self.limit_s:g} s", hint="raise limit_s")
        if self.period_ms == 0 or self.limit_s == 0 or self.min_blocks < 1:
            raise UsageError("a protocol needs a period and a time limit above 0, and at least one block")

    @property
    def words(self) -> str:
        """The protocol in words, as it goes into the environment."""
        pace = self.mode if self.period_ms is None else f"paced every {self.period_ms:g} ms"
        lead = "" if self.mode == "paced" else f", lead-in of {_LEAD} inferences after another engine"
        return f"{pace}, blocks of {self.block_s:g} s{lead}, warm-up {self.warmup_s:g} s"

    @property
    def pace(self) -> Pace:
        """How inferences follow each other, in whole nanoseconds."""
        block_ns = round(self.block_s * 1e9)
        if self.period_ms is None:
            return Pace(block_ns, lead=_LEAD)
        return Pace(block_ns, round(self.period_ms * 1e6))


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

    site = site_of([runner], clock, sleep)
    recorder = _Recorder(runner, protocol, site)
    stop, interference = _sample(site, (recorder,), (recorder,), protocol, unmet, progress)
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
    across: Collection[str] = (),
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
        across: keys of the environment that may differ, because their effect is what is asked for.

    Raises:
        EnvironmentMismatch: the engines may not be compared.
        UsageError: they run on different devices.
    """

    def unmet(visits: int) -> str:
        return (
            _unmet_blocks(visits, protocol)
            or _unmet_interval(second, quantile, protocol)
            or _unmet_width(_speedup(first, second, protocol), protocol, "the speed-up")
        )

    require_comparable(a.environment, b.environment, across)
    site = site_of([a, b], clock, sleep)
    first, second = _Recorder(a, protocol, site), _Recorder(b, protocol, site)
    order = (first, second, second, first)
    stop, interference = _sample(site, (first, second), order, protocol, unmet, progress)
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
    """Keeps what one engine took: the only mutable state of a measurement."""

    def __init__(self, runner: Runner, protocol: Protocol, site: Site) -> None:
        self.runner = runner
        self.environment = {**runner.environment, **site.moment(), "protocol": protocol.words}
        self.medians_ns: list[float] = []
        self._samples: list[int] = []
        self._starts: list[int] = []
        self._blocks: list[int] = []

    def keep(self, block: Block) -> None:
        self._blocks += [len(self.medians_ns)] * len(block.samples_ns)
        self._samples += block.samples_ns
        self._starts += block.starts_ns
        self.medians_ns.append(float(np.median(block.samples_ns)))

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
    site: Site,
    recorders: Sequence[_Recorder],
    order: Sequence[_Recorder],
    protocol: Protocol,
    unmet: Callable[[int], str],
    progress: Progress | None,
) -> tuple[str, float | None]:
    """Warms up, then visits `order` again and again, until nothing is unmet or time is up.

    What is unmet is asked at numbers of visits that grow geometrically, fixed before the first sample: looking
    after each block would stop on lucky intervals. The site makes all visits up to the next look by itself.

    Returns:
        Why it stopped, and involuntary context switches per second.
    """
    pace, limit_ns = protocol.pace, round(protocol.limit_s * 1e9)
    site.warm_up([r.runner for r in reversed(recorders)], pace, round(protocol.warmup_s * 1e9))
    visits, check, elapsed_ns = 0, protocol.min_blocks, 0
    switches: int | None = 0
    while True:
        done = site.visit([r.runner for r in order], pace, check - visits, limit_ns - elapsed_ns)
        for i, block in enumerate(done.blocks):
            order[i % len(order)].keep(block)
        visits += len(done.blocks) // len(order)
        elapsed_ns += done.elapsed_ns
        switches = None if switches is None or done.switches is None else switches + done.switches
        missing, late = unmet(visits) or _unmet_time(elapsed_ns, protocol), elapsed_ns >= limit_ns
        if progress is not None:
            progress(min(1.0, elapsed_ns / limit_ns) if missing else 1.0, missing or INSIDE)
        if not missing or late:
            break
        check = math.ceil(check * _GROWTH)
    rate = None if switches is None else switches / max(elapsed_ns / 1e9, 1e-9)
    return (INSIDE if not missing else f"time limit of {protocol.limit_s:g} s: {missing}"), rate


def _unmet_time(elapsed_ns: int, protocol: Protocol) -> str:
    seconds = elapsed_ns / 1e9
    return "" if seconds >= protocol.least_s else f"{seconds:.1f} s are sampled, {protocol.least_s:g} s are needed"


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


__all__ = [
    "INSIDE", "Clock", "Outcome", "Progress", "Protocol", "Runner", "Sleep", "compare", "measure", "outcome",
]  # fmt: skip
