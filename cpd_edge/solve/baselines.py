"""What the literature does instead of an exact choice; here only to compare with, under the same signature.

Each takes a problem and returns a solution inside its limits. Where a method's own moves do not reach them it returns
the plan that is furthest inside, and where not even that fits it raises `InfeasibleError` like `solve`. Methods made
for one limit see several as one: the sum of what is over, each in units of its limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from cpd_edge.solve.milp import reach
from cpd_edge.solve.problem import Floats, Ints, Problem, Solution, solution

NETADAPT_STEPS = 100
"""Iterations in which NetAdapt goes from dense to the limit, where its cuts are as small as it asks for."""


def uniform(problem: Problem) -> Solution:
    """The largest one share of its dense width that every group can keep; branches and variants stay."""
    started = time.perf_counter()
    shares = np.unique(np.concatenate([c / c[-1] for c in problem.candidates.values() if c[0]] or [np.ones(1)]))[::-1]
    for share in shares:
        choice = {
            g: max(int(np.searchsorted(c, share * c[-1] + 1e-9)) - 1, 0) if c[0] else len(c) - 1
            for g, c in problem.candidates.items()
        }
        if problem.fits(choice):
            return _done(problem, choice, started, "uniform")
    return _done(problem, None, started, "uniform")


def greedy(problem: Problem) -> Solution:
    """From dense, again and again the cut that saves most per expected loss of what is over its limit."""
    started = time.perf_counter()
    choice = dict(problem.dense)
    while not problem.fits(choice):
        now = problem.loads(choice)
        best: tuple[float, str, int] | None = None
        for group, at in choice.items():
            saved = _saved(problem, now, problem.moved(choice, group)[:at])
            loss = np.maximum(problem.loss[group][:at] - problem.loss[group][at], 1e-300)
            for i in np.flatnonzero(saved > 1e-12):
                if best is None or saved[i] / loss[i] > best[0]:
                    best = float(saved[i] / loss[i]), group, int(i)
        if best is None:
            return _done(problem, None, started, "greedy")
        choice[best[1]] = best[2]
    return _done(problem, choice, started, "greedy")


def netadapt(problem: Problem) -> Solution:
    """In equal steps: each group proposes its smallest cut that saves a step's worth; the least loss wins.

    After NetAdapt (arXiv 1804.03230): the decrement is fixed, and every proposal changes one group. Where none saves
    as much, the one that saves most is taken. What the paper finds out by short fine-tuning, which proposal hurts
    least, is the expected loss here, as for all strategies.
    """
    started = time.perf_counter()
    choice = dict(problem.dense)
    step = float(_over(problem, problem.loads(choice))) / NETADAPT_STEPS
    while not problem.fits(choice):
        now = problem.loads(choice)
        proposals: list[tuple[bool, float, str, int]] = []
        for group, at in choice.items():
            saved = _saved(problem, now, problem.moved(choice, group)[:at])
            if not (saved > 1e-12).any():
                continue
            enough = np.flatnonzero(saved >= step)
            i = int(enough[-1]) if len(enough) else int(saved.argmax())
            lost = float(problem.loss[group][i] - problem.loss[group][at])
            proposals.append((not len(enough), lost if len(enough) else -float(saved[i]), group, i))
        if not proposals:
            return _done(problem, None, started, "netadapt")
        _, _, group, i = min(proposals)
        choice[group] = i
    return _done(problem, choice, started, "netadapt")


def knapsack(problem: Problem) -> Solution:
    """Each group's saving with all others dense, as in HALP (arXiv 2110.10811), chosen exactly as if they added up.

    The additive limit is bisected until the true loads fit.
    """
    started = time.perf_counter()
    if problem.fits(problem.dense):
        return _done(problem, problem.dense, started, "knapsack")
    dense = problem.loads(problem.dense)
    over = dense > problem.limits
    weights = np.where(over, 1 / problem.limits, 0.0)
    costs = {g: (problem.moved(problem.dense, g) - dense) @ weights for g in problem.groups}
    base = float(dense @ weights)
    low, high = base + sum(float(c.min()) for c in costs.values()), max(float(over.sum()), base)
    best: Mapping[str, int] | None = None
    for step in range(9):
        limit = high if step == 0 else (low + high) / 2
        choice = _additive(costs, problem.loss, limit - base)
        if choice is not None and problem.fits(choice):
            low = limit
            if best is None or problem.removed(choice) < problem.removed(best):
                best = choice
            if step == 0:
                break
        else:
            high = limit
    return _done(problem, best, started, "knapsack")


def random(problem: Problem, *, draws: int = 200, seed: int = 0) -> Solution:
    """The best of some drawn plans that fit; branches and variants stay."""
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    best: dict[str, int] | None = None
    for _ in range(draws):
        share = rng.uniform(0, 1)
        least = {g: int(share * len(c)) if c[0] else len(c) - 1 for g, c in problem.candidates.items()}
        choice = {g: int(rng.integers(least[g], len(c))) for g, c in problem.candidates.items()}
        if (best is None or problem.removed(choice) < problem.removed(best)) and problem.fits(choice):
            best = choice
    return _done(problem, best, started, "random")


BASELINES: Mapping[str, Callable[[Problem], Solution]] = {
    "uniform": uniform,
    "greedy": greedy,
    "netadapt": netadapt,
    "knapsack": knapsack,
    "random": random,
}
"""The baselines by name."""


def _saved(problem: Problem, now: Floats, then: Floats) -> Floats:
    """What moves save of the loads that are over their limits, in units of these `[moves]`."""
    over = now > problem.limits
    return np.asarray(((now - then)[:, over] / problem.limits[over]).sum(axis=1), np.float64)


def _over(problem: Problem, loads: Floats) -> float:
    """By how much loads are over their limits, in units of these."""
    over = loads > problem.limits
    return float((loads[over] / problem.limits[over] - 1).sum())


def _additive(costs: Mapping[str, Floats], loss: Mapping[str, Floats], limit: float) -> Mapping[str, int] | None:
    """Least loss where costs add up by group: a knapsack by dynamic programming over 2,000 steps of the limit.

    Costs are rounded to the nearest step, so the result is a heuristic, as the method itself is.
    """
    steps = 2000
    room = limit - sum(float(c.min()) for c in costs.values())
    if room < 0:
        return None
    unit = room / steps or 1.0
    value = np.zeros(steps + 1)
    picks: dict[str, tuple[Ints, Ints]] = {}
    for group, cost in costs.items():
        take = np.round((cost - cost.min()) / unit).astype(np.int64)
        table = np.full((len(take), steps + 1), np.inf)
        for i, t in enumerate(take):
            if t <= steps:
                table[i, t:] = value[: steps + 1 - t] + loss[group][i]
        picks[group] = table.argmin(axis=0), take
        value = table.min(axis=0)
    choice, left = {}, steps
    for group, (pick, take) in reversed(picks.items()):
        choice[group] = int(pick[left])
        left -= int(take[choice[group]])
    return choice


def _done(problem: Problem, choice: Mapping[str, int] | None, started: float, strategy: str) -> Solution:
    choice = reach(problem) if choice is None else choice
    return solution(problem, choice, bound=0.0, seconds=time.perf_counter() - started, strategy=strategy)
