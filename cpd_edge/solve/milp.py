"""The exact choice: one-hot widths, products of one-hots linearised by local marginals, solved by HiGHS.

For a grid `T[a, b]` a variable `y[a, b] >= 0` stands for the product of two one-hots. With
`Σ_b y[a, b] = x[a]` and `Σ_a y[a, b] = z[b]` it equals the product wherever `x` and `z` are one-hot, so the
linearisation is exact; grids over three groups work alike. Within a branch that may go, `Σ_b y[a, b] <= x[a]`, and
all cells together are one if the branch stays. A sum is one more one-hot, tied to the widths by the edges of its bins.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from cpd_edge.errors import CpdError, InfeasibleError
from cpd_edge.solve.problem import Floats, Ints, Problem, RegionCost, Solution, solution

SCALE = 1e3
"""Limit and loss are scaled to this, so that the solver's tolerance of 1e-6 is 1e-9 of either."""


def solve(problem: Problem, *, gap: float = 1e-4, time_limit_s: float = 60.0) -> Solution:
    """The plan of least removed importance inside the limit, proven to within `gap` where time allows.

    Among plans of equal loss it takes the faster, as far as changes of one group at a time reach.

    Args:
        problem: candidates, losses, costs and the limit.
        gap: relative gap at which the search stops.
        time_limit_s: time after which the best plan found so far is returned, with its gap [s].

    Raises:
        InfeasibleError: no plan meets the limit; names the floor and what holds it up.
    """
    started = time.perf_counter()
    small, original = _undominated(problem)
    model = _Model.of(small)
    span = sum(float(np.ptp(v)) for v in small.loss.values()) or 1.0
    choice, bound = None, 0.0
    for margin in (0.0, 1e-6, 1e-4):
        found = model.run(model.loss * (SCALE / span), small.limit_ms, margin, gap, time_limit_s)
        if margin == 0.0 and found.mip_dual_bound is not None:
            bound = float(found.mip_dual_bound) * span / SCALE
        choice = None if found.x is None else model.choice(found.x)
        if choice is None or small.latency_ms(choice) <= small.limit_ms:
            break
    if choice is None or small.latency_ms(choice) > small.limit_ms:
        least = floor(problem, time_limit_s=time_limit_s)
        if least.latency_ms > problem.limit_ms:
            raise infeasible(problem, least)
        choice = dict(least.choice)
    else:
        choice = {g: int(original[g][i]) for g, i in choice.items()}
    seconds = time.perf_counter() - started
    return solution(problem, _faster(problem, choice), bound=bound, seconds=seconds, strategy="milp")


def floor(problem: Problem, *, time_limit_s: float = 60.0) -> Solution:
    """The fastest plan of all, whatever it removes."""
    started = time.perf_counter()
    model = _Model.of(problem)
    top = float(model.ms.max()) or 1.0
    found = model.run(model.ms * (SCALE / top), np.inf, 0.0, 1e-9, time_limit_s)
    if found.x is None:
        raise CpdError(f"the fastest plan was not found in {time_limit_s} s", hint="give the solver more time")
    seconds = time.perf_counter() - started
    return solution(problem, model.choice(found.x), bound=0.0, seconds=seconds, strategy="floor")


def infeasible(problem: Problem, least: Solution) -> InfeasibleError:
    """The error that names the floor, and the regions that hold it up, worst first."""
    by_region = problem.region_ms(least.choice)
    worst = tuple(sorted(by_region, key=lambda name: -by_region[name])[:5])
    named = ", ".join(f"{name} ({by_region[name]:.4g} ms)" for name in worst)
    return InfeasibleError(
        f"no plan reaches {problem.limit_ms:.4g} ms: the fastest is predicted at {least.latency_ms:.4g} ms, "
        f"held up by {named or 'what no width changes'}",
        floor_ms=least.latency_ms,
        binding=worst,
        hint=f"ask for --budget-ms {least.latency_ms * 1.05:.4g} or more",
    )


