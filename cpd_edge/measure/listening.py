"""What a TensorRT library says: errors, warnings and the table of layers, kept; nothing is printed.

The library keeps the first logger that it is given for the life of the process and ignores later ones, so there is one
for each module, and builder and runtime share it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cpd_edge.measure.layers import TABLES

_MOST = 20
"""Errors and warnings kept; the first ones tell why."""


@cache
def listener(trt: Any) -> Any:
    """The one logger of a TensorRT module, with lists `errors`, `warnings` and `tables`, and `clear()`."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.tables: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            kind = severity.name
            if kind in ("ERROR", "INTERNAL_ERROR"):
                _keep(self.errors, msg)
            elif kind == "WARNING":
                _keep(self.warnings, msg)
            elif msg.startswith(TABLES):
                self.tables.append(msg)

    return Listener()


def _keep(messages: list[str], message: str) -> None:
    if len(messages) < _MOST:
        messages.append(" ".join(message.split()))


__all__ = ["listener"]
