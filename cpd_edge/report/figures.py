"""The report's drawings of latency: pure functions from numbers to SVG text.

All take the figure's name (unique in a page: it makes the ids), latencies in ms, and give one
`<svg>` with title and description. `dense` is grey, `pruned` is blue, the budget a dashed red line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cpd_edge.report import format as write
from cpd_edge.report import svg
from cpd_edge.report.svg import Scale
from cpd_edge.types import Interval

Array = npt.NDArray[np.float64]

WIDE = 880.0
HALF = 430.0
MARGIN = 52.0
EDGE = 20.0
"""Width of a full figure, of one of two side by side, of the room for the y axis, and right of the plot [px]."""

_MAX_SPECKS = 1500


def finite(*values: float | None) -> list[float]:
    """The values that are finite numbers."""
    return [v for v in values if v is not None and np.isfinite(v)]


def whisker(interval: Interval, scale: Scale, y: float, class_: str) -> str:
    """An interval as a horizontal bar with end marks and a dot at the estimate."""
    low = scale(interval.low) if np.isfinite(interval.low) else scale.start
    high = scale(interval.high) if np.isfinite(interval.high) else scale.end
    return "".join(
        (
            svg.line(low, y, high, y, f"whisker {class_}"),
            svg.line(low, y - 6, low, y + 6, f"whisker {class_}"),
            svg.line(high, y - 6, high, y + 6, f"whisker {class_}") if np.isfinite(interval.high) else "",
            svg.dot(scale(interval.estimate), y, f"point {class_}", 5),
        )
    )


def bullet(name: str, title: str, reading: str, interval: Interval, budget_ms: float) -> str:
    """The interval against the budget, with the room inside the budget shaded."""
    width, y = 420.0, 40.0
    known = finite(interval.estimate, interval.low, interval.high, budget_ms)
    low, high = svg.around(known, 0.35)
    scale = Scale(max(0.0, low), high, 8.0, width - 8.0)
    x = scale(budget_ms)
    anchor = "start" if x < 90 else "end" if x > width - 90 else "middle"
    ticks = scale.ticks(5)
    return svg.drawing(
        name,
        title,
        reading,
        width,
        84,
        svg.box(scale.start, y - 12, x - scale.start, 24, "inside"),
        svg.box(x, y - 12, scale.end - x, 24, "outside"),
        svg.line(x, y - 18, x, y + 18, "budget"),
        svg.label(x, 14, f"budget {write.exact(budget_ms)} ms", anchor, "t strong"),
        whisker(interval, scale, y, "s-pruned"),
        *(svg.label(scale(t), 76, svg.tick_text(t, ticks), "middle") for t in ticks if 16 < scale(t) < width - 40),
        svg.label(scale.end, 76, "ms", "end"),
    )


def distribution(
    name: str,
    title: str,
    reading: str,
    samples_ms: Mapping[str, Array],
    intervals: Mapping[str, Interval],
    budget_ms: float | None,
    bins: int = 110,
) -> str:
    """Histograms of all engines on one axis, with the band of each interval and the budget line.

    The axis ends at the 99.5th percentile of the slowest engine; what lies beyond is in the reading.
    """
    height, top, base = 250.0, 40.0, 206.0
    low = min(float(v.min()) for v in samples_ms.values())
    high = max(float(np.quantile(v, 0.995)) for v in samples_ms.values())
    low, high = svg.around(finite(low, high, budget_ms), 0.04)
    x = Scale(max(0.0, low), high, MARGIN, WIDE - EDGE)
    edges = np.linspace(x.low, x.high, bins + 1)
    shares = {k: np.histogram(v, edges)[0] / len(v) * 100 for k, v in samples_ms.items()}
    y = Scale(0, max(float(s.max()) for s in shares.values()) * 1.05, base, top)
    parts = [svg.axis_y(y, MARGIN, WIDE - EDGE, "share of samples [%]"), svg.axis_x(x, base, top, "latency [ms]", 9)]
    for engine, share in shares.items():
        if engine in intervals and np.isfinite([intervals[engine].low, intervals[engine].high]).all():
            left, right = x(intervals[engine].low), x(intervals[engine].high)
            parts.append(svg.box(left, top, max(1.0, right - left), base - top, f"band s-{engine}"))
        steps = [(x(edges[0]), base)]
        for left, right, value in zip(edges[:-1], edges[1:], share, strict=True):
            steps += [(x(left), y(value)), (x(right), y(value))]
        steps.append((x(edges[-1]), base))
        parts.append(svg.path(steps, f"area s-{engine}", close=True))
    entries = [(f"fill s-{engine}", engine) for engine in samples_ms]
    if budget_ms is not None:
        parts.append(svg.line(x(budget_ms), top - 6, x(budget_ms), base, "budget"))
        entries.append(("budget", f"budget {write.exact(budget_ms)} ms"))
    parts.append(svg.legend(WIDE - EDGE - _legend_width(entries), 16, entries))
    return svg.drawing(name, title, reading, WIDE, height, *parts)


def _legend_width(entries: Sequence[tuple[str, str]]) -> float:
    return sum(39 + svg.CHARACTER * len(text) for _, text in entries) - 18


def ecdf(
    name: str,
    title: str,
    reading: str,
    engine: str,
    samples_ms: Array,
    quantiles: Sequence[tuple[str, Interval]],
    budget_ms: float | None,
) -> str:
    """The share of inferences below each latency, with the interval of each named quantile (`p50`).

    Where the budget line cuts the curve is the share inside. A budget below the fastest sample is left out.
    """
    height, top, base = 250.0, 40.0, 206.0
    shares = np.linspace(0, 1, min(200, len(samples_ms)))
    values = np.quantile(samples_ms, shares)
    fastest, slowest = float(values[0]), float(np.quantile(samples_ms, 0.995))
    limit = budget_ms if budget_ms is not None and fastest <= budget_ms <= 2 * slowest else None
    bounds = [b for _, i in quantiles for b in finite(i.low, i.high)]
    low, high = svg.around(finite(fastest, slowest, limit, *bounds), 0.05)
    x, y = Scale(max(0.0, low), high, MARGIN, HALF - EDGE), Scale(0, 100, base, top)
    parts = [svg.axis_y(y, MARGIN, HALF - EDGE, "share at or below [%]"), svg.axis_x(x, base, top, "latency [ms]", 5)]
    inside = [(x(float(v)), y(float(s) * 100)) for v, s in zip(values, shares, strict=True) if v <= high]
    parts.append(svg.path(inside, f"curve s-{engine}"))
    if limit is not None:
        parts.append(svg.line(x(limit), top - 6, x(limit), base, "budget"))
        parts.append(svg.label(HALF - EDGE, 16, f"budget {write.exact(limit)} ms", "end", "t"))
    for text, interval in quantiles:
        across = y((write.level(text) or 0.0) * 100)
        parts.append(whisker(interval, x, across, f"s-{engine}"))
        left, right = (x(b) if np.isfinite(b) else x.end for b in (interval.low, interval.high))
        at, anchor = (right + 8, "start") if right < x.end - 34 else (left - 8, "end")
        parts.append(svg.label(at, across + 4, text, anchor, "t strong halo"))
    return svg.drawing(name, title, reading, HALF, height, *parts)


def time_strip(
    name: str,
    title: str,
    reading: str,
    series: Mapping[str, tuple[Array, Array]],
    budget_ms: float | None,
) -> str:
    """Every sample over time, one strip an engine: (seconds since start, latency in ms).

    Samples beyond a strip's range sit on its top edge as triangles. More than 1,500 samples of one
    engine are drawn as minimum, median and maximum of 500 slices.
    """
    strip, top = 96.0, 40.0
    last = max(float(s.max()) for s, _ in series.values())
    x = Scale(0, last or 1.0, MARGIN, WIDE - EDGE)
    parts, entries = [], [(f"fill s-{engine}", engine) for engine in series]
    for engine, (seconds, latency_ms) in series.items():
        base = top + strip
        slowest = float(np.quantile(latency_ms, 0.99))
        near = budget_ms if budget_ms is not None and latency_ms.min() * 0.8 <= budget_ms <= slowest * 1.25 else None
        low, high = svg.around(finite(float(latency_ms.min()), slowest, near), 0.15)
        y = Scale(max(0.0, low), high, base, top)
        parts.append(svg.axis_y(y, MARGIN, WIDE - EDGE, "latency [ms]" if top == 40.0 else "", 3))
        times, shown = _thinned(seconds, latency_ms)
        points = [(x(float(t)), y(float(v))) for t, v in zip(times, shown, strict=True) if v <= high]
        parts.append(svg.specks(points, f"specks s-{engine}"))
        over = [x(float(t)) for t, v in zip(times, shown, strict=True) if v > high]
        parts += [
            svg.path([(p - 4, top), (p + 4, top), (p, top - 7)], f"fill s-{engine}", close=True) for p in over[:80]
        ]
        if near is not None:
            parts.append(svg.line(MARGIN, y(near), WIDE - EDGE, y(near), "budget"))
            entries.append(("budget", f"budget {write.exact(near)} ms"))
        top = base + 22
    parts.append(svg.axis_x(x, top - 10, top - 10, "time since start [s]", 9))
    entries = list(dict.fromkeys(entries))
    parts.append(svg.legend(WIDE - EDGE - _legend_width(entries), 16, entries))
    return svg.drawing(name, title, reading, WIDE, top + 30, *parts)


def _thinned(seconds: Array, latency_ms: Array) -> tuple[Array, Array]:
    if len(seconds) <= _MAX_SPECKS:
        return seconds, latency_ms
    pieces = [p for p in np.array_split(np.arange(len(seconds)), _MAX_SPECKS // 3) if len(p)]
    times = np.repeat([float(seconds[p].mean()) for p in pieces], 3)
    marks = [f(latency_ms[p]) for p in pieces for f in (np.min, np.median, np.max)]
    return times, np.asarray(marks, np.float64)


def waterfall(name: str, title: str, reading: str, dense_ms: float, steps: Sequence[tuple[str, float]]) -> str:
    """From the dense total to the pruned one, one row a region: (region, change in ms)."""
    row, top, left, right = 22.0, 8.0, 250.0, WIDE - 96
    levels = np.cumsum([dense_ms, *(change for _, change in steps)])
    x = Scale(0, max(float(levels.max()), dense_ms), left, right)
    parts, y = [], top
    height = top + row * (len(steps) + 2) + 40
    parts.append(svg.axis_x(x, height - 36, top, "latency [ms]", 8))

    def bar(text: str, start: float, end: float, class_: str, value: str, strong: str = "") -> None:
        parts.append(svg.label(left - 10, y + 16, write.shorten(text, 36), "end", f"t{strong}"))
        parts.append(svg.box(x(start), y + 4, x(end) - x(start), row - 8, class_))
        parts.append(svg.label(WIDE - 2, y + 16, value, "end", f"t number{strong}"))

    bar("dense, end to end", 0, dense_ms, "fill s-dense", write.ms(dense_ms), " strong")
    for (text, change), before, after in zip(steps, levels[:-1], levels[1:], strict=True):
        y += row
        parts.append(svg.line(x(float(before)), y - 4, x(float(before)), y + 4, "axis"))
        kind = "gain" if change <= 0 else "loss"
        bar(text, float(before), float(after), f"fill {kind}", f"{write.signed(write.fixed(change, 3))} ms")
    y += row
    bar("pruned, end to end", 0, float(levels[-1]), "fill s-pruned", write.ms(float(levels[-1])), " strong")
    return svg.drawing(name, title, reading, WIDE, height, *parts)
