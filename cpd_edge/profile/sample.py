"""Measuring a table: whole networks at sampled widths, each in the deployment runtime with its profiler on.

FOLDER/
samples.jsonl   a header with the key, then one line a finished sample, so that an interruption loses one
table.json      the finished table
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from cpd_edge.errors import CpdError
from cpd_edge.profile import isolated
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.draws import Draw, Looks, draws, further
from cpd_edge.profile.library import Library
from cpd_edge.profile.table import ENOUGH, FORMAT, LatencyTable, Sample
from cpd_edge.profile.turns import Bench, Fusions, MakeRunner
from cpd_edge.store import held, plain, write_text, writing
from cpd_edge.types import Region, Widths

LIMIT_S, REGION_S, DENSE_RUNS, FEWEST = 45.0, 0.15, 120, 16
"""Sampling ends after so long, so long for each region, and so many dense inferences; with so many fit samples."""
FIRST_CHECK, CHECK_GROWTH = ENOUGH, 1.5
"""Held-out errors are looked at with so many samples, and each time that they have grown by this factor."""
KNOWN_CHECK, MOSTLY = 12, 0.8
"""The first look at held-out errors where this share of the work is known from other networks."""
TARGET_MEDIAN, TARGET_P90 = 0.02, 0.05
"""Sampling ends early once held-out errors are inside both."""

Progress = Callable[[float, str], None]


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
    looks: Looks | None = None,
    progress: Progress | None = None,
    starting: Callable[[], object] = lambda: None,
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
        looks: plans that a solver finds on a table, to be measured among the next.
        progress: gets a fraction and a message.
        starting: called before anything is measured; not where a table is there, or another process made it meanwhile.
        clock: monotonic clock [ns].

    Raises:
        TableError: no region is measured by the runtime's profiler.
    """
    tell = progress or (lambda fraction, text: None)
    holdout = min(max(4, round(samples / 5)), 10) if holdout is None else holdout
    measured = partial(
        _measured, build, regions, groups, make_runner, plain(key), model=model, samples=samples,
        holdout=holdout, seed=seed, folder=folder, repeats=repeats, isolated_seconds=isolated_seconds, looks=looks,
        tell=tell, starting=starting, clock=clock,
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
    looks: Looks | None,
    tell: Progress,
    starting: Callable[[], object],
    clock: Callable[[], int],
) -> LatencyTable:
    starting()
    begun = started = time.perf_counter()
    library = Library.beside(folder, key) if folder is not None else Library()
    header = {"format": FORMAT, "key": key, "groups": dict(groups), "seed": seed, "samples": samples}
    log = _Log(folder, {**header, "holdout": holdout}, KNOWN_CHECK if library.share(regions) >= MOSTLY else FIRST_CHECK)
    course = _Course(
        todo=[*draws(groups, min(log.first_check, samples), holdout, seed)],
        log=log,
        fitted=partial(LatencyTable.fitted, key, groups, regions, elsewhere=library.known),
        further=partial(further, seed=seed, looks=looks),
        holdout=holdout,
        most=samples + holdout,
    )
    bench = Bench(build, make_runner, Attribution.of(regions, model), dict(groups), repeats, clock)
    before_s = log.seconds
    try:
        if log.samples:
            bench.fuse(log.fused)
        for i, draw in enumerate(course):
            if i >= len(log.samples):
                sample = bench.measure(draw.widths, draw.held_out, log.samples)
                log.append(sample, time.perf_counter() - started, bench.fused or ())
                started = time.perf_counter()
            if i + 1 == len(log.samples):
                tell((i + 1) / course.most, course.words)
    finally:
        bench.close()
    table = course.table
    assert table is not None
    if folder is not None:
        table.save(folder / "table.json")
    if isolated_seconds > 0:
        predicted = isolated.predict(
            build, Attribution.of(regions, model), table.samples, make_runner, seconds=isolated_seconds, clock=clock
        )
        table = table.with_isolated(predicted)
    table = replace(table, seconds=before_s + time.perf_counter() - begun)
    if folder is not None:
        table.save(folder / "table.json")
    return table


