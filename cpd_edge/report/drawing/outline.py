"""The module tree of a drawing: rows in their order, with a heading where a module begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

FEWEST = 3
"""Rows that a module must have to get a heading; fewer are named in full where they stand."""

DEEPEST = 4
"""Headings one inside the other, at most."""


@dataclass(frozen=True)
class Line:
    """One line of the drawing: a heading (`row` is None) or a row.

    Attributes:
        text: the name from the heading that holds it.
        above: names of the headings above it, with a dot behind each.
        depth: how many headings stand above it.
        row: index of the row.
        rows: how many rows a heading holds.
    """

    text: str
    above: str
    depth: int
    row: int | None = None
    rows: int = 0


def outline(names: Sequence[str]) -> tuple[Line, ...]:
    """Rows by dotted name, in their order, under headings for the modules that hold several in a run."""
    return tuple(_under([(i, tuple(name.split("."))) for i, name in enumerate(names)], "", 0))


def _under(rows: Sequence[tuple[int, tuple[str, ...]]], above: str, depth: int) -> Iterator[Line]:
    for head, run in groupby(rows, key=lambda row: row[1][0] if len(row[1]) > 1 else None):
        inside = list(run)
        if head is None or len(inside) < FEWEST or depth == DEEPEST:
            yield from (Line(".".join(path), above, depth, i) for i, path in inside)
            continue
        shared = 1
        while all(len(path) > shared + 1 and path[shared] == inside[0][1][shared] for _, path in inside):
            shared += 1
        text = ".".join(inside[0][1][:shared])
        yield Line(text, above, depth, rows=len(inside))
        yield from _under([(i, path[shared:]) for i, path in inside], f"{above}{text}.", depth + 1)
