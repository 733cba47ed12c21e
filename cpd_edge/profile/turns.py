"""One network measured in turns with a reference: latency of the whole and of its regions, freed of drift."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx
from scipy.stats import trim_mean

from cpd_edge.errors import TableError
from cpd_edge.measure.site import Pace, Site, site_of
from cpd_edge.profile.attribution import Attribution, Kernel, Times
from cpd_edge.profile.table import Sample
from cpd_edge.types import Widths

SMALLER = 4
"""The reference is the network at this fraction of every width: the dense one would take the caches from the small
networks, and would itself find them taken."""
TURN_NS, LEAD = 5_000_000, 1
"""How long one turn lasts, at least one inference: shorter than the machine keeps a state of its own; inferences, at
least, that come before it and do not count: an engine is to be timed with the caches to itself."""
TURNS_S, HELD_OUT_S = 0.4, 0.9
"""How long a network and the reference take turns; a held-out one is what the table is judged by, and gets longer."""
WARM_NS = 60_000_000
"""How long a new engine runs before: it touches each input of its ring, and its memory, for the first time."""
PROFILED_S = 0.15
"""How long a network runs with the profiler."""
FEWEST, MOST = 4, 30
"""Turns of each, and inferences with the profiler, at least; and the latter at most."""
BLOCK = 16
"""What the reference's widths are rounded to."""
BATCHES, TRIMMED = 4, 0.1
"""Runs of turns that the noise is judged by; share of turns that is left out at either end."""
DISTURBED = 0.5
"""Involuntary context switches for each inference from which a sample is measured once more."""
ODD, NEAR, ALIKE = 0.06, 1.2, 3
"""So is one whose kernels and turns agree by so much less than those of networks of about its latency, up to such a
factor apart, so many of them at least: either met a slow machine."""


class Runner(Protocol):
    """An engine that is ready to run."""

    def run(self) -> object:
        """One inference."""

    def kernels(self, repeats: int) -> Sequence[Kernel]:
        """Times of every kernel in `repeats` inferences."""

    def close(self) -> None:
        """Frees the engine."""


MakeRunner = Callable[[bytes, bool], Runner]
"""`make_runner(model, profile)` gives a runner, with the runtime's profiler on if `profile`."""
Fusions = tuple[tuple[str, ...], ...]
"""Sets of regions that a runtime runs as one kernel."""


@dataclass(frozen=True)
class _Window:
    """A network and the reference in turns, and then the network with the profiler on.

    Attributes:
        ratios: latency of the network over that of the reference, by turn `[turns]`.
        reference_ms: median latency of the reference [ms].
        times: of the network's regions.
        switches: involuntary context switches during the turns.
        inferences: how many there were in the turns.
    """

    ratios: npt.NDArray[np.float64]
    reference_ms: float
    times: Times
    switches: float
    inferences: int

    @property
    def disturbed(self) -> bool:
        """Whether other work took the CPU too often."""
        return self.switches > DISTURBED * self.inferences

    def odd(self, before: Sequence[Sample]) -> float:
        """How far the share that kernels have of the whole is from that of networks of about its size.

        By the whole or by the kernels: where they disagree, either may be what it should be.
        """
        own_ms, total_ms = max(self.times.whole_ms, 1e-9), self.total_ms
        near = [s for s in before if _near(s.total_ms, total_ms) or _near(_kernels_ms(s), own_ms)]
        if len(near) < ALIKE:
            return 0.0
        usual = np.median([np.log(_kernels_ms(s) / s.total_ms) for s in near])
        return float(abs(np.log(own_ms / total_ms) - usual))

    @property
    def total_ms(self) -> float:
        """Typical ratio to the reference, at the pace of `reference_ms` [ms]."""
        return self.reference_ms * _typical(self.ratios)

    @property
    def noise(self) -> float:
        """Relative standard error of `total_ms`, from runs of turns: turns that follow each other are alike."""
        found = [_typical(batch) for batch in np.array_split(self.ratios, min(BATCHES, len(self.ratios)))]
        if len(found) < 2:
            return 0.0
        return float(np.std(found, ddof=1) / np.mean(found) / np.sqrt(len(found)))


def _near(a_ms: float, b_ms: float) -> bool:
    return 1 / NEAR < a_ms / b_ms < NEAR


def _kernels_ms(sample: Sample) -> float:
    return max(sum(sample.ms.values()) + sample.rest_ms, 1e-9)


def _typical(ratios: npt.NDArray[np.float64]) -> float:
    """Geometric mean of ratios without the outermost."""
    return float(np.exp(trim_mean(np.log(ratios), TRIMMED)))


