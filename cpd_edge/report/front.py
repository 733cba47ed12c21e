"""A sweep's pages: the metric against measured latency, with intervals, as HTML, Markdown, SVG and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cpd_edge import store
from cpd_edge.report import format as form
from cpd_edge.report import svg
from cpd_edge.report.build import html, markdown
from cpd_edge.report.figures import EDGE, MARGIN, WIDE, finite
from cpd_edge.report.headline import TONES
from cpd_edge.report.record import Record
from cpd_edge.report.svg import Scale
from cpd_edge.report.view import Bullets, Code, Column, Figure, Headline, Report, Section, Table
from cpd_edge.types import Interval

COLUMNS = (
    "point", "asked_ms", "asked_speedup", "verdict", "front", "latency_ms", "latency_low_ms", "latency_high_ms",
    "dense_latency_ms", "speedup", "metric", "metric_dense", "metric_pruned", "metric_low", "metric_high", "macs_ratio",
    "params_ratio", "floor_ms", "start", "run",
)  # fmt: skip
RUNTIME_VERSION = ("environment", "runtime_version")
TITLE = "Metric against measured latency"


def pareto(points: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which points no other one beats: none is at least as fast and as good, and better in one of the two.

    Estimates decide; a point that was not measured is on no front.
    """
    placed = [(p["latency_ms"]["estimate"], p["metric_pruned"]) if p.get("latency_ms") else None for p in points]
    return [
        here is not None
        and not any(other and other != here and other[0] <= here[0] and other[1] >= here[1] for other in placed)
        for here in placed
    ]


