"""A sweep: one network pruned to several budgets, each run beginning with the student of the wider one before it.

    SWEEP/
      sweep.json               what was asked, every point, the front; the object `--json` prints
      sweep.html  sweep.md  sweep.svg  sweep.csv
      20ms/  15ms/  2x/ ...    a run folder a budget, with its own verdict and report

Format history: 1, the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cpd_edge import store
from cpd_edge.errors import BudgetError, InfeasibleError, StoreError
from cpd_edge.intake.tasks import Task
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.stages import run
from cpd_edge.pipeline.steps import Progress
from cpd_edge.report.front import pareto, write_front
from cpd_edge.types import Budget

FORMAT = 1
WORST = ("PASS", "INCONCLUSIVE", "FAIL")
"""Verdicts, the best first."""
KEPT = (
    "verdict", "reason", "budget_ms", "quantile", "latency_ms", "dense_latency_ms", "speedup", "metric", "metric_dense",
    "metric_pruned", "metric_intervals", "macs_ratio", "params_ratio", "predicted_ms", "floor_ms", "void",
    "checks", "environment", "created", "version", "command",
)  # fmt: skip
"""What a point repeats of its run's record."""
OF_THE_BUDGET = ("budget_ms", "speedup")


@dataclass(frozen=True)
class Swept:
    """What `sweep` gives back.

    Attributes:
        folder: the sweep's folder.
        record: the object that `--json` prints: points, the widest budget first, and the worst verdict.
        report: the HTML report.
    """

    folder: Path
    record: dict[str, Any]
    report: Path

    @property
    def verdict(self) -> str:
        """The worst verdict of all points."""
        return str(self.record["verdict"])

    @property
    def void(self) -> bool:
        """Whether the device slowed itself down while a verdict was taken."""
        return any(point.get("void") for point in self.record["points"])


def budgets(
    limits_ms: Sequence[float], speedups: Sequence[float], quantile: float, tolerance: float
) -> tuple[Budget, ...]:
    """Budgets of a sweep, the widest first, each once.

    Raises:
        BudgetError: none are given, or both kinds, or one that is no budget.
    """
    if bool(limits_ms) == bool(speedups):
        raise BudgetError(
            "a sweep goes over either milliseconds or speed-ups", hint="give --budgets 20,15,10 or --speedups 1.5,2,3"
        )
    wide = [Budget(ms, None, quantile, tolerance) for ms in sorted(set(limits_ms), reverse=True)]
    return tuple(wide + [Budget(None, x, quantile, tolerance) for x in sorted(set(speedups))])


def label(budget: Budget) -> str:
    """`20ms` or `1.5x`: a point's name, and its folder's."""
    return f"{budget.speedup:.12g}x" if budget.limit_ms is None else f"{budget.limit_ms:.12g}ms"


def sweep(
    request: Request,
    over: Sequence[Budget],
    folder: Path,
    *,
    model: nn.Module | None = None,
    data: Task | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    begun: Callable[[], None] | None = None,
) -> Swept:
    """Runs every budget, the widest first, and writes the front.

    A budget that cannot be met is a point that says so. What is finished stays so: a sweep that was killed goes on with
    `resume`, and budgets may be added then.

    Args:
        request: the settings; its own budget is of no account.
        over: the budgets, see `budgets`.
        folder: the sweep's folder.
        model, data: objects in place of the request's specs.
        resume: go on with the sweep in `folder`.
        command: what was typed, for the record.
        progress: gets stage, fraction and message.
        begun: called when the folder holds the sweep, before the long work.

    Raises:
        StoreError: the folder holds something else, or a sweep that was asked for something else.
        CpdError: as `run`, except that an infeasible budget is a point.
    """
    asked = _opened(request, over, folder, resume)
    tell = progress or (lambda stage, fraction, text: None)
    every = _all(asked, request.budget)
    start: Path | None = None
    waiting = [begun] if begun is not None else []  # for the first run that has work to do
    for budget in every:
        place = folder / label(budget)
        with contextlib.suppress(InfeasibleError):  # its run says so, and the next budget has its turn
            run(
                replace(request, budget=budget), place, model=model, data=data, resume=(place / "run.json").exists(),
                start=start, command=command, progress=_named(place.name, tell),
                begun=lambda: waiting.pop()() if waiting else None,
            )  # fmt: skip
        if (place / "pruned.pt2").exists():
            start = place
        _write(folder, asked, every)
    return Swept(folder, store.read_json(folder / "sweep.json"), folder / "sweep.html")


def _named(name: str, tell: Progress) -> Progress:
    """Progress whose stages carry a point's name."""
    return lambda stage, fraction, text: tell(f"{name} {stage}", fraction, text)


def _opened(request: Request, over: Sequence[Budget], folder: Path, resume: bool) -> dict[str, Any]:
    """What the sweep is asked for, budgets of an earlier call included; kept in the folder."""
    path = folder / "sweep.json"
    earlier: list[dict[str, Any]] = []
    if path.exists():
        if not resume:
            raise StoreError(f"{folder} already holds a sweep", hint="add --resume to go on with it, or another --out")
        known = store.read_json(path)
        if known.get("format") != FORMAT:
            raise StoreError(f"{folder}: sweep format {known.get('format')}, this version reads {FORMAT}")
        request.require_same({k: v for k, v in known["request"].items() if k not in OF_THE_BUDGET})
        earlier = known["budgets"]
    elif folder.is_dir() and any(not p.name.startswith(store.PARTIAL) for p in folder.iterdir()):
        raise StoreError(f"{folder} is no sweep's folder and not empty", hint="give a new --out")
    new = [{"budget_ms": b.limit_ms, "speedup": b.speedup} for b in over]
    asked = {
        "format": FORMAT,
        "sweep": str(folder),
        "request": {k: v for k, v in request.to_json().items() if k not in OF_THE_BUDGET},
        "budgets": earlier + [b for b in new if b not in earlier],
    }
    if not path.exists() or asked["budgets"] != earlier:
        store.write_json(path, asked)
    return asked


def _all(asked: Mapping[str, Any], like: Budget) -> tuple[Budget, ...]:
    given = [[b[kind] for b in asked["budgets"] if b[kind] is not None] for kind in OF_THE_BUDGET]
    return budgets(given[0], given[1], like.quantile, like.tolerance)


def _write(folder: Path, asked: Mapping[str, Any], every: Sequence[Budget]) -> None:
    """Writes the record and the report of all points that are finished."""
    points = [p for budget in every if (p := _point(folder, budget)) is not None]
    verdicts = [p["verdict"] for p in points]
    record = {
        **asked,
        "points": [{**p, "front": on} for p, on in zip(points, pareto(points), strict=True)],
        "missing": [label(b) for b in every if label(b) not in {p["point"] for p in points}],
        "verdict": max(verdicts, key=WORST.index),
    }
    store.write_json(folder / "sweep.json", record)
    write_front(folder)


def _point(folder: Path, budget: Budget) -> dict[str, Any] | None:
    """A finished point: what it was asked for and what its run came to."""
    place = folder / label(budget)
    if not (place / "run.json").exists():
        return None
    record = store.Run(place).record
    if "verdict" not in record or not (place / "report.html").exists():
        return None
    asked = {"asked_ms": budget.limit_ms, "asked_speedup": budget.speedup}
    start = Path(record["start"]).name if "start" in record else None
    kept = {name: record.get(name) for name in KEPT}
    return {"point": place.name, "run": str(place), "start": start, **asked, **kept}