def _undominated(problem: Problem) -> tuple[Problem, dict[str, Ints]]:
    """The problem without candidates that another one beats in loss and in every cost; and the indices left.

    Candidates of groups that take part in a sum all stay.
    """
    left = {g: np.arange(len(c)) for g, c in problem.candidates.items()}
    summed = {g for s in problem.sums.values() for g, _ in s.parts}
    branches = {d for c in problem.costs for d in c.within}
    costs = list(problem.costs)
    for group in problem.groups:
        if group in summed or group in branches or len(left[group]) < 2:
            continue
        rows = [problem.loss[group][:, None]]
        rows += [
            np.moveaxis(c.ms, c.groups.index(group), 0).reshape(c.ms.shape[c.groups.index(group)], -1)
            for c in costs
            if group in c.groups
        ]
        stay = _front(np.concatenate(rows, axis=1))
        left[group] = stay
        costs = [
            replace(c, ms=np.take(c.ms, stay, axis=c.groups.index(group))) if group in c.groups else c for c in costs
        ]
    return (
        replace(
            problem,
            candidates={g: c[left[g]] for g, c in problem.candidates.items()},
            loss={g: v[left[g]] for g, v in problem.loss.items()},
            costs=tuple(costs),
        ),
        left,
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
    best = problem.latency_ms(choice)
    improved = True
    while improved:
        improved = False
        for group, loss in problem.loss.items():
            for i in np.flatnonzero(loss <= loss[choice[group]]):
                ms = problem.latency_ms({**choice, group: int(i)})
                if ms < best:
                    choice, best, improved = {**choice, group: int(i)}, ms, True
    return choice


_Key = tuple[tuple[str, ...], tuple[str, ...]]
"""Groups of a grid, and the branches that it stands within."""


def _merged(costs: Sequence[RegionCost], sizes: Mapping[str, int]) -> dict[_Key, Floats]:
    """Grids summed over regions that touch the same groups; grids inside a larger one's groups join it.

    What is left is split into parts per group and the rest, and a rest of zero is dropped; not within branches.
    """
    order = {name: i for i, name in enumerate(sizes)}
    grids: dict[_Key, Floats] = {}
    for cost in sorted(costs, key=lambda c: -len(c.groups)):
        key = tuple(sorted(cost.groups, key=order.__getitem__))
        ms = np.transpose(cost.ms, [cost.groups.index(g) for g in key])
        joins = len(key) > 1 or cost.within
        home = next((k for k, w in grids if joins and w == cost.within and set(key) <= set(k)), key)
        shape = tuple(sizes[g] if g in key else 1 for g in home)
        at = home, cost.within
        grids[at] = grids.get(at, np.zeros([sizes[g] for g in home])) + ms.reshape(shape)
    out: dict[_Key, Floats] = {((name,), ()): np.zeros(n) for name, n in sizes.items()}
    for (key, within), grid in grids.items():
        if within:
            out[key, within] = grid
            continue
        rest = grid.copy()
        for dim, name in enumerate(key):
            share = rest.min(axis=tuple(d for d in range(rest.ndim) if d != dim))
            out[(name,), ()] = out[(name,), ()] + share
            rest -= share.reshape([-1 if d == dim else 1 for d in range(rest.ndim)])
        if len(key) > 1 and rest.max() > 1e-12 * max(float(np.abs(grid).max()), 1e-300):
            out[key, ()] = rest
    return out


@dataclass(frozen=True)
class _Model:
    """The linear program: columns, their loss and latency, and the rows that tie them.

    Attributes:
        offsets: first column of each one-hot.
        sizes: number of candidates by group.
        loss, ms: by column.
        integral: which columns are whole numbers.
        rows: constraint matrix; `low`, `high`: its bounds.
        fixed_ms: what no column changes [ms].
    """

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    loss: Floats
    ms: Floats
    integral: npt.NDArray[np.bool_]
    rows: sparse.csr_array
    low: Floats
    high: Floats
    fixed_ms: float

    @classmethod
    def of(cls, problem: Problem) -> _Model:
        """Builds the columns and rows of a problem."""
        sizes = {g: len(c) for g, c in problem.candidates.items()}
        sizes |= {name: len(s.lower) for name, s in problem.sums.items()}
        grids = _merged(problem.costs, sizes)
        starts = np.concatenate([[0], np.cumsum([grid.size for grid in grids.values()])]).astype(int)
        offsets = {key: int(start) for key, start in zip(grids, starts, strict=False)}
        columns = int(starts[-1])
        first = {name: offsets[(name,), ()] for name in sizes}
        onehot = sum(sizes.values())
        loss = np.zeros(columns)
        for group, values in problem.loss.items():
            loss[first[group] : first[group] + sizes[group]] = values
        rows = _Rows(columns)
        for name, n in sizes.items():
            rows.add(np.zeros(n, int), first[name] + np.arange(n), np.ones(n), [1.0], [1.0])
        for name in problem.sums:
            _tie(rows, problem, first, name)
        for (key, within), grid in grids.items():
            if len(key) > 1 or within:
                _marginals(rows, key, within, grid, offsets[key, within], first)
        matrix, low, high = rows.built()
        return cls(
            offsets=first, sizes={g: sizes[g] for g in problem.candidates}, loss=loss,
            ms=np.concatenate([grid.reshape(-1) for grid in grids.values()]) if grids else np.zeros(0),
            integral=np.arange(columns) < onehot, rows=matrix, low=low, high=high, fixed_ms=problem.fixed_ms,
        )  # fmt: skip

    def run(self, cost: Floats, limit_ms: float, margin: float, gap: float, time_limit_s: float) -> OptimizeResult:
        """Minimises `cost` over the columns, inside `limit_ms` where it is finite.

        `margin` tightens the limit, in units of the limit over `SCALE`.
        """
        constraints = [LinearConstraint(self.rows, self.low, self.high)]
        if np.isfinite(limit_ms):
            left = (limit_ms - self.fixed_ms) / limit_ms * SCALE - margin
            constraints.append(LinearConstraint(self.ms[None, :] * (SCALE / limit_ms), -np.inf, left))
        options = {"mip_rel_gap": gap, "time_limit": time_limit_s}
        with _silence():
            return milp(cost, constraints=constraints, integrality=self.integral, bounds=Bounds(0, 1), options=options)

    def choice(self, columns: Floats) -> dict[str, int]:
        """Candidate index of each group at a solution's columns."""
        return {g: int(np.argmax(columns[self.offsets[g] : self.offsets[g] + n])) for g, n in self.sizes.items()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps what HiGHS prints, whatever its options, off the process's stdout, which belongs to `--json`."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class _Rows:
    """Rows of a sparse matrix, collected block by block."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.count = 0
        self.entries: list[tuple[Ints, Ints, Floats]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, row: Ints, column: Ints, value: Floats, low: Sequence[float], high: Sequence[float]) -> None:
        """Adds `len(low)` rows; `row` counts from 0 inside the block."""
        self.entries.append((row + self.count, column, value))
        self.low += low
        self.high += high
        self.count += len(low)

    def built(self) -> tuple[sparse.csr_array, Floats, Floats]:
        """Matrix and bounds of all rows."""
        nothing = np.zeros(0, np.int64)
        row = np.concatenate([nothing, *(e[0] for e in self.entries)])
        column = np.concatenate([nothing, *(e[1] for e in self.entries)])
        value = np.concatenate([np.zeros(0), *(e[2] for e in self.entries)])
        matrix = sparse.csr_array((value, (row, column)), shape=(self.count, self.columns))
        return matrix, np.asarray(self.low), np.asarray(self.high)


def _marginals(
    rows: _Rows, key: tuple[str, ...], within: tuple[str, ...], grid: Floats, offset: int, first: Mapping[str, int]
) -> None:
    """For each dim of a grid: its cells, summed over the other dims, equal that dim's one-hot.

    Within branches they are at most that, and all cells are one where every branch stays.
    """
    place = np.indices(grid.shape).reshape(grid.ndim, grid.size)
    for dim, name in enumerate(key):
        n = grid.shape[dim]
        row = np.concatenate([place[dim], np.arange(n)])
        column = np.concatenate([offset + np.arange(grid.size), first[name] + np.arange(n)])
        low = [-np.inf if within else 0.0] * n
        rows.add(row, column, np.concatenate([np.ones(grid.size), -np.ones(n)]), low, [0.0] * n)
    if within:
        column = np.concatenate([offset + np.arange(grid.size), [first[d] + 1 for d in within]])
        value = np.concatenate([np.ones(grid.size), -np.ones(len(within))])
        rows.add(np.zeros(len(column), int), column, value, [1.0 - len(within)], [np.inf])


def _tie(rows: _Rows, problem: Problem, first: Mapping[str, int], name: str) -> None:
    """A sum's one-hot picks the bin that its extent lies in: lower edge <= extent <= upper edge."""
    concat = problem.sums[name]
    scale = 1.0 / max(int(concat.upper[-1]), 1)
    bins = first[name] + np.arange(len(concat.lower))
    columns = [first[g] + np.arange(len(problem.candidates[g])) for g, _ in concat.parts]
    values = [t * problem.candidates[g] * scale for g, t in concat.parts]
    column = np.concatenate([*columns, bins])
    offset = -concat.offset * scale
    for edges, low, high in ((concat.upper, -np.inf, offset), (concat.lower, offset, np.inf)):
        value = np.concatenate([*values, -edges * scale])
        rows.add(np.zeros(len(column), int), column, value, [low], [high])
