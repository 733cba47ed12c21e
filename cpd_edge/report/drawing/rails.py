"""Where a drawing's rails run: the lane, colour and pattern of every group, as pure functions of its rows.

A rail spans the rows that touch a group. Rails that meet in a row never share a lane. Private
widths come and go on the left, beside the layers; residual streams stay put on the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cpd_edge.layout import Sum, axes
from cpd_edge.report.drawing.outline import outline
from cpd_edge.report.drawing.picture import Row
from cpd_edge.types import Frozen, Groups

Role = Literal["makes", "reads", "both", "carries"]
"""What a layer does with units: sums over other units to give them, sums over them, both, or only keeps their place."""

COLOURS = 6
PATTERNS = 3

SHORT = 6
"""Rows that a private rail may span."""

FAR = 5
"""Rows between two rails from which on they may look alike."""

GREY = -1
"""Colour of what is frozen."""


@dataclass(frozen=True)
class Rail:
    """One group, or one frozen axis that several rows share, as a vertical line.

    Attributes:
        name: the group's name or the frozen axis.
        units: how many there are.
        exact: removing a unit equals masking it.
        ports: what each row does with the units, by row, ascending.
        frozen: why it may not be cut, if it may not.
        lane: position from the left.
        colour: index into the palette, or `GREY`.
        pattern: how the line is broken, so that colour is not all that tells rails apart.
    """

    name: str
    units: int
    exact: bool
    ports: tuple[tuple[int, Role], ...]
    frozen: Frozen | None = None
    lane: int = 0
    colour: int = GREY
    pattern: int = 0

    @property
    def first(self) -> int:
        """The topmost row."""
        return self.ports[0][0]

    @property
    def last(self) -> int:
        """The lowest row."""
        return self.ports[-1][0]

    @property
    def coupled(self) -> bool:
        """Whether several layers make these units, so that they must agree."""
        return sum(role in ("makes", "both") for _, role in self.ports) > 1


def rails(rows: Sequence[Row], groups: Groups) -> tuple[Rail, ...]:
    """A rail for each group that any row touches, and for each frozen axis that runs from row to row."""
    touched = ports(rows)
    found = [Rail(g.name, g.units, g.exact, touched[g.name]) for g in groups.groups if g.name in touched]
    for frozen in groups.frozen:
        at = touched.get(frozen.axis, ())
        if frozen.units > 1 and len(at) > 1 and any(role != "carries" for _, role in at):
            found.append(Rail(frozen.axis, frozen.units, True, at, frozen))
    return _coloured(_laned(found, _private(found, rows)))


def ports(rows: Sequence[Row]) -> dict[str, tuple[tuple[int, Role], ...]]:
    """What each row does with the units of each axis, by axis."""
    found: dict[str, list[tuple[int, Role]]] = {}
    for i, row in enumerate(rows):
        reads, makes = set(axes(*row.reads)), set(axes(*row.makes))
        for axis in axes(*row.reads, *row.makes, *row.carries):
            role: Role = "carries"
            if axis in reads or axis in makes:
                role = "both" if axis in reads and axis in makes else "reads" if axis in reads else "makes"
            found.setdefault(axis, []).append((i, role))
    return {axis: tuple(at) for axis, at in found.items()}


def _private(found: Sequence[Rail], rows: Sequence[Row]) -> set[str]:
    """Names of the short rails inside of one module that are not concatenated with others."""
    scopes = {line.row: tuple(line.above.split(".")[:-1]) for line in outline([row.name for row in rows])}
    private = {r.name for r in found if r.last - r.first <= SHORT and _in_one({scopes[row] for row, _ in r.ports})}
    others = {rail.name for rail in found} - private
    for row in rows:
        for side in row.reads:
            if isinstance(side, Sum) and others & set(axes(side)):
                private -= set(axes(side))
    return private


def _in_one(scopes: set[tuple[str, ...]]) -> bool:
    """Whether one of the modules holds all the others."""
    return any(all(other[: len(scope)] == scope for other in scopes) for scope in scopes)


def _laned(found: Sequence[Rail], private: set[str]) -> list[Rail]:
    """Lanes for the private rails first, then for the others; in order of rows."""
    lanes = _packed(rail for rail in found if rail.name in private)
    left = len(set(lanes.values()))
    lanes |= {name: lane + left for name, lane in _packed(r for r in found if r.name not in private).items()}
    return sorted((replace(r, lane=lanes[r.name]) for r in found), key=lambda r: (r.first, r.lane))


def _packed(found: Iterable[Rail]) -> dict[str, int]:
    """Longest first, each in the leftmost lane that is free over all of its rows."""
    lanes: list[list[Rail]] = []
    out = {}
    for rail in sorted(found, key=lambda r: (r.first - r.last, r.first)):
        free = (i for i, lane in enumerate(lanes) if all(rail.last < o.first or o.last < rail.first for o in lane))
        at = next(free, len(lanes))
        if at == len(lanes):
            lanes.append([])
        lanes[at].append(rail)
        out[rail.name] = at
    return out


def _coloured(found: Sequence[Rail]) -> tuple[Rail, ...]:
    """Longest first, each rail gets the colour and pattern that the rails near it have least of. O(n²)."""
    done: dict[str, Rail] = {rail.name: rail for rail in found if rail.frozen is not None}
    free = [rail for rail in found if rail.frozen is None]
    for i, rail in enumerate(sorted(free, key=lambda r: (r.first - r.last, r.first, r.lane))):
        colours, pairs = [0.0] * COLOURS, [[0.0] * PATTERNS for _ in range(COLOURS)]
        for other in done.values():
            if other.colour != GREY:
                near = _nearness(rail, other)
                colours[other.colour] += near
                pairs[other.colour][other.pattern] += near
        colour = min(range(COLOURS), key=lambda c: (round(colours[c], 6), (c - i) % COLOURS))
        pattern = min(range(PATTERNS), key=lambda p: (round(pairs[colour][p], 6), p))
        done[rail.name] = replace(rail, colour=colour, pattern=pattern)
    return tuple(done[rail.name] for rail in found)


def _nearness(a: Rail, b: Rail) -> float:
    """How much two rails would be mistaken for each other if they looked alike."""
    gap = max(a.first - b.last, b.first - a.last, 0)
    return 0.0 if gap > FAR else 10.0 / (1 + abs(a.lane - b.lane)) ** 2 / (1 + gap) ** 2
