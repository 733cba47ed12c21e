"""Reading a record whose keys may be missing: every access gives a value of the asked type or none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cpd_edge.types import Interval


class Record:
    """A JSON object that answers for keys it does not have.

    Args:
        data: the object; anything that is no mapping reads as an empty one.
    """

    def __init__(self, data: object) -> None:
        self.data: Mapping[str, Any] = data if isinstance(data, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self.data)

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def value(self, *path: str) -> Any:
        """What stands at a path of keys, or None."""
        here: Any = self.data
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    def at(self, *path: str) -> Record:
        """The object at a path, empty where there is none."""
        return Record(self.value(*path))

    def number(self, *path: str) -> float | None:
        """The finite number at a path, or None."""
        return as_number(self.value(*path))

    def text(self, *path: str) -> str:
        """The scalar at a path as text; empty where there is none."""
        return as_text(self.value(*path))

    def rows(self, *path: str) -> tuple[Record, ...]:
        """The objects of the list at a path; empty where there is none."""
        found = self.value(*path)
        return tuple(Record(row) for row in found if isinstance(row, Mapping)) if isinstance(found, list) else ()

    def texts(self, *path: str) -> tuple[str, ...]:
        """The scalars of the list at a path as text."""
        found = self.value(*path)
        return tuple(t for t in map(as_text, found) if t) if isinstance(found, list) else ()

    def interval(self, *path: str) -> Interval | None:
        """The interval at a path; None without an estimate. A missing bound is infinite."""
        here = self.at(*path)
        estimate, low, high = here.number("estimate"), here.number("low"), here.number("high")
        if estimate is None:
            return None
        return Interval(
            estimate=estimate,
            low=-math.inf if low is None else low,
            high=math.inf if high is None else high,
            n=int(here.number("n") or 0),
        )


def as_number(value: object) -> float | None:
    """A finite number, or None for anything else; booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def as_text(value: object) -> str:
    """A scalar or a list of scalars as a person would write it; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {as_text(v)}" for k, v in value.items())
    return str(value)
