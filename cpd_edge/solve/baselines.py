"""What the literature does instead of an exact choice; here only to compare with, under the same signature.

Each takes a problem and returns a solution inside its limit. Where a method's own moves do not reach the
limit it returns the fastest plan, and where not even that fits it raises `InfeasibleError` like `solve`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from cpd_edge.solve import milp
from cpd_edge.solve.problem import Problem, RegionCost, Solution, solution


def uniform(problem: Problem) -> Solution:
    """The largest one share of its dense width that every group can keep; branches stay."""
    started = time.perf_counter()
    shares = np.unique(np.concatenate([c / c[-1] for c in problem.candidates.values()]))[::-1]
    for share in shares:
        choice = {
            g: max(int(np.searchsorted(c, share * c[-1] + 1e-9)) - 1, 0) if c[0] else len(c) - 1
            for g, c in problem.candidates.items()
        }
        if problem.latency_ms(choice) <= problem.limit_ms:
            return _done(problem, choice, started, "uniform")
    return _done(problem, None, started, "uniform")


def greedy(problem: Problem) -> Solution:
    """From dense, again and again the cut that saves most latency per expected loss."""
    started = time.perf_counter()
    choice = dict(problem.dense)
    now = problem.latency_ms(choice)
    while now > problem.limit_ms:
        best: tuple[float, str, int, float] | None = None
        for group, at in choice.items():
            for i in range(at):
                ms = problem.latency_ms({**choice, group: i})
                loss = float(problem.loss[group][i] - problem.loss[group][at])
                rate = (now - ms) / max(loss, 1e-300)
                if ms < now and (best is None or rate > best[0]):
                    best = rate, group, i, ms
        if best is None:
            return _done(problem, None, started, "greedy")
        choice[best[1]], now = best[2], best[3]
    return _done(problem, choice, started, "greedy")


def knapsack(problem: Problem) -> Solution:
    """Each group's saving with all others dense, as in HALP (arXiv 2110.10811), chosen exactly as if they added up.

    The additive limit is bisected until the true latency fits.
    """
    started = time.perf_counter()
    dense = problem.dense
    base = problem.latency_ms(dense)
    costs = tuple(
        RegionCost(g, (g,), np.asarray([problem.latency_ms({**dense, g: i}) - base for i in range(len(c))]))
        for g, c in problem.candidates.items()
    )
    additive = replace(problem, costs=costs, fixed_ms=base, sums={})
    low, high = float(base + sum(c.ms.min() for c in costs)), max(problem.limit_ms, base)
    best: Mapping[str, int] | None = None
    for step in range(9):
        limit = high if step == 0 else (low + high) / 2
        choice = _additive(replace(additive, limit_ms=limit))
        if choice is not None and problem.latency_ms(choice) <= problem.limit_ms:
            low = limit
            if best is None or problem.removed(choice) < problem.removed(best):
                best = choice
            if step == 0:
                break
        else:
            high = limit
    return _done(problem, best, started, "knapsack")


def random(problem: Problem, *, draws: int = 200, seed: int = 0) -> Solution:
    """The best of some drawn plans that fit; branches stay."""
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    best: dict[str, int] | None = None
    for _ in range(draws):
        share = rng.uniform(0, 1)
        least = {g: int(share * len(c)) if c[0] else len(c) - 1 for g, c in problem.candidates.items()}
        choice = {g: int(rng.integers(least[g], len(c))) for g, c in problem.candidates.items()}
        if problem.latency_ms(choice) <= problem.limit_ms and (
            best is None or problem.removed(choice) < problem.removed(best)
        ):
            best = choice
    return _done(problem, best, started, "random")


BASELINES: Mapping[str, Callable[[Problem], Solution]] = {
    "uniform": uniform,
    "greedy": greedy,
    "knapsack": knapsack,
    "random": random,
}
"""The baselines by name."""


def _additive(problem: Problem) -> Mapping[str, int] | None:
    """Least loss where costs add up by group: a knapsack by dynamic programming over 2,000 latency steps.

    Costs are rounded to the nearest step, so the result is a heuristic, as the method itself is.
    """
    steps = 2000
    least = {c.name: float(c.ms.min()) for c in problem.costs}
    room = problem.limit_ms - problem.fixed_ms - sum(least.values())
    if room < 0:
        return None
    unit = room / steps or 1.0
    value = np.zeros(steps + 1)
    picks: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    takes: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    for cost in problem.costs:
        take = np.round((cost.ms - least[cost.name]) / unit).astype(np.int64)
        table = np.full((len(take), steps + 1), np.inf)
        for i, t in enumerate(take):
            if t <= steps:
                table[i, t:] = value[: steps + 1 - t] + problem.loss[cost.name][i]
        picks.append(table.argmin(axis=0))
        takes.append(take)
        value = table.min(axis=0)
    choice, left = {}, steps
    for cost, pick, take in zip(problem.costs[::-1], picks[::-1], takes[::-1], strict=True):
        i = int(pick[left])
        choice[cost.name] = i
        left -= int(take[i])
    return choice


def _done(problem: Problem, choice: Mapping[str, int] | None, started: float, strategy: str) -> Solution:
    if choice is None:
        least = milp.floor(problem)
        if least.latency_ms > problem.limit_ms:
            raise milp.infeasible(problem, least)
        choice = least.choice
    return solution(problem, choice, bound=0.0, seconds=time.perf_counter() - started, strategy=strategy)
