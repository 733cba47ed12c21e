"""Sites: where engines run while they are timed. A whole visit is one call, so nothing travels between two inferences.

Here is this process. Another device is a site of its own (see `remote`): a loop over a network would time the network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import UsageError
from cpd_edge.measure.environment import moment

Clock = Callable[[], int]
Sleep = Callable[[float], None]


class Runner(Interface):
    """An engine that is ready to run: what a device must offer to be measured.

    One that runs on another device than this process has an attribute `site`, which times it.
    """

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where and how it runs."""

    def run(self) -> None:
        """One inference, finished when this returns."""

    def close(self) -> None:
        """Gives back what the engine holds."""


class Runs(Interface):
    """What can be run: the part of a runner that timing needs."""

    def run(self) -> object:
        """One inference, finished when this returns."""


LEAD_NS = (8_000_000, 100_000_000)
"""A lead-in lasts so long at least, and no inference of it begins after the second: what is slower fits no cache."""


@dataclass(frozen=True)
class Pace:
    """How inferences follow each other.

    Attributes:
        block_ns: length of a block, at least one inference.
        period_ns: one inference per period, or back to back.
        lead: inferences, at least, that come before a block and do not count where another engine ran before: that
            one has taken the caches, and an engine is to be timed as it runs alone.
    """

    block_ns: int
    period_ns: int | None = None
    lead: int = 0

    def leads(self, order: Sequence[object]) -> list[int]:
        """Lead-in of each block of a visit: none where the engine itself was the last to run."""
        return [self.lead * (engine is not order[i - 1]) for i, engine in enumerate(order)]


@dataclass(frozen=True)
class Block:
    """Latencies of one block and when each inference began, on the site's monotonic clock [ns]."""

    samples_ns: Sequence[int]
    starts_ns: Sequence[int]


@dataclass(frozen=True)
class Visits:
    """What a site did in one call.

    Attributes:
        blocks: one for each engine of the order, visit after visit.
        elapsed_ns: time since the visits before these, on the site's clock.
        switches: involuntary context switches meanwhile, or None where the system does not count.
    """

    blocks: tuple[Block, ...]
    elapsed_ns: int
    switches: int | None


class Site(Interface):
    """A place that times engines by itself."""

    def moment(self) -> Mapping[str, Any]:
        """The part of the environment that changes: pinned CPUs, load, time."""

    def warm_up(self, runners: Sequence[Runs], pace: Pace, warmup_ns: int) -> None:
        """Runs each engine for so long, untimed."""

    def visit(self, order: Sequence[Runs], pace: Pace, most: int, left_ns: int) -> Visits:
        """Runs one block of each engine of `order`, `most` times over; no visit begins after `left_ns`."""

    def times_ns(self, runner: Runs, repeats: int) -> npt.NDArray[np.int64]:
        """Latencies of so many inferences back to back `[repeats]` [ns]."""


class Here:
    """This process, on a clock that a simulated device may bring along.

    Args:
        clock: monotonic time [ns].
        sleep: waits so many seconds.
        moment: the part of the environment that changes.
        switches: involuntary context switches so far, or None where the system does not count.
    """

    def __init__(
        self,
        clock: Clock,
        sleep: Sleep,
        *,
        moment: Callable[[], Mapping[str, Any]] = moment,
        switches: Callable[[], int | None] | None = None,
    ) -> None:
        self._clock, self._sleep, self._moment = clock, sleep, moment
        self._switches = switches or involuntary_switches
        self._before = 0

    def moment(self) -> Mapping[str, Any]:
        """See `Site`."""
        return self._moment()

    def warm_up(self, runners: Sequence[Runs], pace: Pace, warmup_ns: int) -> None:
        """See `Site`. The time of the first visit counts from the end of this."""
        for runner in runners:
            end = self._clock() + warmup_ns
            while self._clock() < end:
                self._await_frame(pace)
                runner.run()
        self._before = self._clock()

    def visit(self, order: Sequence[Runs], pace: Pace, most: int, left_ns: int) -> Visits:
        """See `Site`."""
        blocks: list[Block] = []
        before, switches = self._before, self._switches()
        leads, elapsed_ns = pace.leads(order), 0
        for _ in range(most):
            blocks += [self._block(runner, pace, lead) for runner, lead in zip(order, leads, strict=True)]
            elapsed_ns = self._clock() - before
            if elapsed_ns >= left_ns:
                break
        self._before = before + elapsed_ns
        after = self._switches()
        return Visits(tuple(blocks), elapsed_ns, None if switches is None or after is None else after - switches)

    def times_ns(self, runner: Runs, repeats: int) -> npt.NDArray[np.int64]:
        """See `Site`."""
        out = np.empty(repeats, np.int64)
        for i in range(repeats):
            start = self._clock()
            runner.run()
            out[i] = self._clock() - start
        return out

    def _block(self, runner: Runs, pace: Pace, lead: int) -> Block:
        """One block: back to back for the block's length, at least once, after a lead-in."""
        clock, run = self._clock, runner.run
        samples: list[int] = []
        starts: list[int] = []
        if lead:
            self._lead_in(run, lead)
        end = clock() + pace.block_ns
        while True:
            self._await_frame(pace)
            start = clock()
            run()
            finish = clock()
            starts.append(start)
            samples.append(finish - start)
            if finish >= end:
                return Block(samples, starts)

    def _lead_in(self, run: Callable[[], object], lead: int) -> None:
        least_ns, most_ns = LEAD_NS
        begun, done, elapsed_ns = self._clock(), 0, 0
        while elapsed_ns < most_ns and (done < lead or elapsed_ns < least_ns):
            run()
            done, elapsed_ns = done + 1, self._clock() - begun

    def _await_frame(self, pace: Pace) -> None:
        """In paced mode, waits for the next frame of a camera that does not wait: a late engine skips frames."""
        if pace.period_ns is not None:
            gap_ns = -self._clock() % pace.period_ns
            if gap_ns:
                self._sleep(gap_ns / 1e9)


def site_of(runners: Sequence[Runs], clock: Clock, sleep: Sleep) -> Site:
    """The one site of these engines: this process, unless they say otherwise.

    Raises:
        UsageError: they run in different places, which no window holds together.
    """
    sites = [getattr(runner, "site", None) for runner in runners]
    if any(site != sites[0] for site in sites):
        raise UsageError(
            "the engines run on different devices, so their blocks cannot alternate",
            hint="open both with the same --device",
        )
    return sites[0] if sites[0] is not None else Here(clock, sleep)


def times_ms(runner: Runs, repeats: int, clock: Clock) -> npt.NDArray[np.float64]:
    """Latencies of `repeats` inferences back to back, timed where the engine runs `[repeats]` [ms]."""
    return site_of([runner], clock, lambda _: None).times_ns(runner, repeats) / 1e6


def involuntary_switches() -> int | None:
    """Times the system took the CPU from this process so far; None where the system does not count."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
