"""The signs of a drawing: pills with units, marks of what a layer does, brackets, textures, the legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cpd_edge.report import svg
from cpd_edge.report.drawing.rails import Rail, Role

CHARACTER = 5.7
"""Mean width of a character of small text, digits and signs included [px]."""

WORD = 5.2
"""Mean width of a character of small words [px]."""


def pill_text(rail: Rail) -> str:
    """The number of units, with a sign where a cut is inexact."""
    return f"{'' if rail.exact else '≈'}{rail.units}"


def pill_width(text: str) -> float:
    """Width of a pill around a text [px]."""
    return 6.0 * len(text) + 8


def pill(x: float, y: float, text: str, class_: str, text_class: str) -> str:
    """A number in a rounded box."""
    width = pill_width(text)
    box = svg.element("rect", x=x - width / 2, y=y - 6.5, width=width, height=13, rx=6.5, class_=f"pill {class_}")
    return box + svg.element("text", svg.escape(text), x=x, y=y + 3.5, class_=text_class)


def colour(rail: Rail) -> str:
    """The class that colours a rail."""
    return f"p{rail.colour}" if rail.frozen is None else "z"


def stroke(rail: Rail) -> str:
    """The classes of a rail's line: colour, how it is broken, and its width."""
    broken = f"a{rail.pattern}" if rail.frozen is None else "dotted"
    return f"r {colour(rail)} {broken}{' wide' if rail.coupled else ''}"


def mark(x: float, y: float, row: int, role: Role, rail: Rail) -> str:
    """What one row does with a rail's units; the first row bears their number."""
    if row == rail.first:
        made = role in ("makes", "both")
        number = f"n{rail.colour}" if rail.frozen is None else "nz"
        look = colour(rail) if made else f"hollow {colour(rail)}"
        body = pill(x, y, pill_text(rail), look, f"n {number}" if made else "n")
    else:
        body = sign(x, y, role, colour(rail))
    return svg.element("g", body, data_row=row, data_role=role)


def sign(x: float, y: float, role: Role, class_: str) -> str:
    """A disc makes, a ring reads, a ring with a disc does both, a short line carries."""
    if role == "carries":
        return svg.line(x - 5, y, x + 5, y, f"tick {class_}")
    if role == "reads":
        return svg.dot(x, y, f"m hollow {class_}", 4)
    return svg.dot(x, y, f"m made {class_}", 5) + (svg.dot(x, y, "hole", 2) if role == "both" else "")


def bracket(x: float, top: float, bottom: float, ticks: Sequence[float]) -> str:
    """A bracket that opens to the right, with a tick at each row that it holds."""
    body = svg.path([(x + 5, top), (x, top), (x, bottom), (x + 5, bottom)], "bracket")
    return body + "".join(svg.line(x, y, x + 3, y, "bracket") for y in ticks)


def patterns() -> str:
    """Grey hatching for what is frozen; stripes and dots that lie over a colour."""

    def pattern(name: str, size: int, body: str, turn: int) -> str:
        turned = f"rotate({turn})"
        return svg.element(
            "pattern", body, id=name, width=size, height=size, patternUnits="userSpaceOnUse", patternTransform=turned
        )

    return (
        pattern("frozen", 4, svg.box(0, 0, 4, 4, "back") + svg.line(0, 0, 0, 4, "stripe"), 45)
        + pattern("texture1", 5, svg.line(1, 0, 1, 5, "texture"), 45)
        + pattern("texture2", 4, svg.dot(2, 2, "speck", 0.9), 0)
    )


def legend(rails: Sequence[Rail], *, frozen: bool, branches: bool, left: float, right: float) -> tuple[str, float]:
    """The legend's rows between two edges, and their height [px]."""
    parts = []
    x, y = left, 0.0
    for drawn, words in _entries(rails, frozen=frozen, branches=branches):
        wide = 42 + WORD * len(words) + 24
        if x + wide > right and x > left:
            x, y = left, y + 22
        parts.append(svg.element("g", drawn, transform=f"translate({svg.coordinate(x)} {svg.coordinate(y)})"))
        parts.append(svg.label(x + 42, y + 4, words, class_="soft small"))
        x += wide
    return "".join(parts), y


def _entries(rails: Sequence[Rail], *, frozen: bool, branches: bool) -> Iterator[tuple[str, str]]:
    """Each sign, drawn in 36 × 14 px around (18, 0), and what it says."""

    def across(class_: str) -> str:
        return svg.path([(2, 0), (34, 0)], class_)

    upright = svg.line(18, -5, 18, 5, "tick p0")  # across the sample, which lies
    yield across("r p0") + pill(18, 0, "64", "p0", "n n0"), "group: its units, at its first layer"
    yield across("r p0") + sign(18, 0, "makes", "p0"), "also makes them"
    yield across("r p0") + sign(18, 0, "reads", "p0"), "reads them"
    yield across("r p0") + upright, "carries them (norm, depthwise)"
    if any(rail.coupled for rail in rails):
        yield across("r p0 wide"), "coupled: several layers must agree"
    if any(not rail.exact for rail in rails):
        yield across("r p0") + pill(18, 0, "≈64", "p0", "n n0"), "inexact: a statistic runs over the units"
    if frozen:
        yield svg.box(4, -5.5, 28, 11, "c z"), "frozen: may not be cut"
    yield (
        svg.box(4, -5.5, 28, 5.5, "c p0") + svg.box(4, 0, 28, 5.5, "c p1"),
        "in a cell: product, such as heads × width",
    )
    yield svg.box(4, -5.5, 14, 11, "c p0") + svg.box(18, -5.5, 14, 11, "c p1"), "concat"
    if branches:
        yield bracket(16, -6, 6, ()), "branch that can go whole"
