"""cpd_edge prunes a trained torch vision model until its engine meets a latency budget on the device.

    import cpd_edge
    run = cpd_edge.prune(model, data, budget=cpd_edge.Budget(speedup=2), device="local")

Importing the package imports neither torch nor NumPy: each public name is fetched when it is first used.
`comb` is both a function and a room (`from cpd_edge.comb.rules import ...`): `cpd_edge.comb` is always the function.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_HOMES = {
    "Budget": "cpd_edge.types",
    "CpdError": "cpd_edge.errors",
    "Run": "cpd_edge.store",
    "comb": "cpd_edge.pipeline",
    "load": "cpd_edge.pipeline",
    "prune": "cpd_edge.pipeline",
}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("cpd-edge")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])


class _Package(ModuleType):
    """The package itself: importing the room `comb` does not hide the function `comb`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
