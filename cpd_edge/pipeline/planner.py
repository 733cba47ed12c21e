"""The plans of a run: what each step keeps, and the loop that learns from builds what the table does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpd_edge import store
from cpd_edge.errors import InfeasibleError, UndecidedError
from cpd_edge.pipeline import aim
from cpd_edge.pipeline.mixture import INT8
from cpd_edge.pipeline.plans import on_device, plan_for, plans_for
from cpd_edge.pipeline.profiling import Tables
from cpd_edge.pipeline.quantities import eased
from cpd_edge.pipeline.refine import refined
from cpd_edge.pipeline.rig import Rig
from cpd_edge.pipeline.steps import Student, Trial, trial_from_json
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.table import LatencyTable
from cpd_edge.types import Constraints, Importance, Plan


@dataclass(frozen=True)
class Planner:
    """Chooses plans for a subject of a run, each from the scores of its moment.

    Attributes:
        rig: builds and times plans; has the run's request, record and data.
        tables: what running regions in one way or another takes.
        subject: the dense network.
        table: its latency table.
    """

    rig: Rig
    tables: Tables
    subject: Subject
    table: LatencyTable

    def reachable(self) -> None:
        """Refuses a budget that no plan meets before any training.

        Raises:
            InfeasibleError: in the device's milliseconds.
        """
        subject, request = self.subject, self.rig.request
        dense = self.rig.dense_latency()
        pace, limit_ms = dense.estimate / self._dense_ms, aim.limit_of(request.budget, dense)
        alike = Importance({name: np.ones(n) for name, n in subject.widths.items()})
        if request.mixed:
            alike = replace(alike, otherwise={INT8: {region.name: 1.0 for region in subject.weighted}})
        ways = self.tables.ways(subject, self.table)
        try:
            with self.rig.stage("solve"):
                plan_for(subject, self.table, alike, limit_ms / pace, None, request.constraints, ways)
        except InfeasibleError as error:
            raise self._on_device(error, pace, limit_ms) from error

    def on_the_way(self, share: float, importance: Importance, student: Student | None, start: Student | None) -> Plan:
        """A plan between two networks: limits shrink geometrically from where the run begins to what is asked for.

        Args:
            share: of the way, from 0 to 1.
            importance: scores at this step.
            student: the network so far, None: the dense one.
            start: the network that the run began with, None: the dense one.

        Raises:
            InfeasibleError: no plan meets the limits.
        """
        dense = self.rig.dense_latency()
        pace = dense.estimate / self._dense_ms
        first_ms = start.plan.predicted_ms if start else self._dense_ms
        last_ms = aim.table_limit_ms(aim.limit_of(self.rig.request.budget, dense), pace, 0.0)
        given = self.rig.request.constraints
        constraints = replace(given, limits=eased(self.subject, given.limits, share)) if given.limits.any else given
        try:
            return self.chosen(importance, first_ms ** (1 - share) * last_ms**share, student, constraints)
        except InfeasibleError as error:
            raise self._on_device(error, pace, last_ms * pace) from error

    def close_loop(self, importance: Importance, student: Student | None, kept: Path) -> Plan:
        """Build, measure, refit, solve again, until the upper bound is inside the budget and within its tolerance.

        Args:
            importance: scores at this step.
            student: the network so far, None: the dense one.
            kept: file that keeps every trial, so that an interrupted loop goes on with the next one.

        Returns:
            The nearest plan that passed, or the last one tried.

        Raises:
            InfeasibleError: no plan meets the limit, and none that was tried passed.
            UndecidedError: whether one does was not found out in the time, and none that was tried passed.
        """
        run, request = self.rig.run, self.rig.request
        trials = [trial_from_json(data) for data in store.read_json(kept)] if kept.exists() else []
        log: list[dict[str, Any]] = list(run.record.get("round_log", []))
        log += [dict(t.row) for t in trials if t.row["round"] > len(log)]
        dense = self.rig.dense_latency()
        pace, limit_ms = dense.estimate / self._dense_ms, aim.limit_of(request.budget, dense)
        if trials:
            pace, limit_ms = trials[-1].pace, trials[-1].row["limit_ms"]
        while len(log) < request.rounds and not any(near(t, request.budget.tolerance) for t in trials):
            delta_ms = aim.learned_delta(row["delta_ms"] for row in log)
            target_ms = aim.table_limit_ms(limit_ms, pace, delta_ms)
            try:
                plan = self.chosen(importance, target_ms, student, request.constraints)
            except InfeasibleError as error:
                if not any(t.passed for t in trials):
                    raise self._on_device(error, pace, limit_ms * aim.AIM, delta_ms) from error
                break
            except UndecidedError:
                if not any(t.passed for t in trials):
                    raise
                break
            if any(t.plan.widths == plan.widths and t.plan.variants == plan.variants for t in trials):
                break
            window = self._tried(plan)
            pace, limit_ms = window.dense.estimate / self._dense_ms, window.limit_ms
            log.append(aim.round_row(len(log) + 1, window, plan, pace, delta_ms))
            log[-1]["delta_ms"] = aim.delta_of(window, pace, plan.predicted_ms)
            trials.append(Trial(plan, window.close, pace, log[-1]))
            store.write_json(kept, trials)
            run.update(round_log=log)
        if trials:
            best = max((t for t in trials if t.passed), key=lambda t: t.close, default=trials[-1])
            run.update(chosen_round=best.row["round"])
            return best.plan
        run.update(chosen_round=len(log) + 1)
        delta_ms = aim.learned_delta(row["delta_ms"] for row in log)
        return self.chosen(importance, aim.table_limit_ms(limit_ms, pace, delta_ms), student, request.constraints)

    def chosen(
        self, importance: Importance, limit_ms: float, student: Student | None, constraints: Constraints
    ) -> Plan:
        """The solver's plan, or where several are asked for the one of least loss on calibration data.

        Args:
            importance: scores at this step.
            limit_ms: in the table's milliseconds.
            student: the network so far, None: the dense one.
            constraints: what is forbidden and demanded.

        Raises:
            InfeasibleError: no plan meets the limits.
        """
        rig, ways = self.rig, self.tables.ways(self.subject, self.table)
        asked = (self.subject, self.table, importance, limit_ms, student, constraints)
        if rig.request.refine == 1:
            with rig.stage("solve"):
                return plan_for(*asked, ways)
        with rig.stage("solve"):
            plans = plans_for(*asked, rig.request.refine, ways)
        with rig.stage("refine") as tell:
            plan, tried = refined(self.subject, student, plans, rig.task, rig.request, tell, importance)
        before = (other for other in rig.run.record.get("refined", []) if not same_choice(other, tried))
        rig.run.update(refined=[*before, tried])
        return plan

    def _tried(self, plan: Plan) -> aim.Window:
        """Builds a plan, untrained, and times it by the short protocol."""
        with self.rig.stage("measure rounds") as tell:
            return self.rig.window(self.subject.build_plan(plan.kept, plan.variants), tell)

    @property
    def _dense_ms(self) -> float:
        return self.table.predict(self.subject.widths)

    def _on_device(
        self, error: InfeasibleError, pace: float, limit_ms: float, delta_ms: float = 0.0
    ) -> InfeasibleError:
        return on_device(error, self.subject.regions, self.subject.widths, pace, limit_ms, delta_ms)


def near(trial: Trial, tolerance: float) -> bool:
    """Whether a trial passed and its upper bound is within a tolerance of the limit."""
    return trial.passed and trial.close >= 1 - tolerance


def same_choice(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two trials of plans are of one choice: a run that was stopped behind it makes it again."""
    (limit_a, plans_a), (limit_b, plans_b) = ((t["limit_ms"], [p["objective"] for p in t["plans"]]) for t in (a, b))
    return bool(limit_a == limit_b and plans_a == plans_b)


__all__ = ["Planner"]