class Bench:
    """Measures one network after another, each beside the reference, which stays open."""

    def __init__(
        self,
        build: Callable[[Widths], bytes],
        make_runner: MakeRunner,
        attribution: Attribution,
        groups: Mapping[str, int],
        repeats: int | None,
        clock: Callable[[], int],
    ) -> None:
        self._build, self._make_runner, self._attribution = build, make_runner, attribution
        self._groups, self._repeats, self._clock = groups, repeats, clock
        self._reference: Runner | None = None
        self.fused: Fusions | None = None

    def fuse(self, fused: Fusions) -> None:
        """Counts regions that are fused as one from here on."""
        self.fused = fused
        self._attribution = self._attribution.fused(fused)

    def measure(self, widths: Mapping[str, int], held_out: bool, before: Sequence[Sample] = ()) -> Sample:
        """Latency of a network and of its regions, beside the reference's; once more where it was disturbed.

        Args:
            widths: by group.
            held_out: it is measured longer.
            before: what was measured of other networks.

        Raises:
            TableError: the profiler's kernels belong to no region.
        """
        reference = self._reference = self._reference or self._opened()
        data = self._build(widths)
        runner = self._make_runner(data, False)
        try:
            seen = self._window(runner, reference, data, held_out)
            if seen.disturbed or seen.odd(before) > ODD:
                again = self._window(runner, reference, data, held_out)
                seen = min(seen, again, key=lambda window: (window.disturbed, window.odd(before)))
        finally:
            runner.close()
        times = seen.times
        if not sum(times.ms.values()) > 0:
            raise TableError(
                f"none of the profiled kernels belongs to a region: {times.unattributed_ms:.4g} ms are unattributed",
                hint="give the ONNX model that the regions were found in",
            )
        return Sample(
            widths=dict(widths), ms=times.ms, kernels=times.kernels,
            rest_ms=times.unattributed_ms + times.reformats_ms, total_ms=seen.total_ms,
            reference_ms=seen.reference_ms, held_out=held_out, reformats_ms=times.reformats_ms, noise=seen.noise,
        )  # fmt: skip

    def _opened(self) -> Runner:
        """The reference, warm."""
        runner = self._make_runner(self._build(reference_widths(self._groups)), False)
        if not self._repeats:
            self._site(runner).warm_up([runner], Pace(TURN_NS), WARM_NS)
        return runner

    def _site(self, *runners: Runner) -> Site:
        return site_of(runners, self._clock, time.sleep)

    def _window(self, runner: Runner, reference: Runner, data: bytes, held_out: bool) -> _Window:
        site = self._site(reference, runner)
        if self._repeats:
            pace, fewest, left_s, warm_ns = Pace(0), self._repeats, 0.0, 1
        else:
            pace, fewest, warm_ns = Pace(TURN_NS, lead=LEAD), FEWEST, WARM_NS
            left_s = HELD_OUT_S if held_out else TURNS_S
        site.warm_up([runner], pace, warm_ns)
        visits = [site.visit([reference, runner], pace, fewest, sys.maxsize)]
        left_ns = round(left_s * 1e9) - visits[0].elapsed_ns
        if left_ns > 0:
            visits.append(site.visit([reference, runner], pace, sys.maxsize, left_ns))
        blocks = [block.samples_ns for part in visits for block in part.blocks]
        theirs, ours = (np.asarray([np.median(ns) for ns in blocks[i::2]]) / 1e6 for i in (0, 1))
        once_ms = float(np.median(ours))
        repeats = self._repeats or int(np.clip(PROFILED_S * 1e3 / max(once_ms, 1e-3), FEWEST, MOST))
        counted = sum(map(sum, blocks)) / max(sum(part.elapsed_ns for part in visits), 1)
        switches = counted * sum(part.switches or 0 for part in visits)  # those of lead-ins do not count either
        return _Window(
            ours / theirs, float(np.median(theirs)), self._profiled(data, repeats), switches, sum(map(len, blocks))
        )

    def _profiled(self, data: bytes, repeats: int) -> Times:
        runner = self._make_runner(data, True)
        try:
            kernels = runner.kernels(repeats)
        finally:
            runner.close()
        if self.fused is None:  # the first network is the dense one
            self.fuse(self._adapted(data).spanned(kernels))
        return self._adapted(data).times(kernels)

    def _adapted(self, data: bytes) -> Attribution:
        here = self._attribution
        return here.adapted(onnx.load_from_string(data)) if here.nodes else here

    def close(self) -> None:
        """Closes the reference."""
        if self._reference is not None:
            self._reference.close()


def reference_widths(groups: Mapping[str, int]) -> dict[str, int]:
    """Widths of the reference: a fraction of every group's units, in blocks that runtimes have kernels for."""
    shares = {g: units // SMALLER for g, units in groups.items()}
    return {g: n // BLOCK * BLOCK if n >= BLOCK else max(n, 1) for g, n in shares.items()}
