"""Where everything of a drawing stands: columns, lines and lanes, each computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cpd_edge.report import svg
from cpd_edge.report.drawing import captions, marks
from cpd_edge.report.drawing.outline import Line, outline
from cpd_edge.report.drawing.picture import Branch, Picture
from cpd_edge.report.drawing.rails import Rail, rails

ROW, HEADING, GAP = 18.0, 22.0, 4.0
"""Height of a row, of a heading, and of the room below a module [px]."""

EDGE, INDENT, CELL, BAR, BRACKET = 24.0, 14.0, 62.0, 64.0, 9.0
"""Room around the drawing, of one level of the tree, of a cell, of the longest bar, of a bracket [px]."""

NARROWEST = 900.0
"""Width that the headline and the legend need [px]."""

LEGEND = 96.0
"""Where the legend begins [px]."""


@dataclass(frozen=True)
class Bracket:
    """The branches of the same rows, and how far right their bracket stands."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    level: int


@dataclass(frozen=True)
class Sheet:
    """Places on the drawing of one picture [px]."""

    picture: Picture

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Headings and rows from top to bottom."""
        return outline([row.name for row in self.picture.rows])

    @cached_property
    def rails(self) -> tuple[Rail, ...]:
        """Groups, and frozen axes that run from row to row."""
        return rails(self.picture.rows, self.picture.groups)

    @cached_property
    def brackets(self) -> tuple[Bracket, ...]:
        """Branches, outermost leftmost."""
        return _bracketed(self.picture.branches)

    @cached_property
    def looks(self) -> Mapping[str, tuple[str, str, int]]:
        """Classes, tooltip and texture of each axis that shows in a cell."""
        found = {f.axis: ("c z", captions.of_frozen(f), 0) for f in self.picture.groups.frozen}
        for k, rail in enumerate(self.rails):
            said = captions.of_frozen(rail.frozen) if rail.frozen else f"{rail.name}: {rail.units} units"
            found[rail.name] = (f"c {marks.colour(rail)} k k{k}", said, rail.pattern)
        return found

    @cached_property
    def reach(self) -> Mapping[int, float]:
        """The rightmost lane that each row touches."""
        found: dict[int, float] = {}
        for rail in self.rails:
            for row, _ in rail.ports:
                found[row] = max(found.get(row, 0.0), self.lanes[rail.lane])
        return found

    @cached_property
    def legend(self) -> tuple[str, float]:
        """The legend and its height."""
        return marks.legend(
            self.rails,
            frozen=bool(self.picture.groups.frozen),
            branches=bool(self.brackets),
            left=EDGE,
            right=self.width - EDGE,
        )

    @cached_property
    def top(self) -> float:
        """Where the first line begins."""
        return LEGEND + self.legend[1] + 52

    @cached_property
    def at(self) -> tuple[float, ...]:
        """The upper edge of each line, and the lower one of the last."""
        out = [self.top]
        for i, line in enumerate(self.lines):
            below = self.lines[i + 1].depth if i + 1 < len(self.lines) else 0
            closed = max(line.depth - below, 0)
            out.append(out[-1] + (ROW if line.row is not None else HEADING) + closed * GAP)
        return tuple(out)

    @cached_property
    def middle(self) -> Mapping[int, float]:
        """The middle of each row."""
        return {line.row: y + ROW / 2 for line, y in zip(self.lines, self.at, strict=False) if line.row is not None}

    @cached_property
    def names(self) -> float:
        """Where names begin: right of the brackets."""
        levels = max((bracket.level for bracket in self.brackets), default=-1) + 1
        return EDGE + (levels * BRACKET + 6 if levels else 0)

    def name_at(self, line: Line) -> float:
        """Where a line's name begins."""
        return self.names + line.depth * INDENT

    @cached_property
    def weights(self) -> float:
        """Where weights begin: right of the longest name."""
        ends = [self.name_at(line) + svg.CHARACTER * self._length(line) for line in self.lines]
        return max((*ends, self.names + 120)) + 18

    def _length(self, line: Line) -> int:
        """Characters of a line's label."""
        if line.row is None:
            return len(line.above) + len(line.text)
        return sum(map(len, captions.label(self.picture.rows[line.row], line.text)))

    @cached_property
    def numbers(self) -> float:
        """Where the numbers of parameters end."""
        longest = max((len(captions.weight(row)) for row in self.picture.rows), default=0)
        return self.weights + marks.CHARACTER * longest + 62

    @cached_property
    def reads(self) -> float:
        """Where the cells begin of what is read."""
        return self.numbers + 10 + BAR + 22

    @cached_property
    def makes(self) -> float:
        """Where the cells begin of what is made."""
        return self.reads + CELL + 14

    @cached_property
    def lanes(self) -> tuple[float, ...]:
        """The middle of each lane; few lanes share the room that there is."""
        wide: dict[int, float] = {}
        for rail in self.rails:
            wide[rail.lane] = max(wide.get(rail.lane, 0.0), marks.pill_width(marks.pill_text(rail)) + 7)
        x = self.makes + CELL + 24
        spare = (NARROWEST - 30 - x - sum(wide.values())) / max(len(wide), 1)
        out = []
        for lane in sorted(wide):
            width = wide[lane] + min(max(spare, 0.0), 14.0)
            out.append(x + width / 2)
            x += width
        return tuple(out)

    @cached_property
    def width(self) -> float:
        """Width of the whole."""
        return max(max(self.lanes, default=self.makes + CELL) + 30, NARROWEST) + EDGE

    @cached_property
    def notes(self) -> tuple[tuple[str, str], ...]:
        """What is frozen, a line for each reason."""
        return captions.reasons(self.picture)

    @cached_property
    def height(self) -> float:
        """Height of the whole."""
        return self.at[-1] + EDGE + (34 + ROW * len(self.notes) if self.notes else 0)


def _bracketed(branches: Sequence[Branch]) -> tuple[Bracket, ...]:
    """One bracket for all branches of the same rows; brackets that overlap stand beside each other."""
    names: dict[tuple[int, ...], list[str]] = {}
    for branch in branches:
        names.setdefault(tuple(sorted(branch.rows)), []).append(branch.name)
    taken: list[list[tuple[int, int]]] = []
    out = []
    for rows in sorted(names, key=lambda rows: (rows[0] - rows[-1], rows)):
        free = (i for i, spans in enumerate(taken) if all(rows[-1] < a or b < rows[0] for a, b in spans))
        level = next(free, len(taken))
        if level == len(taken):
            taken.append([])
        taken[level].append((rows[0], rows[-1]))
        out.append(Bracket(tuple(names[rows]), rows, level))
    return tuple(out)
