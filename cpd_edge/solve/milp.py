"""The exact choice, with its certificate: the linear program of a problem, solved by HiGHS."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from cpd_edge.errors import UndecidedError
from cpd_edge.solve.infeasible import infeasible
from cpd_edge.solve.problem import Floats, Ints, Load, Problem, Solution, solution
from cpd_edge.solve.program import OPTIMAL, SCALE, Program, lower_bound

Apart: TypeAlias = Sequence[tuple[Mapping[str, int], int]]
"""Choices that are not wanted, and in how many groups at least a plan must differ from each."""


def solve(problem: Problem, *, gap: float = 1e-4, time_limit_s: float = 60.0) -> Solution:
    """The plan of least removed importance inside every limit, proven to within `gap` where time allows.

    Among plans of equal loss it takes the faster, as far as changes of one group at a time reach.

    Args:
        problem: candidates, losses, resources and their limits.
        gap: relative gap at which the search stops.
        time_limit_s: time after which the best plan found so far is returned, with its gap [s].

    Raises:
        InfeasibleError: no plan meets the limits; names the resource that binds, its floor and what holds it up.
        UndecidedError: neither a plan nor a proof that there is none was found in the time.
    """
    started = time.perf_counter()
    choice, bound = _optimum(problem, gap, time_limit_s, ())
    if choice is None:
        choice = reach(problem, time_limit_s=time_limit_s, proven=bound == np.inf)
    choice = _faster(problem, choice)
    return solution(problem, choice, bound=bound, seconds=time.perf_counter() - started, strategy="milp")


def best(
    problem: Problem, count: int, *, differ: int, gap: float = 1e-4, time_limit_s: float = 60.0
) -> tuple[Solution, ...]:
    """The best plan, the best of those that differ from it, and so on: fewer than `count` where there are no more.

    Args:
        problem: candidates, losses, resources and their limits.
        count: most plans.
        differ: in how many groups at least each must differ from every one before it.
        gap: relative gap at which each search stops.
        time_limit_s: most time of each search [s].

    Raises:
        InfeasibleError, UndecidedError: see `solve`.
    """
    found = [solve(problem, gap=gap, time_limit_s=time_limit_s)]
    while len(found) < count:
        started = time.perf_counter()
        choice, bound = _optimum(problem, gap, time_limit_s, [(f.choice, differ) for f in found])
        if choice is None:
            break
        seconds = time.perf_counter() - started
        found.append(solution(problem, choice, bound=bound, seconds=seconds, strategy="milp"))
    return tuple(found)


def _optimum(problem: Problem, gap: float, time_limit_s: float, apart: Apart) -> tuple[dict[str, int] | None, float]:
    """The best choice that was found, or None, and a proven lower bound of its loss: infinite where there is none."""
    small, original = _undominated(problem)
    if apart:  # a candidate that another one beats still makes another plan
        small, original = problem, {g: np.arange(len(c)) for g, c in problem.candidates.items()}
    program = Program.of(small)
    span = sum(float(np.ptp(v)) for v in small.loss.values()) or 1.0
    bound = 0.0
    for margin in (0.0, 1e-6, 1e-4):
        found = program.run(
            program.loss * (SCALE / span), small.limits, margin=margin, gap=gap, time_limit_s=time_limit_s, apart=apart
        )
        if margin == 0.0:
            bound = lower_bound(found) * span / SCALE
        if found.x is None:
            break
        choice = program.choice(found.x)
        if small.fits(choice):
            return {g: int(original[g][i]) for g, i in choice.items()}, bound
    return None, bound


def reach(problem: Problem, *, time_limit_s: float = 60.0, proven: bool = False) -> dict[str, int]:
    """The choice that is furthest inside the limits, whatever it removes.

    Args:
        problem: its losses do not count.
        time_limit_s: most time [s].
        proven: that none is inside was proven already, up to rounding.

    Raises:
        InfeasibleError: none is inside.
        UndecidedError: none was found in the time, and whether there is one is not known.
    """
    bound = np.flatnonzero(np.isfinite(problem.limits))
    if not len(bound):
        return dict(problem.dense)
    program = Program.of(problem)
    worst = np.zeros(len(program.loss))
    worst[-1] = SCALE
    peaks = {int(at): float(problem.limits[at]) for at in bound}
    everything = np.full(len(problem.limits), np.inf)
    found = program.run(worst, everything, gap=1e-9, time_limit_s=time_limit_s, peaks=peaks)
    choice = program.choice(found.x) if found.x is not None else None
    if choice is not None and problem.fits(choice):
        return choice
    if proven or found.status == OPTIMAL or lower_bound(found) > SCALE:
        raise infeasible(problem, time_limit_s=time_limit_s)
    raise UndecidedError(time_limit_s)


def _undominated(problem: Problem) -> tuple[Problem, dict[str, Ints]]:
    """The problem without candidates that another one beats in loss and in every cost; and the indices left.

    Candidates of groups that take part in a sum all stay.
    """
    left = {g: np.arange(len(c)) for g, c in problem.candidates.items()}
    summed = {g for s in problem.sums.values() for g, _ in s.parts}
    branches = {d for r in problem.resources for load in r.loads for c in load.costs for d in c.within}
    loads = [load for resource in problem.resources for load in resource.loads]
    for group in problem.groups:
        if group in summed or group in branches or len(left[group]) < 2:
            continue
        rows = [problem.loss[group][:, None]]
        rows += [
            np.moveaxis(c.grid, c.groups.index(group), 0).reshape(c.grid.shape[c.groups.index(group)], -1)
            for load in loads
            for c in load.costs
            if group in c.groups
        ]
        left[group] = _front(np.concatenate(rows, axis=1))
        loads = [_only(load, group, left[group]) for load in loads]
    pieces = iter(loads)
    return (
        replace(
            problem,
            candidates={g: c[left[g]] for g, c in problem.candidates.items()},
            loss={g: v[left[g]] for g, v in problem.loss.items()},
            resources=tuple(replace(r, loads=tuple(next(pieces) for _ in r.loads)) for r in problem.resources),
        ),
        left,
    )


def _only(load: Load, group: str, stay: Ints) -> Load:
    """A load over some of a group's candidates."""
    return replace(
        load,
        costs=tuple(
            replace(c, grid=np.take(c.grid, stay, axis=c.groups.index(group))) if group in c.groups else c
            for c in load.costs
        ),
    )


def _front(rows: Floats) -> Ints:
    """Indices of rows that no other row beats or equals in every column; of equal rows the first stays."""
    stay: list[int] = []
    order = np.lexsort(rows.T[::-1])
    for i in order:
        if not any((rows[j] <= rows[i]).all() for j in stay):
            stay.append(int(i))
    return np.asarray(sorted(stay), np.int64)


def _faster(problem: Problem, choice: dict[str, int]) -> dict[str, int]:
    """Changes one group at a time to a candidate of no more loss while that makes the plan faster."""
    improved = True
    while improved:
        improved = False
        for group, loss in problem.loss.items():
            now = loss[choice[group]]
            for i in np.argsort(problem.moved(choice, group)[:, 0]):
                other = {**choice, group: int(i)}
                if loss[i] <= now and problem.latency_ms(other) < problem.latency_ms(choice) and problem.fits(other):
                    choice, improved = other, True
                    break
    return choice
