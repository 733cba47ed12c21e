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
from typing import Any

import numpy as np
import onnx

from cpd_edge.errors import CpdError
from cpd_edge.profile import isolated
from cpd_edge.profile.library import Library
from cpd_edge.profile.regions import Attribution
from cpd_edge.profile.table import ENOUGH, FORMAT, LatencyTable, Sample
from cpd_edge.profile.turns import Bench, Fusions, MakeRunner
from cpd_edge.store import held, plain, write_text
from cpd_edge.types import Region, Widths

LIMIT_S, REGION_S, DENSE_RUNS = 20.0, 1.25, 250
"""Sampling ends after so long, so long for each region, and so many dense inferences; not before the first check."""
FIRST_CHECK, CHECK_GROWTH = ENOUGH, 1.5
"""Held-out errors are looked at with so many samples, and each time that they have grown by this factor."""
KNOWN_CHECK, MOSTLY = 12, 0.8
"""The first look at held-out errors where this share of the work is known from other networks."""
FIT_STEPS = {1: 0.35, 4: 0.2, 8: 0.15, 16: 0.3}
PLAN_STEPS = {1: 0.15, 4: 0.2, 8: 0.25, 16: 0.4}
"""What widths are rounded to, and how often. A width that fits no block of the hardware costs most, and what it costs
is seen at such widths alone: the fit gets more of them than plans have."""
LEFT_OUT = 0.15
"""Share of branches that a held-out plan lacks."""
TARGET_MEDIAN, TARGET_P90 = 0.02, 0.05
"""Sampling ends early once held-out errors are inside both."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Draw:
    """Widths to measure, and whether the fit may see them."""

    widths: Mapping[str, int]
    held_out: bool


def draws(
    groups: Mapping[str, int], samples: int, holdout: int, seed: int, first_check: int = FIRST_CHECK
) -> tuple[Draw, ...]:
    """What to measure, in order: the dense and the smallest network, then fit samples with held-out ones between.

    Fit samples are a Latin hypercube, so every group visits every part of its range. Held-out ones are plans: one share
    for the network, spread over groups, some branches (groups of one unit) left out; what is fitted has all of them.
    """
    rng = np.random.default_rng(seed)
    strata = max(samples - 2, 1)
    share = {g: (rng.permutation(strata) + rng.uniform(size=strata)) / strata for g in groups}
    fit = [
        Draw({g: _rounded(n, float(share[g][i]), rng, FIT_STEPS) for g, n in groups.items()}, False)
        for i in range(strata)
    ]
    plans = []
    for _ in range(holdout):
        level = rng.uniform(0.25, 0.95)
        spread = {g: float(np.clip(level + rng.normal(0, 0.15), 0.05, 1)) for g in groups}
        widths = {g: _rounded(n, spread[g], rng, PLAN_STEPS) for g, n in groups.items()}
        plans.append(Draw(widths | {g: int(rng.uniform() > LEFT_OUT) for g, n in groups.items() if n == 1}, True))
    mixed: list[Draw] = []
    early = max(first_check - 2, 1)
    for i, draw in enumerate(fit):
        mixed.append(draw)
        while plans and (i + 1) * holdout >= (holdout - len(plans) + 1) * min(early, strata):
            mixed.append(plans.pop(0))
    ends = [Draw(dict(groups), False), Draw(dict.fromkeys(groups, 1), False)]
    return (*ends[: max(samples, 1)], *(mixed if samples > 2 else []), *plans)


def _rounded(units: int, share: float, rng: np.random.Generator, steps: Mapping[int, float]) -> int:
    """A width near `share` of the units, rounded to one of the steps where the group has several of them."""
    width = share * units
    step = int(rng.choice(list(steps), p=list(steps.values())))
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
    samples: int = 96,
    holdout: int | None = None,
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
        holdout: networks kept out of the fit; None: one for five samples, 4 to 10.
        seed: of the sampled widths.
        folder: where samples and the table are kept; nothing is kept without it.
        repeats: turns of a network and inferences with the profiler; None: as many as its time holds.
        isolated_seconds: time for the baseline of regions timed alone; 0 leaves it out.
        fresh: measure it all again, whatever is kept in `folder`.
        progress: gets a fraction and a message.
        clock: monotonic clock [ns].

    Raises:
        TableError: no region is measured by the runtime's profiler.
    """
    tell = progress or (lambda fraction, text: None)
    holdout = min(max(4, round(samples / 5)), 10) if holdout is None else holdout
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
    bench = Bench(build, make_runner, Attribution.of(regions, model), dict(groups), repeats, clock)
    table, before_s, current = None, log.seconds, ""
    try:
        if log.samples:
            bench.fuse(log.fused)
        for i, draw in enumerate(todo):
            if i >= len(log.samples):
                sample = bench.measure(draw.widths, draw.held_out)
                log.append(sample, time.perf_counter() - started, bench.fused or ())
                started = time.perf_counter()
            seen = log.samples[: i + 1]
            if len(seen) == len(log.samples):
                left = _seconds_left(seen, log.seconds, min(len(todo), FIRST_CHECK + holdout), len(todo))
                tell((i + 1) / len(todo), f"sample {i + 1} of at most {len(todo)}, about {left:.0f} s left{current}")
            if _late(seen, log.seconds, holdout):
                break
            if i + 1 < len(todo) and _check_now(seen, holdout, first):
                table = fitted(seen, log.seconds, log.fused)
                if _good(table):
                    break
                current = f", held-out error {table.report()['holdout_median_error']:.1%}"
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
    due = first
    while due < fit:
        due = round(CHECK_GROWTH * due)
    return due == fit and 0 < holdout == len(samples) - fit


def _late(samples: Sequence[Sample], seconds: float, holdout: int) -> bool:
    """Whether sampling took its time: the more regions and the slower the network, the more it gets."""
    fit = sum(not s.held_out for s in samples)
    return fit >= FIRST_CHECK and len(samples) - fit == holdout and seconds > _limit_s(samples)


def _limit_s(samples: Sequence[Sample]) -> float:
    return LIMIT_S + REGION_S * len(samples[-1].ms) + DENSE_RUNS * samples[0].total_ms / 1e3


def _seconds_left(samples: Sequence[Sample], seconds: float, fewest: int, most: int) -> float:
    """How long sampling goes on, at the pace that it had, where no look at the errors ends it."""
    pace = seconds / len(samples)
    return max(pace * (fewest - len(samples)), min(pace * (most - len(samples)), _limit_s(samples) - seconds), 0.0)


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