def write_front(folder: Path) -> Path:
    """Writes `sweep.html`, `sweep.md`, `sweep.svg` and `sweep.csv` from `sweep.json`; gives the page's path.

    Raises:
        StoreError: the folder holds no sweep.
    """
    data = store.read_json(folder / "sweep.json")
    report = view(data)
    store.write_text(folder / "sweep.md", markdown(report))
    store.write_text(folder / "sweep.csv", table(data["points"]))
    figure = next(b for b in report.sections[0].blocks if isinstance(b, Figure)) if _measured(data) else None
    if figure is not None:
        style = files("cpd_edge.report").joinpath("templates/report.css").read_text()
        alone = figure.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        store.write_text(folder / "sweep.svg", alone.replace(">", f"><style>{svg.escape(style)}</style>", 1))
    page = folder / "sweep.html"
    store.write_text(page, html(report))
    return page


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """The points as CSV, one a line; an empty field was not measured."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for point in points:
        read = Record(point)
        latency, metric = read.interval("latency_ms"), read.interval("metric_intervals", "pruned")
        dense, speedup = read.interval("dense_latency_ms"), read.interval("speedup")
        row = {name: point.get(name) for name in COLUMNS}
        row |= {
            "latency_ms": None,
            "dense_latency_ms": dense and dense.estimate,
            "speedup": speedup and speedup.estimate,
        }
        if latency is not None:
            row |= {"latency_ms": latency.estimate, "latency_low_ms": latency.low, "latency_high_ms": latency.high}
        if metric is not None:
            row |= {"metric_low": metric.low, "metric_high": metric.high}
        writer.writerow(row)
    return out.getvalue()


def view(data: Mapping[str, Any]) -> Report:
    """What the page says."""
    points = [Record(p) for p in data["points"]]
    doubted = [p for p in points if failed(p)]
    request, verdict = Record(data).at("request"), str(data["verdict"])
    counted = {v: sum(p.text("verdict") == v for p in points) for v in TONES}
    said = ", ".join(f"{n} {v}" for v, n in counted.items() if n)
    blocks: list[Figure | Table | Bullets] = []
    drawn = _measured(data)
    if drawn:
        reading = _reading(drawn)
        blocks.append(Figure(front("fig-front", TITLE, reading, drawn), TITLE, reading, wide=True))
    blocks.append(_rows(points))
    notes = [f"not run yet: {', '.join(data['missing'])}"] if data["missing"] else []
    notes += [f"checks failed at {', '.join(p.text('point') for p in doubted)}"] if doubted else []
    unmet = tuple(f"{p.text('point')}: {p.text('reason')}" for p in points if p.text("verdict") != "PASS")
    doubts = tuple(f"{p.text('point')}: {check}" for p in doubted for check in failed(p))
    commands = repeat(points, data["missing"], Path(Record(data).text("sweep")))
    return Report(
        title="Sweep",
        subject=request.text("model") or "unnamed model",
        meta=tuple(
            (name, text)
            for name, text in (
                ("Device", each(points, ("environment", "device")) or request.text("device")),
                ("Runtime", each(points, ("environment", "runtime"), RUNTIME_VERSION) or request.text("runtime")),
                ("Precision", each(points, ("environment", "precision")) or request.text("precision")),
                ("Threads", each(points, ("environment", "threads")) or request.text("threads")),
                ("Data", request.text("data")),
                ("Sweep", Record(data).text("sweep")),
                ("Created", min((p.text("created") for p in points), default="").replace("T", " ")),
                ("cpd_edge", each(points, ("version",))),
            )
            if text
        ),
        headline=Headline(
            verdict=verdict,
            tone=TONES.get(verdict, "none"),
            sentence=f"{len(points)} budgets: {said}",
            reason="; ".join(notes),
        ),
        tiles=(),
        sections=(
            Section("front", "The front", tuple(blocks)),
            *((Section("unmet", "Budgets that were not met", (Bullets(unmet),)),) if unmet else ()),
            *((Section("checks", "Checks that failed", (Bullets(doubts),)),) if doubts else ()),
            *((Section("repeat", "To go on" if data["missing"] else "To repeat", commands),) if commands else ()),
        ),
    )


def each(points: Sequence[Record], *paths: tuple[str, ...]) -> str:
    """What stands at some paths of the points, side by side; more than once where points differ."""
    found = (" ".join(text for path in paths if (text := p.text(*path))) for p in points)
    return ", ".join(dict.fromkeys(text for text in found if text))


def failed(point: Record) -> tuple[str, ...]:
    """The checks of a point that failed, with what they found."""
    rows = (row for row in point.rows("checks") if row.value("passed") is False)
    return tuple(f"{row.text('name')} ({row.text('detail')})" for row in rows)


def repeat(points: Sequence[Record], missing: Sequence[str], folder: Path) -> tuple[Code, ...]:
    """The commands that made the sweep, or the one that goes on with it where points are missing."""
    commands = list(dict.fromkeys(command for p in points if (command := p.text("command"))))
    return tuple(map(Code, [store.resumed(commands[-1], folder)] if missing and commands else commands))


def _judged(point: Record) -> str:
    """The verdict, with what speaks against it."""
    void, count = bool(point.value("void")), len(failed(point))
    doubts = [*(["void"] if void else []), *([f"{count} check{'s' if count > 1 else ''} failed"] if count else [])]
    return ", ".join([point.text("verdict"), *doubts])


def _measured(data: Mapping[str, Any]) -> list[Record]:
    return [Record(p) for p in data["points"] if p.get("latency_ms")]


def _rows(points: Sequence[Record]) -> Table:
    numeric = ("latency [ms]", "speed-up", "MACs ratio", "parameters ratio", "metric")
    ends = (Column("begins with"), Column("report", linked=True))
    columns = (*(Column(n) for n in ("budget", "verdict")), *(Column(n, True) for n in numeric), *ends)
    rows = [_dense_row(p) for p in points if p.interval("dense_latency_ms")][:1]
    for p in points:
        share = form.is_share(p.text("metric"), p.number("metric_pruned"))
        metric = p.interval("metric_intervals", "pruned")
        score = f"{form.score(p.number('metric_pruned'), share)} {form.score_bounds(metric, share)}".strip()
        speedup = p.interval("speedup")
        rows.append(
            (
                p.text("point") + (" *" if p.value("front") is True else ""),
                _judged(p),
                form.interval_ms(p.interval("latency_ms")),
                form.ratio(speedup.estimate if speedup else None),
                form.ratio(p.number("macs_ratio")),
                form.ratio(p.number("params_ratio")),
                score,
                p.text("start") or "the dense network",
                f"{p.text('point')}/report.html",
            )
        )
    return Table("Points, the widest budget first; * is on the front", columns, tuple(rows))


def _dense_row(p: Record) -> tuple[str, ...]:
    """The dense network, as a point's window measured it."""
    return ("dense", "", form.interval_ms(p.interval("dense_latency_ms")), "", "", "", _dense_score(p), "", "")


