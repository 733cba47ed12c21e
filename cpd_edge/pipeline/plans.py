"""Plans for a network on its table: under a user's constraints and limits, and one step away from what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cpd_edge.errors import InfeasibleError, UndecidedError
from cpd_edge.layout import Widths, axes
from cpd_edge.pipeline.quantities import counted
from cpd_edge.pipeline.steps import Student
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.table import LatencyTable
from cpd_edge.solve.constraints import allowed, tied, ties, untied
from cpd_edge.solve.infeasible import FLAGS
from cpd_edge.solve.milp import best, solve
from cpd_edge.solve.pose import Elsewhere, plan_from, problem_from
from cpd_edge.solve.problem import LATENCY, Problem, Solution
from cpd_edge.solve.ways import PLAIN, Ways
from cpd_edge.types import Constraints, Groups, Importance, Plan, Quantity, Region

TRUST = 0.4
"""Least share of a group's units that one step leaves."""
APART = 0.1
"""Share of the groups in which two of the best plans differ, at least."""
SOLVE_S = 20.0
"""Longest time of one search [s]."""


@dataclass(frozen=True)
class Posed:
    """A problem under a user's constraints, and how a solution of it becomes a plan.

    Attributes:
        problem: with one group in place of those that must stay equal.
        classes: the groups that must.
        importance: of the groups that may be cut.
    """

    problem: Problem
    classes: tuple[tuple[str, ...], ...]
    importance: Importance

    def plan(self, found: Solution) -> Plan:
        """The plan that a solution stands for."""
        whole = replace(found, widths=untied(found.widths, self.classes))
        return plan_from(whole, self.importance, self.problem.limit_ms)


def posed(
    table: LatencyTable,
    importance: Importance,
    limit_ms: float,
    groups: Groups,
    constraints: Constraints,
    at_most: Widths | None = None,
    at_least: Widths | None = None,
    *,
    limits: Sequence[tuple[Quantity, float]] = (),
    elsewhere: Sequence[Elsewhere] = (),
    ways: Ways = PLAIN,
) -> Posed:
    """The problem of a limit in the table's milliseconds, under a user's constraints.

    Args:
        table, importance, limit_ms, at_most, at_least, elsewhere, ways: see `problem_from`.
        groups: of the dense network.
        constraints: what is forbidden and demanded.
        limits: quantities and the most that each may be.

    Raises:
        UsageError: a constraint names nothing.
    """
    importance = allowed(importance, groups, constraints)
    least = {
        g: max((at_least or {}).get(g, 1), constraints.min_width) for g, v in importance.by_group.items() if len(v) > 1
    }
    problem = problem_from(
        table,
        importance,
        limit_ms,
        at_most=at_most,
        at_least=least,
        multiple_of=constraints.multiple_of,
        counted=limits,
        elsewhere=elsewhere,
        ways=ways,
    )
    classes = ties(groups, constraints)
    return Posed(tied(problem, classes), classes, importance)


def plan_for(
    subject: Subject,
    table: LatencyTable,
    importance: Importance,
    limit_ms: float,
    student: Student | None,
    constraints: Constraints,
    ways: Ways = PLAIN,
) -> Plan:
    """The best plan inside a limit in the table's milliseconds, nested in the student's own: see `plans_for`.

    Raises:
        InfeasibleError: no plan meets the limits.
    """
    return plans_for(subject, table, importance, limit_ms, student, constraints, 1, ways)[0]


def plans_for(
    subject: Subject,
    table: LatencyTable,
    importance: Importance,
    limit_ms: float,
    student: Student | None,
    constraints: Constraints,
    count: int,
    ways: Ways = PLAIN,
) -> tuple[Plan, ...]:
    """The best plans inside a limit in the table's milliseconds, nested in the student's own, the best first.

    Scores hold near the network that they were taken on, so a step leaves each group `TRUST` of its units, unless
    the limits ask for more.

    Raises:
        InfeasibleError: no plan meets the limits.
    """
    at_most = student.plan.widths if student else subject.widths
    near = {name: max(1, round(n * TRUST)) for name, n in at_most.items() if subject.widths[name] > 1}
    groups, limits = subject.combed.groups, counted(subject, constraints.limits)
    asked = partial(posed, table, importance, limit_ms, groups, constraints, at_most, limits=limits, ways=ways)
    try:
        return best_plans(asked(near), count)
    except (InfeasibleError, UndecidedError):
        return best_plans(asked(), count)


def best_plans(where: Posed, count: int) -> tuple[Plan, ...]:
    """The best plan, and where more are asked for the best that differ from it in a tenth of the groups.

    Raises:
        InfeasibleError: no plan meets the limits.
    """
    if count == 1:
        return (where.plan(solve(where.problem, time_limit_s=SOLVE_S)),)
    differ = max(1, int(np.ceil(APART * len(where.problem.groups))))
    found = best(where.problem, count, differ=differ, gap=1e-3, time_limit_s=SOLVE_S)
    return tuple(where.plan(solution) for solution in found)


def on_device(
    error: InfeasibleError, regions: Sequence[Region], widths: Widths, pace: float, limit_ms: float, delta_ms: float
) -> InfeasibleError:
    """The same error in the device's milliseconds, with the groups that its regions belong to.

    Args:
        error: as the solver raised it, in the table's milliseconds.
        regions: the network's regions.
        widths: units by group.
        pace: the device's milliseconds over the table's.
        limit_ms: what was to be reached on the device [ms].
        delta_ms: what builds took beyond their prediction so far, in the table's milliseconds.
    """
    held = [region for name in error.binding for region in regions if region.name == name]
    groups = tuple(dict.fromkeys(a for r in held for a in axes(r.reads, r.writes, *r.weight) if a in widths))
    if error.resource != LATENCY:
        return InfeasibleError(
            error.what,
            floor_ms=error.floor_ms * pace,
            binding=groups or error.binding,
            hint=error.hint,
            resource=error.resource,
            floor=error.floor,
            beside=error.beside,
        )
    floor_ms = (error.floor_ms + delta_ms) * pace
    beside = f" beside the limit of {' and '.join(error.beside)}" if error.beside else ""
    return InfeasibleError(
        f"no plan reaches {limit_ms:.4g} ms{beside}: the fastest is predicted at {floor_ms:.4g} ms, "
        f"held up by the groups {', '.join(groups) or '(none: no width changes it)'}, "
        f"most of all in {', '.join(r.fqn or r.name for r in held)}",
        floor_ms=floor_ms,
        binding=groups or error.binding,
        hint=f"ask for {FLAGS[LATENCY]} {floor_ms * 1.05:.4g} or more",
        beside=error.beside,
    )


def gone_with(regions: Sequence[Region], widths: Widths) -> dict[str, str]:
    """Groups that leave with a branch, since no region outside it has them, by the branch's name."""
    found: dict[str, str] = {}
    for region in regions:
        branch = next((b for b in region.within if not widths.get(b, 1)), "")
        for group in axes(region.reads, region.writes, *region.weight):
            found[group] = branch if found.get(group, branch) else ""
    return {group: branch for group, branch in found.items() if branch and group in widths}


def remaining(regions: Sequence[Region], widths: Widths) -> dict[str, int]:
    """The widths, 0 of groups that leave with a branch."""
    return {**widths, **dict.fromkeys(gone_with(regions, widths), 0)}
