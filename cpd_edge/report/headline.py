"""The top of the page: what was asked, the verdict in one sentence, and the numbers it rests on."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from cpd_edge.report import figures
from cpd_edge.report import format as write
from cpd_edge.report.record import Record
from cpd_edge.report.view import Figure, Headline, Tile, Value
from cpd_edge.store import resumed
from cpd_edge.types import Interval

TONES = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "open"}
STILL = {
    "dense_latency_ms": "the dense engine's latency",
    "round_log": "the plan",
    "stop": "the final bench",
    "metric_pruned": "the metric of both engines",
    "layers": "the times of layers",
}
"""What a run does on its way to a verdict, in order, by a key of the record that says that it did."""
MACS_MISSING = f"MACs ratio {write.MISSING}"


def budget_ms(record: Record) -> float | None:
    """The limit in ms: the resolved one, else the one that was asked for."""
    resolved = record.number("budget_ms")
    return record.number("request", "budget_ms") if resolved is None else resolved


def quantile(record: Record) -> float | None:
    """The quantile that the budget is about."""
    resolved = record.number("quantile")
    return record.number("request", "quantile") if resolved is None else resolved


def over(record: Record, name: str) -> float | None:
    """Dense over pruned: from the counts where both are there, else `NAME_ratio` as recorded."""
    dense, pruned = record.number(name, "dense"), record.number(name, "pruned")
    return dense / pruned if dense and pruned else record.number(f"{name}_ratio")


def arrow(dense: str, pruned: str) -> str:
    """`dense → pruned`."""
    return f"{dense} → {pruned}"


def share_metric(record: Record) -> bool:
    """Whether this record's metric reads in per cent."""
    values = (record.number("metric_dense"), record.number("metric_pruned"))
    return write.is_share(record.text("metric"), *values)


def margin(interval: Interval, limit_ms: float) -> str:
    """How far the bound that decides lies from the budget, in words."""
    if interval.low > limit_ms:
        return f"over by {write.percent((interval.low - limit_ms) / limit_ms)}"
    if interval.high <= limit_ms:
        return f"margin {write.percent((limit_ms - interval.high) / limit_ms)}"
    if math.isinf(interval.high):
        return f"upper bound not supported by n = {interval.n}"
    return "the budget lies inside the interval"


def sentence(record: Record) -> str:
    """`p50 12.3 ms [12.1, 12.5] against a budget of 12.8 ms, margin 2.1 %`."""
    latency, limit = record.interval("latency_ms"), budget_ms(record)
    name = write.quantile(quantile(record))
    if latency is None:
        asked = "" if limit is None else f", budget {write.exact(limit)} ms"
        return f"{name} {write.MISSING}{asked}"
    if limit is None:
        return f"{name} {write.interval_ms(latency)}, no budget"
    return f"{name} {write.interval_ms(latency)} against a budget of {write.exact(limit)} ms, {margin(latency, limit)}"


def going_on(record: Record) -> str:
    """The command that goes on with an unfinished run; a point of a sweep goes on with its sweep. '' if not known."""
    command = repeating(record)
    return resumed(command, _typed_folder(record)) if command and record.text("run") else ""


def repeating(record: Record) -> str:
    """The command as it was typed, but for the folder where it names one: runs are moved and copied."""
    command = record.text("command")
    if "--out" not in command or not record.text("run"):
        return command
    words, folder = shlex.split(command), str(_typed_folder(record))
    for i, word in enumerate(words):
        if word == "--out":
            words[i + 1 : i + 2] = [folder]
        elif word.startswith("--out="):
            words[i] = f"--out={folder}"
    return shlex.join(words)


def _typed_folder(record: Record) -> Path:
    """The run's folder, or that of the sweep that it is a point of."""
    folder = Path(record.text("run"))
    return folder.parent if record.text("command").split()[1:2] == ["sweep"] else folder


def unfinished(record: Record) -> tuple[str, str]:
    """What is said of a run without a verdict: how far it came; what is missing, why, and what goes on with it."""
    limit, done = budget_ms(record), bool(record.text("stop"))
    asked = "" if limit is None else f", budget {write.exact(limit)} ms"
    how_far = "is sampled, but not judged yet" if done else "of the pruned engine is not measured yet"
    missing = [what for key, what in STILL.items() if key not in record.data]
    why = "The run was stopped, or is still running, and has not reached a verdict."
    lacks = f" Missing: {', '.join(missing)}." if missing else ""
    command = going_on(record)
    return (
        f"{write.quantile(quantile(record))} {how_far}{asked}",
        f"{why}{lacks}{f' If it was stopped, go on with: {command}' if command else ''}",
    )


def doubt(record: Record) -> str:
    """`2 of 7 checks failed: optimal plan, table predicts`; '' where none did."""
    rows = record.rows("checks")
    failed = [row.text("name") or "unnamed" for row in rows if row.value("passed") is False]
    return f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)}" if failed else ""


