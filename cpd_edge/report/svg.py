"""SVG by hand: elements, linear scales with round ticks, axes, legends. Everything returns text.

Colours are CSS classes, so that one stylesheet serves light, dark and paper. Text is 12 px at the
drawing's own size; a character is taken to be 6.3 px wide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as escaped
from itertools import pairwise

from cpd_edge.report import format as write

CHARACTER = 6.3
"""Mean width of a character of figure text [px]."""


_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(text: str) -> str:
    """Any text as XML holds it: markup escaped, characters that XML forbids replaced."""
    return escaped(_NO_XML.sub("\ufffd", text))


def coordinate(value: float) -> str:
    """A coordinate with a tenth of a pixel."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def element(tag: str, body: str = "", **attributes: object) -> str:
    """One element: `class_` is `class`, `_` becomes `-`, values are escaped. `body` is markup already."""
    parts = [tag]
    for name, value in attributes.items():
        shown = coordinate(value) if isinstance(value, float) else escape(str(value))
        parts.append(f'{name.rstrip("_").replace("_", "-")}="{shown}"')
    return f"<{' '.join(parts)}>{body}</{tag}>" if body else f"<{' '.join(parts)}/>"


def label(x: float, y: float, text: str, anchor: str = "start", class_: str = "t") -> str:
    """A line of text; escaped."""
    return element("text", escape(text), x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str) -> str:
    """A rectangle; negative widths are drawn to the left."""
    left, wide = (x, width) if width >= 0 else (x + width, -width)
    return element("rect", x=float(left), y=float(y), width=float(wide), height=float(height), class_=class_)


def dot(x: float, y: float, class_: str, radius: float = 3.5) -> str:
    """A disc."""
    return element("circle", cx=float(x), cy=float(y), r=float(radius), class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, close: bool = False) -> str:
    """A polyline through the points."""
    text = "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
    return element("path", d=f"M{text}{'Z' if close else ''}", class_=class_) if text else ""


def specks(points: Iterable[tuple[float, float]], class_: str) -> str:
    """Many small round marks as one path: zero-length strokes with round caps."""
    text = "".join(f"M{coordinate(x)} {coordinate(y)}h0" for x, y in points)
    return element("path", d=text, class_=class_) if text else ""


def drawing(name: str, title: str, reading: str, width: float, height: float, *parts: str) -> str:
    """The outer element, with the title and the description that screen readers speak."""
    head = element("title", escape(title), id=f"{name}-title") + element("desc", escape(reading), id=f"{name}-desc")
    return element(
        "svg",
        head + "".join(parts),
        viewBox=f"0 0 {coordinate(width)} {coordinate(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
    )


@dataclass(frozen=True)
class Scale:
    """A linear map from `[low, high]` to pixels `[start, end]`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside come to lie outside."""
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 6) -> tuple[float, ...]:
        """Round values inside the range, 1, 2 or 5 times a power of ten apart, about `wanted` of them."""
        span = self.high - self.low
        if span <= 0:
            return (self.low,)
        raw = span / max(1, wanted)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(round(i * step, 12) for i in range(first, last + 1))


def around(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all values with a margin, never empty."""
    low, high = min(values), max(values)
    pad = (high - low) * margin or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick's number with the decimals that its axis needs; large ones with an SI prefix."""
    if max(map(abs, ticks)) >= 1e4:
        return write.count(value)
    step = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    return write.fixed(value, max(0, -math.floor(math.log10(step) + 1e-9)))


def axis_x(scale: Scale, y: float, top: float, title: str, wanted: int = 6) -> str:
    """Ticks and title below, faint lines above."""
    ticks = scale.ticks(wanted)
    parts = [line(scale.start, y, scale.end, y, "axis")]
    for tick in ticks:
        x = scale(tick)
        parts += [line(x, top, x, y, "grid"), label(x, y + 16, tick_text(tick, ticks), "middle")]
    parts.append(label(scale.end, y + 32, title, "end", "t title"))
    return "".join(parts)


def axis_y(scale: Scale, x: float, right: float, title: str, wanted: int = 4) -> str:
    """Ticks to the left, title above them, faint lines to the right. The figure's own title may serve as the axis's."""
    ticks = scale.ticks(wanted)
    parts = []
    for tick in ticks:
        y = scale(tick)
        parts += [line(x, y, right, y, "grid"), label(x - 7, y + 4, tick_text(tick, ticks), "end")]
    if title:
        parts.append(label(0, min(scale.start, scale.end) - 12, title, "start", "t title"))
    return "".join(parts)


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """A row of swatches: (class, text). Class `budget` is drawn as a dashed line."""
    parts = []
    for class_, text in entries:
        if class_ in ("budget", "identity", "limit"):
            parts.append(line(x, y - 4, x + 16, y - 4, class_))
        elif class_.startswith("hollow"):
            parts.append(dot(x + 8, y - 4, class_))
        else:
            parts.append(box(x, y - 9, 16, 10, class_))
        parts.append(label(x + 21, y, text))
        x += 21 + CHARACTER * len(text) + 18
    return "".join(parts)