def _dense_score(p: Record) -> str:
    return form.score(p.number("metric_dense"), form.is_share(p.text("metric"), p.number("metric_dense")))


def _reading(points: Sequence[Record]) -> str:
    first = points[0]
    told = [
        f"dense: {form.interval_ms(first.interval('dense_latency_ms'))} at {first.text('metric')} {_dense_score(first)}"
    ]
    for p in points:
        share = form.is_share(p.text("metric"), p.number("metric_pruned"))
        told.append(
            f"{p.text('point')}: {form.interval_ms(p.interval('latency_ms'))} at "
            f"{p.text('metric')} {form.score(p.number('metric_pruned'), share)}"
        )
    line = "; the line joins the front" if sum(p.value("front") is True for p in points) > 1 else ""
    return "; ".join(told) + f". Whiskers are 95 % intervals{line}."


def front(name: str, title: str, reading: str, points: Sequence[Record]) -> str:
    """Metric over latency: each point with whiskers both ways, the dense network hollow, the front joined."""
    height, top, base = 380.0, 40.0, 330.0
    placed = [_place(p) for p in points]
    dense, score = points[0].interval("dense_latency_ms"), points[0].number("metric_dense")
    ends = [v for ms, metric in placed for v in (ms.low, ms.high, ms.estimate)]
    scores = [v for ms, metric in placed for v in (metric.low, metric.high, metric.estimate)]
    x = Scale(*svg.around(finite(*ends, dense.estimate if dense else None)), MARGIN, WIDE - EDGE)
    y = Scale(*svg.around(finite(*scores, score), 0.1), base, top)
    parts = [
        svg.axis_y(y, MARGIN, WIDE - EDGE, points[0].text("metric"), 5),
        svg.axis_x(x, base, top, "latency [ms]", 8),
    ]
    on = sorted((p[0].estimate, p[1].estimate) for p, point in zip(placed, points, strict=True) if point.value("front"))
    parts.append(svg.path([(x(a), y(b)) for a, b in on], "curve s-pruned"))
    for (ms, metric), point in zip(placed, points, strict=True):
        at = x(ms.estimate), y(metric.estimate)
        left, right = (x(v) if finite(v) else at[0] for v in (ms.low, ms.high))
        low, high = (y(v) if finite(v) else at[1] for v in (metric.low, metric.high))
        parts += [
            svg.line(left, at[1], right, at[1], "whisker s-pruned"),
            svg.line(at[0], low, at[0], high, "whisker s-pruned"),
        ]
        parts += [svg.dot(*at, "point s-pruned", 5), svg.label(at[0] + 9, at[1] + 16, point.text("point"))]
    if dense is not None and score is not None:
        parts += [
            svg.dot(x(dense.estimate), y(score), "hollow", 5),
            svg.label(x(dense.estimate) - 9, y(score) + 16, "dense", "end"),
        ]
    parts.append(svg.legend(WIDE - EDGE - 190, 16, [("fill s-pruned", "pruned"), ("hollow", "dense")]))
    return svg.drawing(name, title, reading, WIDE, height, *parts)


def _place(point: Record) -> tuple[Interval, Interval]:
    latency, metric = point.interval("latency_ms"), point.interval("metric_intervals", "pruned")
    assert latency is not None
    value = point.number("metric_pruned") or 0.0
    return latency, metric or Interval(value, value, value, 0)