def headline(record: Record) -> Headline:
    """The verdict as recorded; a run without one is shown as unfinished, with what it lacks."""
    verdict = record.text("verdict").upper()
    latency, limit = record.interval("latency_ms"), budget_ms(record)
    said, why = sentence(record), record.text("reason")
    if not verdict:
        said, why = unfinished(record)
    drawn = None
    if latency is not None and limit is not None:
        title = "The interval against the budget"
        drawn = Figure(figures.bullet("fig-bullet", title, said, latency, limit), title, said)
    return Headline(
        verdict=verdict or "UNFINISHED",
        tone=TONES.get(verdict, "none"),
        sentence=said,
        reason=why,
        doubt=doubt(record),
        figure=drawn,
    )


def speedup(record: Record) -> Tile:
    """The paired speed-up and the ratio of MACs, which are only ever shown together."""
    measured, macs = record.interval("speedup"), over(record, "macs")
    counts = arrow(write.count(record.number("macs", "dense")), write.count(record.number("macs", "pruned")))
    work = Value("MACs ratio", write.ratio(macs), counts if record.at("macs") else "")
    if measured is None:
        return Tile((Value("Speed-up, paired", write.MISSING), work))
    said = f"{write.bounds(measured)}, n = {write.count(measured.n)}"
    places = write.spread(measured)
    return Tile((Value("Speed-up, paired", f"{write.fixed(measured.estimate, places)}{write.TIMES}", said), work))


def requested(record: Record) -> str:
    """The limit as it was asked for; a speed-up is named beside the ratio of MACs it came with."""
    asked = record.number("request", "speedup")
    if asked is None:
        limit = budget_ms(record)
        return "" if limit is None else f"{write.exact(limit)} ms"
    macs = over(record, "macs")
    reached = MACS_MISSING if macs is None else f"MACs ratio {write.ratio(macs)}"
    return f"speed-up {write.exact(asked)}{write.TIMES} ({reached})"


def tiles(record: Record) -> tuple[Tile, ...]:
    """Latency, speed-up beside MACs, parameters, metric, file size."""
    dense, pruned = record.interval("dense_latency_ms"), record.interval("latency_ms")
    share = share_metric(record)
    change = record.interval("metric_intervals", "delta")
    told = write.score_change(change.estimate if change else _difference(record), share)
    return (
        _pair(
            " ".join(dict.fromkeys(("Latency", write.quantile(quantile(record))))),
            write.ms(dense.estimate) if dense else None,
            write.ms(pruned.estimate) if pruned else None,
            arrow(*(write.bounds(i) if i else "" for i in (dense, pruned))),
        ),
        speedup(record),
        _pair(
            f"Metric {record.text('metric')}".strip(),
            _score(record.number("metric_dense"), share),
            _score(record.number("metric_pruned"), share),
            f"{told} {write.score_bounds(change, share)}".strip(),
        ),
        _pair(
            "Parameters",
            _count(record.number("params", "dense")),
            _count(record.number("params", "pruned")),
            f"ratio {write.ratio(over(record, 'params'))}",
        ),
        _pair(
            "File size",
            _size(record.number("size_bytes", "dense")),
            _size(record.number("size_bytes", "pruned")),
            f"ratio {write.ratio(over(record, 'size_bytes'))}",
        ),
    )


def _difference(record: Record) -> float | None:
    dense, pruned = record.number("metric_dense"), record.number("metric_pruned")
    return None if dense is None or pruned is None else pruned - dense


def _pair(label: str, dense: str | None, pruned: str | None, detail: str) -> Tile:
    if dense is None and pruned is None:
        return Tile((Value(label, write.MISSING, ""),))
    return Tile((Value(label, arrow(dense or "?", pruned or "?"), detail),))


def _score(value: float | None, share: bool) -> str | None:
    return None if value is None else write.score(value, share)


def _count(value: float | None) -> str | None:
    return None if value is None else write.count(value)


def _size(value: float | None) -> str | None:
    return None if value is None else write.size(value)


def weights(record: Record) -> str:
    """Where the dense network's weights come from, and the beginning of the file's hash."""
    source, digest = record.text("weights", "source"), record.text("weights", "sha256")[:12]
    return f"{source}, SHA-256 {digest}" if source and digest else source


def meta(record: Record) -> tuple[tuple[str, str], ...]:
    """The line under the title: what, where, when."""
    env, request = record.at("environment"), record.at("request")
    pairs = (
        ("Device", env.text("device") or request.text("device")),
        ("Runtime", env.text("runtime") or request.text("runtime")),
        ("Precision", env.text("precision") or request.text("precision")),
        ("Weights", weights(record)),
        ("Data", request.text("data")),
        ("Budget", requested(record)),
        ("Run", record.text("run")),
        ("Created", record.text("created").replace("T", " ")),
        ("cpd_edge", record.text("version")),
    )
    return tuple((name, value) for name, value in pairs if value)
