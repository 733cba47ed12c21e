"""The report's drawings of networks, predictions and training: pure functions from numbers to SVG text."""

from __future__ import annotations

from collections.abc import Sequence

from cpd_edge.report import svg
from cpd_edge.report.figures import EDGE, HALF, MARGIN, WIDE, finite
from cpd_edge.report.svg import Scale
from cpd_edge.types import Interval


def skyline(name: str, title: str, reading: str, widths: Sequence[tuple[float, float]]) -> str:
    """Width of each layer in network order: dense as an outline, pruned filled. (dense, pruned) a layer."""
    height, top, base = 220.0, 40.0, 176.0
    x = Scale(0.5, len(widths) + 0.5, MARGIN, WIDE - EDGE)
    y = Scale(0, max(max(pair) for pair in widths) * 1.04 or 1.0, base, top)
    slot = x(2) - x(1)
    gap = min(4.0, slot * 0.2)
    parts = [svg.axis_y(y, MARGIN, WIDE - EDGE, "output width")]
    for i, (dense, pruned) in enumerate(widths, 1):
        left = x(i - 0.5) + gap / 2
        parts.append(svg.box(left, y(dense), slot - gap, base - y(dense), "ghost"))
        parts.append(svg.box(left, y(pruned), slot - gap, base - y(pruned), "fill s-pruned"))
    every = max(1, round(len(widths) / 18))
    for i in range(1, len(widths) + 1, every):
        parts.append(svg.label(x(i), base + 16, str(i), "middle"))
    parts.append(svg.line(MARGIN, base, WIDE - EDGE, base, "axis"))
    parts.append(svg.label(WIDE - EDGE, base + 32, "layer, as numbered in the table", "end", "t title"))
    parts.append(svg.legend(WIDE - EDGE - 154, 16, [("ghost", "dense"), ("fill s-pruned", "pruned")]))
    return svg.drawing(name, title, reading, WIDE, height, *parts)


def scatter(name: str, title: str, reading: str, points: Sequence[tuple[float, float, float | None]]) -> str:
    """Held-out plans: (predicted, measured, sum of isolated layers), all in ms, against the line of no error."""
    height, top, base = 350.0, 40.0, 306.0
    low, high = svg.around([v for point in points for v in finite(*point)])
    x, y = Scale(max(0.0, low), high, MARGIN, HALF - EDGE), Scale(max(0.0, low), high, base, top)
    parts = [svg.axis_y(y, MARGIN, HALF - EDGE, "measured [ms]", 5), svg.axis_x(x, base, top, "predicted [ms]", 5)]
    parts.append(svg.line(x(x.low), y(y.low), x(x.high), y(y.high), "identity"))
    parts += [svg.dot(x(alone), y(seen), "hollow") for _, seen, alone in points if alone is not None]
    parts += [svg.dot(x(told), y(seen), "point s-pruned") for told, seen, _ in points]
    entries = [("fill s-pruned", "in context")]
    if any(alone is not None for _, _, alone in points):
        entries.append(("hollow", "isolated layers"))
    entries.append(("identity", "no error"))
    parts.append(svg.legend(118, 16, entries))
    return svg.drawing(name, title, reading, HALF, height, *parts)


def rounds(
    name: str,
    title: str,
    reading: str,
    log: Sequence[tuple[str, float | None, float | None, Interval | None]],
    budget_ms: float | None,
) -> str:
    """The loop: (round, limit solved for, prediction, measurement), latencies in ms, and the budget line."""
    height, top, base = 300.0, 40.0, 256.0
    seen = [v for _, limit, told, m in log for v in finite(limit, told, *((m.estimate, m.low, m.high) if m else ()))]
    y = Scale(*svg.around(finite(*seen, budget_ms), 0.1), base, top)
    x = Scale(0.5, len(log) + 0.5, MARGIN, HALF - EDGE)
    parts = [svg.axis_y(y, MARGIN, HALF - EDGE, "latency [ms]", 5), svg.line(MARGIN, base, HALF - EDGE, base, "axis")]
    entries = [("fill s-pruned", "measured"), ("hollow", "predicted"), ("limit", "limit")]
    if budget_ms is not None:
        parts.append(svg.line(MARGIN, y(budget_ms), HALF - EDGE, y(budget_ms), "budget"))
        entries.append(("budget", "budget"))
    for i, (text, limit, told, measured) in enumerate(log, 1):
        parts.append(svg.label(x(i), base + 16, text, "middle"))
        if limit is not None:
            parts.append(svg.line(x(i) - 22, y(limit), x(i) + 22, y(limit), "limit"))
        if told is not None:
            parts.append(svg.dot(x(i) - 9, y(told), "hollow", 4))
        if measured is not None:
            low, high = (b if finite(b) else measured.estimate for b in (measured.low, measured.high))
            parts.append(svg.line(x(i) + 9, y(low), x(i) + 9, y(high), "whisker s-pruned"))
            parts.append(svg.dot(x(i) + 9, y(measured.estimate), "point s-pruned", 4))
    parts.append(svg.label(HALF - EDGE, base + 32, "round", "end", "t title"))
    parts.append(svg.legend(84, 16, entries))
    return svg.drawing(name, title, reading, HALF, height, *parts)


def curve(
    name: str,
    title: str,
    reading: str,
    points: Sequence[tuple[float, float]],
    x_title: str = "step",
    line_ms: float | None = None,
) -> str:
    """One quantity over the course of training; `line_ms` draws the budget across."""
    height, top, base = 196.0, 14.0, 152.0
    x = Scale(*_span([p for p, _ in points]), MARGIN, HALF - EDGE)
    y = Scale(*svg.around(finite(*(v for _, v in points), line_ms), 0.08), base, top)
    parts = [svg.axis_y(y, MARGIN, HALF - EDGE, ""), svg.axis_x(x, base, top, x_title, 5)]
    if line_ms is not None:
        parts.append(svg.line(MARGIN, y(line_ms), HALF - EDGE, y(line_ms), "budget"))
    placed = [(x(a), y(b)) for a, b in points]
    parts.append(svg.path(placed, "curve s-pruned"))
    parts.append(svg.dot(*placed[-1], "point s-pruned"))
    return svg.drawing(name, title, reading, HALF, height, *parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def bar(dense: float | None, pruned: float | None, largest: float) -> str:
    """A pair of bars for a table cell, dense behind pruned; the numbers stand beside it in text."""
    if dense is None or not largest > 0:
        return ""
    width, height = 120.0, 12.0
    parts = svg.box(0, 1, width * dense / largest, height - 2, "ghost")
    if pruned is not None:
        parts += svg.box(0, 1, width * pruned / largest, height - 2, "fill s-pruned")
    return svg.element("svg", parts, viewBox=f"0 0 {width:.0f} {height:.0f}", class_="bar", aria_hidden="true")
