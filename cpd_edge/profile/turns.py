"""One network measured in turns with the dense one: latency of the whole and of its regions, freed of drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.errors import TableError
from cpd_edge.measure.site import involuntary_switches, times_ms
from cpd_edge.profile.regions import Attribution, Kernel, Times
from cpd_edge.profile.table import Sample
from cpd_edge.types import Widths

LOW_QUANTILE = 0.25
"""Quantile of repeats that stands for a latency: interference only ever adds time."""
SECONDS_PER_SAMPLE = 0.3
"""Time to spend running one sampled network, half of it with the profiler; at least `FEWEST` repeats each."""
FEWEST, MOST = 4, 60
TURNS, MOST_A_TURN = 4, 150
"""Turns that a sample and the dense network take, and most inferences of either in one."""
DISTURBED = 0.5
"""Involuntary context switches for each inference from which a sample is measured once more."""


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
    """One measurement of a network in turns with the dense one.

    Attributes:
        total, dense: latencies by turn [ms].
        switches: involuntary context switches meanwhile.
        inferences: how many were run.
    """

    total: tuple[npt.NDArray[np.float64], ...]
    dense: tuple[npt.NDArray[np.float64], ...]
    switches: int
    inferences: int

    @property
    def disturbed(self) -> bool:
        """Whether other work took the CPU too often."""
        return self.switches > DISTURBED * self.inferences

    @property
    def dense_ms(self) -> float:
        """Low quantile of the dense network's latency [ms]."""
        return float(np.quantile(np.concatenate(self.dense), LOW_QUANTILE))

    @property
    def total_ms(self) -> float:
        """Median ratio to the dense network in the same turn, at the pace of `dense_ms` [ms]."""
        return self.dense_ms * float(np.median(self._ratios))

    @property
    def noise(self) -> float:
        """How far the first and the last half of the window differ, relative to their mean."""
        first, last = float(np.mean(self._ratios[:2])), float(np.mean(self._ratios[2:]))
        return abs(first - last) * 2 / (first + last)

    @property
    def _ratios(self) -> list[float]:
        turns = zip(self.total, self.dense, strict=True)
        return [float(np.quantile(ours, LOW_QUANTILE) / np.quantile(theirs, LOW_QUANTILE)) for ours, theirs in turns]


class Bench:
    """Measures one network after another, each beside the dense one, which stays open."""

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
        self._dense: Runner | None = None
        self._dense_once_ms = 0.0
        self.fused: Fusions | None = None

    def fuse(self, fused: Fusions) -> None:
        """Counts regions that are fused as one from here on."""
        self.fused = fused
        self._attribution = self._attribution.fused(fused)

    def measure(self, widths: Mapping[str, int], held_out: bool) -> Sample:
        """Latency of a network and of its regions, beside the dense network's; once more where it was disturbed.

        Raises:
            TableError: the profiler's kernels belong to no region.
        """
        if self._dense is None:
            self._dense = self._make_runner(self._build(self._groups), False)
            self._time_ms(self._dense, 1)
            self._dense_once_ms = float(self._time_ms(self._dense, 1).min())
        data = self._build(widths)
        runner = self._make_runner(data, False)
        try:
            self._time_ms(runner, 1)
            once_ms = float(self._time_ms(runner, 1).min())
            seen, times = self._window(runner, self._dense, data, once_ms)
            if seen.disturbed:
                again, later = self._window(runner, self._dense, data, once_ms)
                seen, times = (again, later) if again.switches < seen.switches else (seen, times)
        finally:
            runner.close()
        if not sum(times.ms.values()) > 0:
            raise TableError(
                f"none of the profiled kernels belongs to a region: {times.unattributed_ms:.4g} ms are unattributed",
                hint="give the ONNX model that the regions were found in",
            )
        return Sample(
            widths=dict(widths), ms=times.ms, kernels=times.kernels,
            rest_ms=times.unattributed_ms + times.reformats_ms, total_ms=seen.total_ms,
            dense_ms=seen.dense_ms, held_out=held_out, reformats_ms=times.reformats_ms, noise=seen.noise,
        )  # fmt: skip

    def _window(self, runner: Runner, dense: Runner, data: bytes, once_ms: float) -> tuple[_Window, Times]:
        """The network and the dense one in turns, with a profile of the network in their middle."""
        repeats = self._repeats or self._affordable(once_ms)
        part, few = (self._a_turn(ms) for ms in (once_ms, self._dense_once_ms))
        before = involuntary_switches()
        ours, theirs = [], []
        times: Times | None = None
        for turn in range(TURNS):
            if turn == TURNS // 2:
                times = self._profiled(data, repeats)
            theirs.append(self._time_ms(dense, few))
            ours.append(self._time_ms(runner, part))
        assert times is not None
        after = involuntary_switches()
        switches = 0 if before is None or after is None else after - before
        return _Window(tuple(ours), tuple(theirs), switches, TURNS * (few + part) + repeats), times

    def _profiled(self, data: bytes, repeats: int) -> Times:
        runner = self._make_runner(data, True)
        try:
            kernels = runner.kernels(repeats)
        finally:
            runner.close()
        if self.fused is None:  # the first network is the dense one
            self.fuse(self._adapted(data).spanned(kernels))
        return self._adapted(data).times(kernels, LOW_QUANTILE)

    def _adapted(self, data: bytes) -> Attribution:
        here = self._attribution
        return here.adapted(onnx.load_from_string(data)) if here.nodes else here

    def close(self) -> None:
        """Closes the dense network."""
        if self._dense is not None:
            self._dense.close()

    def _time_ms(self, runner: Runner, repeats: int) -> npt.NDArray[np.float64]:
        return times_ms(runner, repeats, self._clock)

    def _affordable(self, once_ms: float) -> int:
        return int(np.clip(SECONDS_PER_SAMPLE / 2 * 1e3 / max(once_ms, 1e-3), FEWEST, MOST))

    def _a_turn(self, once_ms: float) -> int:
        """How many inferences a turn holds, of a network that takes so long."""
        if self._repeats:
            return -(-self._repeats // TURNS)
        return int(np.clip(SECONDS_PER_SAMPLE / 2 / TURNS * 1e3 / max(once_ms, 1e-3), 1, MOST_A_TURN))
