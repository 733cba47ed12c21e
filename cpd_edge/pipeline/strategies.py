"""All strategies on one table: what each would keep for a budget, what the table predicts of it, and what it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpd_edge import store
from cpd_edge.errors import InfeasibleError, UndecidedError, UsageError
from cpd_edge.intake.models import load_model
from cpd_edge.intake.tasks import Task, check_model, load_task
from cpd_edge.measure import stats
from cpd_edge.measure.protocol import Protocol, compare
from cpd_edge.measure.runtimes import require_runtime
from cpd_edge.pipeline.outcome import macs_at
from cpd_edge.pipeline.plans import SOLVE_S, Posed, posed
from cpd_edge.pipeline.profiling import measured_table
from cpd_edge.pipeline.quantities import counted
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.steps import scores
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.table import LatencyTable, table_folder
from cpd_edge.solve.baselines import BASELINES
from cpd_edge.solve.milp import solve
from cpd_edge.solve.problem import Problem, Solution
from cpd_edge.types import Budget, Plan

Progress = Callable[[str, float, str], None]

STRATEGIES: Mapping[str, Callable[[Problem], Solution]] = {
    "milp": lambda problem: solve(problem, time_limit_s=SOLVE_S),
    **BASELINES,
}
"""Every way to choose, by name."""


def compare_strategies(
    request: Request, budgets: Sequence[Budget], input_shape: tuple[int, ...], *, measure_s: float, progress: Progress
) -> dict[str, Any]:
    """Runs every strategy for every budget, and times each distinct plan against the dense engine.

    Networks have the dense network's weights, untrained: what is compared is the choice.

    Args:
        request: model, device, score and limits; its data is '' where the score needs none. Its budget is not used.
        budgets: latency limits in the table's milliseconds, or speed-ups over what the table says of the dense network.
        input_shape: shape of one input, where there is no data to tell.
        measure_s: longest time to sample each plan [s]; 0 measures none.
        progress: gets stage, fraction and message.

    Returns:
        What `--json` prints: a row for every budget and strategy.

    Raises:
        UsageError: a score that needs data, without any, or mixed precision.
    """
    if request.score != "magnitude" and not request.data:
        raise UsageError(f"the score {request.score} needs data", hint="add --data, or give --score magnitude")
    request.require_one_precision("comparing strategies")
    require_runtime(request.runtime, request.device)
    subject, task = _subject(request, input_shape, progress)
    key = subject.key()
    folder = table_folder(Path(request.profiles), key)
    samples, seed = request.samples, request.seed
    table = measured_table(
        subject, key, folder, samples=samples, seed=seed, progress=lambda f, text: progress("profile", f, text)
    )
    progress("score", 0.0, "")
    importance = scores(subject.combed, task, request)
    progress("score", 1.0, "")
    limits = counted(subject, request.constraints.limits)
    where = posed(table, importance, 1.0, subject.combed.groups, request.constraints, limits=limits)
    rows: list[dict[str, Any]] = []
    plans: dict[int, Plan] = {}
    for i, budget in enumerate(budgets):
        dense_ms = table.predict(subject.widths)
        limit_ms = budget.limit_ms if budget.limit_ms is not None else dense_ms / float(budget.speedup or 1.0)
        here = replace(where, problem=where.problem.limited(limit_ms))
        for j, (name, strategy) in enumerate(STRATEGIES.items()):
            progress("solve", (i + j / len(STRATEGIES)) / len(budgets), f"{name} for {limit_ms:.4g} ms")
            row, plan = _row(here, name, strategy, subject, table)
            rows.append({"limit_ms": limit_ms, "speedup": budget.speedup, "strategy": name, **row})
            if plan is not None:
                plans[len(rows) - 1] = plan
    progress("solve", 1.0, "")
    if measure_s > 0:
        _measure(subject, plans, rows, measure_s, progress)
    found: dict[str, Any] = {
        "model": request.model,
        "score": request.score,
        "dense_ms": table.predict(subject.widths),
        "table": str(folder),
        "environment": table.key,
        "rows": rows,
    }
    plainly: dict[str, Any] = store.plain(found)
    return plainly


def _subject(request: Request, input_shape: tuple[int, ...], progress: Progress) -> tuple[Subject, Task | None]:
    progress("comb", 0.0, "")
    task = None
    if request.data:
        root = Path(request.data_root) if request.data_root else None
        task = load_task(request.data, seed=request.seed, image_size=request.image_size, data_root=root)
        input_shape = task.input_shape
    weights = Path(request.weights) if request.weights else None
    classes = request.num_classes or (task.num_classes if task else None)
    channels = input_shape[0] if len(input_shape) == 3 else None
    model = load_model(request.model, weights, num_classes=classes, in_channels=channels)
    if task is not None:
        check_model(task, model)
    where = (request.threads, request.runtime, request.device, request.precision)
    subject = Subject.of(model, input_shape, *where)
    progress("comb", 1.0, "")
    return subject, task


def _row(
    where: Posed, name: str, strategy: Callable[[Problem], Solution], subject: Subject, table: LatencyTable
) -> tuple[dict[str, Any], Plan | None]:
    """What a strategy comes to on the table."""
    try:
        found = strategy(where.problem)
    except (InfeasibleError, UndecidedError) as error:
        return {"infeasible": error.what}, None
    plan = where.plan(found)
    macs = [macs_at(table.regions, widths) for widths in (subject.widths, plan.widths)]
    row = {
        "objective": found.objective,
        "bound": found.bound if name == "milp" else None,
        "gap": found.gap if name == "milp" else None,
        "seconds": found.seconds,
        "predicted_ms": found.latency_ms,
        "used": found.used,
        "macs_ratio": macs[0] / max(macs[1], 1),
        "widths": plan.widths,
    }
    return row, plan


def _measure(
    subject: Subject, plans: Mapping[int, Plan], rows: list[dict[str, Any]], measure_s: float, progress: Progress
) -> None:
    """Times every distinct plan in ABBA blocks against the dense engine, and adds that to its rows."""
    alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for at, plan in plans.items():
        alike.setdefault(tuple(sorted(plan.widths.items())), []).append(at)
    protocol = Protocol(limit_s=measure_s, target=0.01)
    with contextlib.closing(subject.runner(subject.build(subject.widths))) as dense:
        for i, where in enumerate(alike.values()):
            name = rows[where[0]]["strategy"]

            def tell(fraction: float, text: str, i: int = i, name: str = name) -> None:
                progress("measure", (i + fraction) / len(alike), f"{name}: {text}")

            with contextlib.closing(subject.runner(subject.build_plan(plans[where[0]].kept))) as runner:
                both = compare(dense, runner, ("dense", name), protocol, progress=tell)
            measured = {
                "dense_ms": stats.quantile_interval(both.a.samples_ns / 1e6, 0.5),
                "measured_ms": stats.quantile_interval(both.b.samples_ns / 1e6, 0.5),
                "measured_speedup": both.speedup,
                "outcome": both.outcome,
            }
            for at in where:
                rows[at] |= measured
    progress("measure", 1.0, "")
