"""The loop of the main job: solve, build, measure, learn what the table does not know, and solve again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpd_edge import store
from cpd_edge.errors import InfeasibleError
from cpd_edge.pipeline import aim, outcome
from cpd_edge.pipeline.plans import on_device
from cpd_edge.pipeline.steps import Student, Trial, trial_from_json
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.table import LatencyTable
from cpd_edge.types import Importance, Plan

if TYPE_CHECKING:
    from cpd_edge.pipeline.job import Job


def close_loop(
    job: Job, subject: Subject, table: LatencyTable, importance: Importance, student: Student | None, name: str
) -> Plan:
    """Build, measure, refit, solve again, until the upper bound is inside the budget and within its tolerance.

    Every trial is kept under the step's name, so an interrupted loop goes on with the next one.

    Returns:
        The nearest plan that passed, or the last one tried.

    Raises:
        InfeasibleError: no plan meets the limit, and none that was tried passed.
    """
    run, request = job.run, job.request
    kept = job.checkpoints / f"{name}-trials.json"
    trials = [trial_from_json(data) for data in store.read_json(kept)] if kept.exists() else []
    log: list[dict[str, Any]] = list(run.record.get("round_log", []))
    log += [dict(t.row) for t in trials if t.row["round"] > len(log)]
    dense_ms = table.predict(subject.widths)
    dense = outcome.interval_from(run.record["dense_latency_ms"])
    pace, limit_ms = dense.estimate / dense_ms, aim.limit_of(request.budget, dense)
    if trials:
        pace, limit_ms = trials[-1].pace, trials[-1].row["limit_ms"]
    while len(log) < request.rounds and not any(near(t, request.budget.tolerance) for t in trials):
        delta_ms = aim.learned_delta(row["delta_ms"] for row in log)
        target_ms = aim.table_limit_ms(limit_ms, pace, delta_ms)
        try:
            plan = job.chosen(subject, table, importance, target_ms, student, request.constraints)
        except InfeasibleError as error:
            if not any(t.passed for t in trials):
                aimed_ms = limit_ms * aim.AIM
                raise on_device(error, subject.regions, subject.widths, pace, aimed_ms, delta_ms) from error
            break
        if any(t.plan.widths == plan.widths and t.plan.variants == plan.variants for t in trials):
            break
        window = job.tried(subject, plan)
        pace, limit_ms = window.dense.estimate / dense_ms, window.limit_ms
        log.append(outcome.round_row(len(log) + 1, window, plan, pace, delta_ms))
        log[-1]["delta_ms"] = aim.delta_of(window, pace, plan.predicted_ms)
        trials.append(Trial(plan, window.close, pace, log[-1]))
        store.write_json(kept, trials)
        run.update(round_log=log)
    passed = [t for t in trials if t.passed]
    if passed:
        return max(passed, key=lambda t: t.close).plan
    if trials:
        return trials[-1].plan
    delta_ms = aim.learned_delta(row["delta_ms"] for row in log)
    target_ms = aim.table_limit_ms(limit_ms, pace, delta_ms)
    return job.chosen(subject, table, importance, target_ms, student, request.constraints)


def near(trial: Trial, tolerance: float) -> bool:
    """Whether a trial passed and its upper bound is within a tolerance of the limit."""
    return trial.passed and trial.close >= 1 - tolerance


__all__ = ["close_loop"]
