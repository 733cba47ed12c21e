"""The view model: what a report says, in the order it says it. Templates lay it out and decide nothing.

Blocks stand one below the other; two that are not `wide` stand side by side where there is room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias


@dataclass(frozen=True)
class Column:
    """A table column; `drawn` columns hold small drawings that Markdown leaves out, `linked` ones pages' paths."""

    name: str
    numeric: bool = False
    drawn: bool = False
    linked: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption. In `drawn` columns the cells are SVG, in all others plain text."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool = True

    @property
    def written(self) -> Table:
        """The table without its drawn columns."""
        kept = tuple(i for i, column in enumerate(self.columns) if not column.drawn)
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.caption, tuple(self.columns[i] for i in kept), rows)


@dataclass(frozen=True)
class Figure:
    """A drawing and the sentence that says the same to who cannot see it."""

    kind: ClassVar[str] = "figure"
    svg: str
    title: str
    reading: str
    wide: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    caption: str
    pairs: tuple[tuple[str, str], ...]
    wide: bool = True


@dataclass(frozen=True)
class Checks:
    """What was checked: name, passed (None where it was not run), detail."""

    kind: ClassVar[str] = "checks"
    items: tuple[tuple[str, bool | None, str], ...]


@dataclass(frozen=True)
class Bullets:
    """Sentences, one a line."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """A line to copy."""

    kind: ClassVar[str] = "code"
    text: str


Block: TypeAlias = Table | Figure | Facts | Checks | Bullets | Code


@dataclass(frozen=True)
class Section:
    """A titled part; without blocks it says that its subject was not measured."""

    key: str
    title: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Value:
    """One headline number: what, how much, and the fine print."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Tile:
    """Headline numbers that may only be shown together."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Headline:
    """The verdict and its sentence; `tone` names the banner's colour, `doubt` says which checks failed."""

    verdict: str
    tone: str
    sentence: str
    reason: str
    doubt: str = ""
    figure: Figure | None = None


@dataclass(frozen=True)
class Report:
    """Everything that both twins say."""

    title: str
    subject: str
    meta: tuple[tuple[str, str], ...]
    headline: Headline
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...] = field(default=())
