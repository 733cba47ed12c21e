"""Why no plan meets the limits: the floor of a resource, alone or beside others, and what holds it up."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from cpd_edge.errors import InfeasibleError, UndecidedError
from cpd_edge.solve.problem import LATENCY, Problem, Resource, Solution, solution
from cpd_edge.solve.program import INFEASIBLE, SCALE, Program, lower_bound

PROVEN = 1e-6
"""Largest gap of a floor that is called one."""
SHOWN = 5
"""How many regions are named."""

FLAGS = {
    LATENCY: "--budget-ms",
    "MACs": "--max-macs",
    "parameters": "--max-params",
    "file size": "--max-size-mb",
    "peak memory": "--max-memory-mb",
}
"""What a resource's limit is typed as, by its name."""


def floor(
    problem: Problem, name: str = LATENCY, *, beside: Collection[str] = (), time_limit_s: float = 60.0
) -> Solution:
    """The plan that takes least of a resource, whatever it removes; its bound and gap are those of what it takes.

    Args:
        problem: the limits of it count only for `beside`.
        name: the resource.
        beside: resources whose limits hold.
        time_limit_s: most time [s].

    Raises:
        InfeasibleError: the limits of `beside` exclude each other.
        UndecidedError: no plan was found in the time.
    """
    started = time.perf_counter()
    program, span = Program.of(problem), problem.span(name)
    limits = np.full(len(problem.limits), np.inf)
    for other in beside:
        limits[problem.span(other)] = problem.limits[problem.span(other)]
    cost, peaks = np.zeros(len(program.loss)), None
    if span.stop - span.start == 1:
        load = program.loads[[span.start]].toarray()[0]
        unit, fixed = (float(load.max()) or 1.0) / SCALE, float(program.fixed[span.start])
        cost = load / unit
    else:
        cost[-1] = SCALE
        top = float(problem.loads(problem.dense)[span].max(initial=1.0))
        unit, fixed = top / SCALE, 0.0
        peaks = dict.fromkeys(range(span.start, span.stop), top)
    found = program.run(cost, limits, gap=1e-9, time_limit_s=time_limit_s, peaks=peaks)
    if found.status == INFEASIBLE:
        raise infeasible(problem, time_limit_s=time_limit_s)
    if found.x is None:
        raise UndecidedError(time_limit_s)
    seconds = time.perf_counter() - started
    least = solution(problem, program.choice(found.x), bound=0.0, seconds=seconds, strategy="floor")
    used, bend = least.used[name], next(r for r in problem.resources if r.name == name).loads[0].bend
    bound = min(float(bend.whole(max(lower_bound(found) * unit + fixed, 0.0))), used)
    return replace(least, bound=bound, gap=(used - bound) / (used or 1.0))


def infeasible(problem: Problem, *, time_limit_s: float = 60.0) -> InfeasibleError:
    """The error that names the resource that binds, its floor, and the regions that hold it up, worst first.

    That no plan meets the limits has been proven. Where each limit can be met alone, it names limits that exclude each
    other: the rest could go and still no plan would be left, and without any one of them there would be one.
    """
    limited = [r for r in problem.resources if np.isfinite(r.limit)]
    alone = {r.name: floor(problem, r.name, time_limit_s=time_limit_s) for r in limited}
    for resource in limited:
        if len(limited) == 1 or alone[resource.name].bound > resource.limit:
            return _error(problem, resource, alone[resource.name], ())
    together = [r.name for r in limited]
    for name in [r.name for r in limited[::-1]]:
        rest = [n for n in together if n != name]
        if not _meets(problem, rest, time_limit_s):
            together = rest
    resource = next(r for r in limited if r.name == together[0])
    others = tuple(r for r in limited if r.name in together[1:])
    least = floor(problem, resource.name, beside=together[1:], time_limit_s=time_limit_s)
    return _error(problem, resource, least, others)


def _meets(problem: Problem, names: Collection[str], time_limit_s: float) -> bool:
    """Whether some plan is inside the limits of these resources, as far as the time tells."""
    if len(names) < 2:
        return True
    program = Program.of(problem)
    limits = np.full(len(problem.limits), np.inf)
    for name in names:
        limits[problem.span(name)] = problem.limits[problem.span(name)]
    return bool(
        program.run(np.zeros(len(program.loss)), limits, gap=1.0, time_limit_s=time_limit_s).status != INFEASIBLE
    )


def _error(problem: Problem, resource: Resource, least: Solution, others: tuple[Resource, ...]) -> InfeasibleError:
    shares = problem.shares(least.choice, resource)
    worst = tuple(sorted(shares, key=lambda name: -shares[name])[:SHOWN])
    named = ", ".join(f"{name} ({resource.said(shares[name])})" for name in worst)
    reached = least.used[resource.name]
    found = "" if least.gap <= PROVEN else " that was found"
    what = f"the fastest{found} is predicted at" if resource.unit == "ms" else f"the least of all{found} is"
    where = f" on {resource.name}" if resource.unit == "ms" and resource.name != LATENCY else ""
    beside = "".join(f" beside {o.name} of {o.said(o.limit)}" for o in others)
    flag = FLAGS.get(resource.name)
    more = resource.typed(reached * 1.05)
    return InfeasibleError(
        f"no plan reaches {resource.said(resource.limit)}{where}{beside}: {what} {resource.said(reached)}, "
        f"held up by {named or 'what no width changes'}",
        floor_ms=least.latency_ms,
        binding=worst,
        hint=f"ask for {flag} {more} or more" if flag else f"allow {resource.name} {resource.said(reached * 1.05)}",
        resource=resource.name,
        floor=reached,
        beside=tuple(o.name for o in others),
    )
