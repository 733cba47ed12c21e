"""cpd_edge prunes a trained torch vision model until its engine meets a latency budget on the device.

    import cpd_edge
    run = cpd_edge.prune(model, data, budget=cpd_edge.Budget(speedup=2), device="local")

Importing the package imports neither torch nor NumPy: each public name is fetched when it is first used.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "Budget": "cpd_edge.types",
    "CpdError": "cpd_edge.errors",
    "Run": "cpd_edge.store",
    "load": "cpd_edge.network",
    "load_task": "cpd_edge.intake.tasks",
    "prune": "cpd_edge.pipeline",
    "sweep": "cpd_edge.pipeline",
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
