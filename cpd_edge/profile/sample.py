"""Measuring a table: whole networks at sampled widths, each in the deployment runtime with its profiler on.

FOLDER/
samples.jsonl   a header with the key, then one line a finished sample, so that an interruption loses one
table.json      the finished table
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.errors import CpdError, TableError
from cpd_edge.measure.site import involuntary_switches, times_ms
from cpd_edge.profile import isolated
from cpd_edge.profile.library import Library
from cpd_edge.profile.regions import Attribution, Kernel, Times
from cpd_edge.profile.table import ENOUGH, FORMAT, LatencyTable, Sample
from cpd_edge.store import held, plain, write_text
from cpd_edge.types import Region, Widths

LOW_QUANTILE = 0.25
"""Quantile of repeats that stands for a latency: interference only ever adds time."""
SECONDS_PER_SAMPLE = 0.3
"""Time to spend running one sampled network, half of it with the profiler; at least `FEWEST` repeats each."""
FEWEST, MOST = 4, 60
TURNS, MOST_A_TURN = 4, 150
"""Turns that a sample and the dense network take, and most inferences of either in one."""
DISTURBED = 0.5
"""Involuntary context switches for each inference from which a sample is measured once more."""
LIMIT_S, DENSE_RUNS = 40.0, 250
"""Sampling ends after so long and as many dense inferences more, but not before the first check."""
FIRST_CHECK, CHECK_EVERY = ENOUGH, 8
KNOWN_CHECK, MOSTLY = 12, 0.8
"""The first look at held-out errors where this share of the work is known from other networks."""
LEFT_OUT = 0.15
"""Share of branches that a held-out plan lacks."""
TARGET_MEDIAN, TARGET_P90 = 0.02, 0.05
"""Sampling ends early once held-out errors are inside both."""


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
Progress = Callable[[float, str], None]
Fusions = tuple[tuple[str, ...], ...]
"""Sets of regions that a runtime runs as one kernel."""


@dataclass(frozen=True)
class Draw:
    """Widths to measure, and whether the fit may see them."""

    widths: Mapping[str, int]
    held_out: bool


def draws(
    groups: Mapping[str, int], samples: int, holdout: int, seed: int, first_check: int = FIRST_CHECK
) -> tuple[Draw, ...]:
    """What to measure, in order: the dense and the smallest network, then fit samples with held-out ones between.

    Fit samples are a Latin hypercube, so every group visits every part of its range; most widths are
    rounded to a multiple of 16, 8 or 4. Held-out ones are plans: one share for the network, spread over groups, some
    branches (groups of one unit) left out; what is fitted has all of them.
    """
    rng = np.random.default_rng(seed)
    strata = max(samples - 2, 1)
    share = {g: (rng.permutation(strata) + rng.uniform(size=strata)) / strata for g in groups}
    fit = [Draw({g: _rounded(n, float(share[g][i]), rng) for g, n in groups.items()}, False) for i in range(strata)]
    plans = []
    for _ in range(holdout):
        level = rng.uniform(0.25, 0.95)
        spread = {g: float(np.clip(level + rng.normal(0, 0.15), 0.05, 1)) for g in groups}
        widths = {g: _rounded(n, spread[g], rng) for g, n in groups.items()}
        plans.append(Draw(widths | {g: int(rng.uniform() > LEFT_OUT) for g, n in groups.items() if n == 1}, True))
    mixed: list[Draw] = []
    early = max(first_check - 2, 1)
    for i, draw in enumerate(fit):
        mixed.append(draw)
        while plans and (i + 1) * holdout >= (holdout - len(plans) + 1) * min(early, strata):
            mixed.append(plans.pop(0))
    ends = [Draw(dict(groups), False), Draw(dict.fromkeys(groups, 1), False)]
    return (*ends[: max(samples, 1)], *(mixed if samples > 2 else []), *plans)


def _rounded(units: int, share: float, rng: np.random.Generator) -> int:
    """A width near `share` of the units: mostly a multiple of 16, 8 or 4, where the group has several of them."""
    width = share * units
    step = int(rng.choice([1, 4, 8, 16], p=[0.15, 0.2, 0.25, 0.4]))
    if units >= 2 * step:
        width = round(width / step) * step
    return int(np.clip(round(width), 1, units))


def profile(
    build: Callable[[Widths], bytes],
    regions: Sequence[Region],
    groups: Mapping[str, int],
    make_runner: MakeRunner,
    key: Mapping[str, Any],
    *,
    model: onnx.ModelProto | None = None,
    samples: int = 48,
    holdout: int = 10,
    seed: int = 0,
    folder: Path | None = None,
    repeats: int | None = None,
    isolated_seconds: float = 0.0,
    fresh: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> LatencyTable:
    """Measures a latency table, or returns the one in `folder` whose key matches.

    What the tables beside `folder` say of the same layers is taken in. Processes that want the same table measure it
    once: the others wait for it.

    Args:
        build: the model file of the network at some widths.
        regions: the network's regions.
        groups: units by group.
        make_runner: opens a model file in the deployment runtime.
        key: environment and model signature that the numbers belong to.
        model: the dense ONNX that the regions were found in, for the names that runtimes call kernels after.
        samples: networks to fit on, at most; fewer where held-out errors are small.
        holdout: networks kept out of the fit.
        seed: of the sampled widths.
        folder: where samples and the table are kept; nothing is kept without it.
        repeats: inferences a network, each with and without the profiler; None: as many as 0.3 s hold.
        isolated_seconds: time for the baseline of regions timed alone; 0 leaves it out.
        fresh: measure it all again, whatever is kept in `folder`.
        progress: gets a fraction and a message.
        clock: monotonic clock [ns].

    Raises:
        TableError: no region is measured by the runtime's profiler.
    """
    tell = progress or (lambda fraction, text: None)
    measured = partial(
        _measured, build, regions, groups, make_runner, dict(plain(key)), model=model, samples=samples,  # type: ignore[call-overload]
        holdout=holdout, seed=seed, folder=folder, repeats=repeats, isolated_seconds=isolated_seconds, tell=tell,
        clock=clock,
    )  # fmt: skip
    if folder is None:
        return measured()
    with held(folder, lambda: tell(0.0, "another process measures this table: waiting for it")):
        if fresh:
            for name in ("table.json", "samples.jsonl"):
                (folder / name).unlink(missing_ok=True)
        return reusable(folder, key, groups, regions) or measured()


def _measured(
    build: Callable[[Widths], bytes],
    regions: Sequence[Region],
    groups: Mapping[str, int],
    make_runner: MakeRunner,
    key: Mapping[str, Any],
    *,
    model: onnx.ModelProto | None,
    samples: int,
    holdout: int,
    seed: int,
    folder: Path | None,
    repeats: int | None,
    isolated_seconds: float,
    tell: Progress,
    clock: Callable[[], int],
) -> LatencyTable:
    begun = started = time.perf_counter()
    library = Library.beside(folder, key) if folder is not None else Library()
    fitted = partial(LatencyTable.fitted, key, groups, regions, elsewhere=library.known)
    first = KNOWN_CHECK if library.share(regions) >= MOSTLY else FIRST_CHECK
    todo = draws(groups, samples, holdout, seed, first)
    header = {"format": FORMAT, "key": key, "groups": dict(groups), "seed": seed}
    header |= {"samples": samples, "holdout": holdout, "first_check": first}
    log = _Log(folder, header)
    bench = _Bench(build, make_runner, Attribution.of(regions, model), dict(groups), repeats, clock)
    table, before_s, current = None, log.seconds, ""
    try:
        if log.samples:
            bench.fuse(log.fused)
        for i, draw in enumerate(todo):
            if i >= len(log.samples):
                sample = bench.measure(draw)
                log.append(sample, time.perf_counter() - started, bench.fused or ())
                started = time.perf_counter()
            tell((i + 1) / len(todo), f"sample {i + 1} of at most {len(todo)}{current}")
            seen = log.samples[: i + 1]
            if _late(seen, log.seconds, holdout):
                break
            if i + 1 < len(todo) and _check_now(seen, holdout, first):
                table = fitted(seen, log.seconds, log.fused)
                if _good(table):
                    break
                current = f", held-out error {table.report()['holdout_median_error']:.1%} so far"
                table = None
        table = table or fitted(log.samples[: len(todo)], log.seconds, log.fused)
    finally:
        bench.close()
    if isolated_seconds > 0:
        predicted = isolated.predict(
            build, Attribution.of(regions, model), table.samples, make_runner, seconds=isolated_seconds, clock=clock
        )
        table = table.with_isolated(predicted)
    table = replace(table, seconds=before_s + time.perf_counter() - begun)
    if folder is not None:
        table.save(folder / "table.json")
    return table


def _check_now(samples: Sequence[Sample], holdout: int, first: int) -> bool:
    """Whether the held-out errors are due for a look: all are measured, and the fit has grown by a step."""
    fit = sum(not s.held_out for s in samples)
    due = fit >= first and (fit - first) % CHECK_EVERY == 0
    return due and 0 < holdout == len(samples) - fit


def _late(samples: Sequence[Sample], seconds: float, holdout: int) -> bool:
    """Whether sampling took its time: the slower the network, the more it gets, and the fewer samples."""
    fit = sum(not s.held_out for s in samples)
    return (
        fit >= FIRST_CHECK
        and len(samples) - fit == holdout
        and seconds > LIMIT_S + DENSE_RUNS * samples[-1].dense_ms / 1e3
    )


def _good(table: LatencyTable) -> bool:
    report = table.report()
    return bool(report["holdout_median_error"] <= TARGET_MEDIAN and report["holdout_p90_error"] <= TARGET_P90)


def reusable(
    folder: Path, key: Mapping[str, Any], groups: Mapping[str, int], regions: Sequence[Region]
) -> LatencyTable | None:
    """The table in a folder, if it was measured for this key, these groups and these regions."""
    try:
        found = LatencyTable.load(folder / "table.json")
    except CpdError:
        return None
    same = found.key == plain(key) and found.groups == dict(groups) and found.regions == tuple(regions)
    return found if same else None


class _Log:
    """Finished samples, kept in a file that is appended to; a torn last line is dropped.

    A file whose header differs belongs to another key and is begun anew. What was fused in the dense network, which is
    the first sample, is kept: a runtime may fuse differently when it builds that again.
    """

    def __init__(self, folder: Path | None, header: Mapping[str, Any]) -> None:
        self.path = None if folder is None else folder / "samples.jsonl"
        self.samples: list[Sample] = []
        self.seconds = 0.0
        self.fused: Fusions = ()
        if self.path is None:
            return
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if not whole or json.loads(whole[0]) != header:
            whole = [json.dumps(header) + "\n"]
        if whole != lines:
            write_text(self.path, "".join(whole))
        for line in whole[1:]:
            data = json.loads(line)
            self.fused = tuple(tuple(names) for names in data.pop("fused"))
            self.seconds += data.pop("seconds")
            self.samples.append(Sample(**data))

    def append(self, sample: Sample, seconds: float, fused: Fusions) -> None:
        """Adds a finished sample and what is fused in all of them, on disk before this returns."""
        self.samples.append(sample)
        self.seconds, self.fused = self.seconds + seconds, fused
        if self.path is None:
            return
        line = json.dumps({**dict(plain(sample)), "seconds": seconds, "fused": fused}) + "\n"  # type: ignore[call-overload]
        with self.path.open("a") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())


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


class _Bench:
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

    def measure(self, draw: Draw) -> Sample:
        """Latency of a network and of its regions, beside the dense network's; once more where it was disturbed.

        Raises:
            TableError: the profiler's kernels belong to no region.
        """
        if self._dense is None:
            self._dense = self._make_runner(self._build(self._groups), False)
            self._time_ms(self._dense, 1)
            self._dense_once_ms = float(self._time_ms(self._dense, 1).min())
        data = self._build(draw.widths)
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
            widths=dict(draw.widths), ms=times.ms, kernels=times.kernels,
            rest_ms=times.unattributed_ms + times.reformats_ms, total_ms=seen.total_ms,
            dense_ms=seen.dense_ms, held_out=draw.held_out, reformats_ms=times.reformats_ms, noise=seen.noise,
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
