"""The sections on time: what was measured, how, and where the milliseconds went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from cpd_edge.report import curves, figures
from cpd_edge.report import format as write
from cpd_edge.report.headline import arrow, budget_ms
from cpd_edge.report.record import Record
from cpd_edge.report.view import Block, Column, Figure, Section, Table
from cpd_edge.types import Measurement

Samples = Mapping[str, Measurement]
"""Raw measurements by engine, `dense` before `pruned`; empty ones are left out."""

UNSUPPORTED = "not supported by n"
TOP_REGIONS = 12
"""How many regions the waterfall names; the table further down has them all."""


def milliseconds(measurement: Measurement) -> figures.Array:
    """Samples `[n]` in ms."""
    return np.asarray(measurement.samples_ns, np.float64) / 1e6


def outliers(latency_ms: figures.Array) -> int:
    """Samples more than three interquartile ranges above the upper quartile (Tukey's far outliers)."""
    lower, upper = np.quantile(latency_ms, (0.25, 0.75))
    return int(np.sum(latency_ms > upper + 3 * (upper - lower)))


def latency(record: Record, samples: Samples) -> Section:
    """Quantiles with intervals, distributions, samples over time, and the state of the measurement."""
    blocks: list[Block] = []
    table = _quantiles(record)
    if table:
        blocks.append(table)
    if samples:
        blocks += _drawings(record, samples)
        blocks.append(_conduct(samples))
    return Section("latency", "Latency", tuple(blocks))


def _quantiles(record: Record) -> Table | None:
    known = record.at("quantiles")
    if not known:
        return None
    extra = [q for engine in known for q in known.at(engine)]
    names = tuple(dict.fromkeys(("p50", "p90", "p99", *extra)))

    def cells(engine: str, name: str) -> tuple[str, str]:
        interval = known.interval(engine, name)
        if interval is not None:
            return write.interval_ms(interval), write.count(interval.n)
        return (UNSUPPORTED if name in known.at(engine) else write.MISSING), ""

    rows = tuple((name, *cells("dense", name), *cells("pruned", name)) for name in names)
    columns = tuple(Column(c, c != "quantile") for c in ("quantile", "dense", "n dense", "pruned", "n pruned"))
    return Table("Latency quantiles with 95 % intervals", columns, rows)


def _drawings(record: Record, samples: Samples) -> list[Block]:
    limit = budget_ms(record)
    shown = {engine: milliseconds(m) for engine, m in samples.items()}
    named = {"dense": record.interval("dense_latency_ms"), "pruned": record.interval("latency_ms")}
    intervals = {k: v for k, v in named.items() if v is not None}
    title = "Distribution"
    reading = _sentences(
        f"{engine}: median {write.ms(float(np.median(v)))}, fastest {write.ms(float(v.min()))}, "
        f"slowest {write.ms(float(v.max()))}, n = {write.count(len(v))}"
        for engine, v in shown.items()
    )
    drawn = figures.distribution("fig-latency", title, reading, shown, intervals, limit)
    found: list[Block] = [Figure(drawn, title, reading, wide=True)]
    start = min(int(m.starts_ns[0]) for m in samples.values())
    series = {k: ((np.asarray(m.starts_ns, np.float64) - start) / 1e9, shown[k]) for k, m in samples.items()}
    title = "Every sample over time"
    reading = _sentences(
        f"{engine}: {write.count(outliers(v))} far outliers of {write.count(len(v))}, kept in all numbers"
        for engine, v in shown.items()
    )
    found.append(Figure(figures.time_strip("fig-time", title, reading, series, limit), title, reading, wide=True))
    return found + [_cumulative(record, engine, v, limit) for engine, v in shown.items()]


def _sentences(parts: Iterable[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _cumulative(record: Record, engine: str, latency_ms: figures.Array, limit: float | None) -> Figure:
    title = f"Cumulative distribution, {engine}"
    reading = f"Half of the inferences take at most {write.ms(float(np.median(latency_ms)))}."
    if limit is not None:
        reading = (
            f"{write.percent(float(np.mean(latency_ms <= limit)), 3)} of inferences are inside {write.exact(limit)} ms."
        )
    levels = {name: record.interval("quantiles", engine, name) for name in record.at("quantiles", engine)}
    marks = [(name, v) for name, v in levels.items() if v is not None and write.level(name) is not None]
    drawn = figures.ecdf(f"fig-ecdf-{engine}", title, reading, engine, latency_ms, marks, limit)
    return Figure(drawn, title, reading)


def _conduct(samples: Samples) -> Table:
    def row(engine: str, m: Measurement) -> tuple[str, ...]:
        window = (int(m.starts_ns[-1]) - int(m.starts_ns[0])) / 1e9
        meter = write.MISSING if m.interference is None else f"{write.number(m.interference, 2)} /s"
        return (
            engine,
            write.count(len(m.samples_ns)),
            write.count(len(np.unique(m.blocks))),
            write.duration(window),
            write.count(outliers(milliseconds(m))),
            "yes" if m.steady else "no: trend",
            meter,
            m.stop,
        )

    names = ("engine", "samples", "blocks", "window", "outliers", "steady", "involuntary switches", "sampling ended")
    columns = tuple(Column(c, 0 < i < 5 or i == 6) for i, c in enumerate(names))
    return Table("How it was measured", columns, tuple(row(k, m) for k, m in samples.items()))


def where(record: Record) -> Section:
    """From the dense total to the pruned one by region, closed by the part no region explains."""
    regions = [(region_name(row), row.number("dense_ms"), row.number("pruned_ms")) for row in record.rows("layers")]
    timed = [(name, dense, pruned) for name, dense, pruned in regions if dense is not None and pruned is not None]
    if not timed:
        return Section("where", "Where the time went")
    sums = {"dense": sum(d for _, d, _ in timed), "pruned": sum(p for _, _, p in timed)}
    totals = {engine: _total(record, engine, sums[engine]) for engine in sums}
    steps = waterfall_steps([(name, p - d) for name, d, p in timed], totals["pruned"] - totals["dense"])
    title = "From dense to pruned, by region"
    reading = (
        f"The {len(timed)} timed regions take {write.ms(sums['dense'])} of the dense engine's "
        f"{write.ms(totals['dense'])} and {write.ms(sums['pruned'])} of the pruned engine's "
        f"{write.ms(totals['pruned'])}; the rest is not attributed to any region."
    )
    if min(totals[k] - sums[k] for k in totals) < 0:
        reading += " A rest below zero is what the profiler itself costs: regions are timed with it, engines without."
    drawn = figures.waterfall("fig-waterfall", title, reading, totals["dense"], steps)
    rows = (
        ("timed regions", write.ms(sums["dense"]), write.ms(sums["pruned"])),
        ("unattributed rest", *(write.ms(totals[k] - sums[k]) for k in ("dense", "pruned"))),
        ("end to end", write.ms(totals["dense"]), write.ms(totals["pruned"])),
    )
    table = Table(
        "What the regions explain", (Column("part"), Column("dense", True), Column("pruned", True)), rows, wide=False
    )
    return Section("where", "Where the time went", (Figure(drawn, title, reading, wide=True), table))


def region_name(row: Record) -> str:
    """The layer whose parameter a region works with, as the user's model calls it, else the ONNX node that heads it."""
    return row.text("fqn").removesuffix(".weight") or row.text("name") or "region"


def _total(record: Record, engine: str, timed_ms: float) -> float:
    """What the regions are part of: their sum and the recorded rest, else the measured latency."""
    rest = record.number("unattributed_ms", engine)
    measured = record.interval("dense_latency_ms" if engine == "dense" else "latency_ms")
    return timed_ms + (rest or 0.0) if rest is not None or measured is None else measured.estimate


def waterfall_steps(changes: list[tuple[str, float]], total_ms: float) -> list[tuple[str, float]]:
    """The largest changes in order of size, all others as one, and the rest that closes the sum at `total_ms`."""
    ranked = sorted(changes, key=lambda c: -abs(c[1]))
    named, others = ranked[:TOP_REGIONS], ranked[TOP_REGIONS:]
    steps = sorted(named, key=lambda c: c[1])
    if others:
        steps.append((f"{len(others)} other regions", sum(c for _, c in others)))
    steps.append(("unattributed rest", total_ms - sum(c for _, c in changes)))
    return steps


def layers(record: Record) -> Section:
    """Every region with its widths and times before and after."""
    rows = record.rows("layers")
    if not rows:
        return Section("layers", "Layers")
    named = [r for r in rows if r.text("fqn")]
    out = [(r.number("dense_out"), r.number("pruned_out")) for r in named]
    known = [(d, p) for d, p in out if d is not None and p is not None]
    blocks: list[Block] = []
    if known and len(known) == len(named):
        title = "Output width by layer with parameters"
        reading = (
            f"{sum(p < d for d, p in known)} of {len(known)} layers with parameters are narrower; "
            f"{write.percent(sum(p for _, p in known) / (sum(d for d, _ in known) or 1))} of all output channels stay."
        )
        blocks.append(Figure(curves.skyline("fig-widths", title, reading, known), title, reading, wide=True))
    slowest = max((r.number("dense_ms") or 0.0 for r in rows), default=0.0)
    columns = (
        Column("#", True),
        Column("region"),
        Column("operator"),
        Column("in", True),
        Column("out", True),
        Column("kept", drawn=True),
        Column("dense", True),
        Column("pruned", True),
        Column("predicted", True),
        Column("time", drawn=True),
    )
    cells = tuple(
        (
            str(i),
            write.shorten(region_name(r), 44),
            ", ".join(part for part in (r.text("op"), r.text("precision")) if part),
            _widths(r.number("dense_in"), r.number("pruned_in")),
            _widths(r.number("dense_out"), r.number("pruned_out")),
            curves.bar(r.number("dense_out"), r.number("pruned_out"), r.number("dense_out") or 0.0),
            *(_time(r.number(k)) for k in ("dense_ms", "pruned_ms", "predicted_ms")),
            curves.bar(r.number("dense_ms"), r.number("pruned_ms"), slowest),
        )
        for i, r in enumerate(rows, 1)
    )
    blocks.append(
        Table("Regions in network order: widths and times [ms], dense (outline) and pruned (filled)", columns, cells)
    )
    return Section("layers", "Layers", tuple(blocks))


def _widths(dense: float | None, pruned: float | None) -> str:
    if dense is None:
        return ""
    if pruned is None or pruned == dense:
        return write.fixed(dense, 0)
    return arrow(write.fixed(dense, 0), write.fixed(pruned, 0))


def _time(value_ms: float | None) -> str:
    return "" if value_ms is None else write.fixed(value_ms, 3)