@dataclass
class _Course:
    """What is measured, one network after the other, until the table is good, or time or networks run out.

    It hangs on the samples alone, so one that was interrupted is taken up where it was.

    Attributes:
        todo: what is known to be measured, in order.
        log: the samples so far; each network that is given must be there before the next is asked for.
        fitted: the table of some samples, the seconds that they took and what is fused.
        further: given a table and how many, what to measure next.
        holdout: how many networks are held out.
        most: networks at most.
        table: of the samples at the last look; in the end, of all.
        error: its held-out median error.
    """

    todo: list[Draw]
    log: _Log
    fitted: Callable[[Sequence[Sample], float, Fusions], LatencyTable]
    further: Callable[[LatencyTable, int], Sequence[Draw]]
    holdout: int
    most: int
    table: LatencyTable | None = None
    error: float | None = None

    def __iter__(self) -> Iterator[Draw]:
        done = 0
        while True:
            for draw in self.todo[done:]:
                yield draw
                done += 1
                if _late(self.log.samples[:done], sum(self.log.took[:done])):
                    break
            samples, seconds = self.log.samples[:done], sum(self.log.took[:done])
            self.table = self.fitted(samples, seconds, self.log.fused)
            more = min(round((CHECK_GROWTH - 1) * (done - self.holdout)), self.most - done)
            if more < 1 or _good(self.table) or _late(samples, seconds):
                return
            self.error = self.table.report()["holdout_median_error"]
            self.todo += self.further(self.table, more)

    @property
    def words(self) -> str:
        """Where it is, how long it still takes at most, and how well the table told at the last look."""
        done = len(self.log.samples)
        left = _seconds_left(self.log.samples, self.log.seconds, len(self.todo), self.most)
        current = "" if self.error is None else f", held-out error {self.error:.1%}"
        return f"sample {done} of at most {self.most}, about {left:.0f} s left{current}"


def _late(samples: Sequence[Sample], seconds: float) -> bool:
    """Whether sampling took its time: the more regions and the slower the network, the more it gets."""
    return sum(not s.held_out for s in samples) >= FEWEST and seconds > _limit_s(samples)


def _limit_s(samples: Sequence[Sample]) -> float:
    return LIMIT_S + REGION_S * len(samples[-1].ms) + DENSE_RUNS * samples[0].total_ms / 1e3


def _seconds_left(samples: Sequence[Sample], seconds: float, fewest: int, most: int) -> float:
    """How long sampling goes on, at the pace that it had, where no look at the errors ends it."""
    pace = seconds / len(samples)
    return max(pace * (fewest - len(samples)), min(pace * (most - len(samples)), _limit_s(samples) - seconds), 0.0)


def _good(table: LatencyTable) -> bool:
    report = table.report()
    if report["holdout_median_error"] is None:
        return False
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

    A file whose header differs belongs to another key and is begun anew. After how many samples errors are looked at
    first is what it was when the file was begun: other tables may have come since. What was fused in the dense network,
    which is the first sample, is kept: a runtime may fuse differently when it builds that again.
    """

    def __init__(self, folder: Path | None, header: Mapping[str, Any], first_check: int) -> None:
        self.first_check = first_check
        self.path = None if folder is None else folder / "samples.jsonl"
        self.samples: list[Sample] = []
        self.took: list[float] = []
        self.fused: Fusions = ()
        if self.path is None:
            return
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        begun = json.loads(whole[0]) if whole else {}
        if {**begun, "first_check": first_check} == {**header, "first_check": first_check}:
            self.first_check = begun["first_check"]
        else:
            whole = [json.dumps({**header, "first_check": first_check}) + "\n"]
        if whole != lines:
            write_text(self.path, "".join(whole))
        for line in whole[1:]:
            data = json.loads(line)
            self.fused = tuple(tuple(names) for names in data.pop("fused"))
            self.took.append(data.pop("seconds"))
            self.samples.append(Sample(**data))

    @property
    def seconds(self) -> float:
        """How long all of them took."""
        return sum(self.took)

    def append(self, sample: Sample, seconds: float, fused: Fusions) -> None:
        """Adds a finished sample and what is fused in all of them, on disk before this returns."""
        self.samples.append(sample)
        self.took.append(seconds)
        self.fused = fused
        if self.path is None:
            return
        line = json.dumps({**plain(sample), "seconds": seconds, "fused": fused}) + "\n"
        with writing(self.path), self.path.open("a") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
