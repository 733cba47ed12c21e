"""The linear program of a problem: one-hot candidates, products of one-hots linearised by local marginals.

For a grid `T[a, b]` a variable `y[a, b] >= 0` stands for the product of two one-hots. With
`Σ_b y[a, b] = x[a]` and `Σ_a y[a, b] = z[b]` it equals the product wherever `x` and `z` are one-hot, so the
linearisation is exact; grids over three groups work alike. Within a branch that may go, `Σ_b y[a, b] <= x[a]`, and
all cells together are one if the branch stays. A sum is one more one-hot, tied to the widths by the edges of its bins.
All resources share the variables: each load is one row over them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from cpd_edge.solve.problem import Floats, Ints, Problem

SCALE = 1e3
"""Limits and loss are scaled to this, so that the solver's tolerance of 1e-6 is 1e-9 of either."""

OPTIMAL, INFEASIBLE = 0, 2
"""Statuses of a search that are proofs."""

_Key: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Groups of a grid, and the branches that it stands within."""


@dataclass(frozen=True)
class Program:
    """Columns, their loss and loads, and the rows that tie them. The last column is a peak, tied to nothing.

    Attributes:
        offsets: first column of each one-hot.
        sizes: number of candidates by group.
        loss: by column.
        loads: what each column adds to each load `[loads, columns]`.
        integral: which columns are whole numbers.
        rows: constraint matrix; `low`, `high`: its bounds.
        fixed: what no column changes, by load.
    """

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    loss: Floats
    loads: sparse.csr_array
    integral: npt.NDArray[np.bool_]
    rows: sparse.csr_array
    low: Floats
    high: Floats
    fixed: Floats

    @classmethod
    def of(cls, problem: Problem) -> Program:
        """Builds the columns and rows of a problem."""
        sizes = {g: len(c) for g, c in problem.candidates.items()}
        sizes |= {name: len(s.lower) for name, s in problem.sums.items()}
        grids, fixed = _merged(problem, sizes)
        counts = [grid[0].size for grid in grids.values()]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        offsets = {key: int(start) for key, start in zip(grids, starts, strict=False)}
        columns = int(starts[-1]) + 1
        first = {name: offsets[(name,), ()] for name in sizes}
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
                _marginals(rows, key, within, grid[0], offsets[key, within], first)
        matrix, low, high = rows.built()
        flat = [sparse.csr_array(grid.reshape(len(grid), -1)) for grid in grids.values()]
        loads = sparse.csr_array(sparse.hstack([*flat, sparse.csr_array((len(fixed), 1))]))
        return cls(
            offsets=first, sizes={g: sizes[g] for g in problem.candidates}, loss=loss, loads=loads,
            integral=np.arange(columns) < sum(sizes.values()), rows=matrix, low=low, high=high, fixed=fixed,
        )  # fmt: skip

    def run(
        self,
        cost: Floats,
        limits: Floats,
        *,
        gap: float,
        time_limit_s: float,
        margin: float = 0.0,
        peaks: Mapping[int, float] | None = None,
        apart: Sequence[tuple[Mapping[str, int], int]] = (),
    ) -> OptimizeResult:
        """Minimises `cost` over the columns, inside each load's limit where it is finite.

        Args:
            cost: by column.
            limits: by load.
            gap: relative gap at which the search stops.
            time_limit_s: time at which it stops [s].
            margin: tightens the limits, in units of each limit over `SCALE`.
            peaks: scales of the loads that the last column, times its load's scale, is at least.
            apart: choices, and in how many groups at least another one must be taken.
        """
        constraints = [LinearConstraint(self.rows, self.low, self.high)]
        bound = np.flatnonzero(np.isfinite(limits))
        if len(bound):
            scale = SCALE / limits[bound]
            high = SCALE - self.fixed[bound] * scale - margin
            constraints.append(LinearConstraint(sparse.diags_array(scale) @ self.loads[bound], -np.inf, high))
        if peaks:
            at, scale = np.asarray([*peaks]), SCALE / np.asarray([*peaks.values()])
            peak = sparse.csr_array((np.full(len(at), -SCALE), (np.arange(len(at)), np.full(len(at), -1 % len(cost)))))
            body = sparse.diags_array(scale) @ self.loads[at] + peak
            constraints.append(LinearConstraint(body, -np.inf, -self.fixed[at] * scale))
        for choice, least in apart:
            same = np.zeros(len(cost))
            same[[self.offsets[g] + i for g, i in choice.items()]] = 1.0
            constraints.append(LinearConstraint(same[None, :], -np.inf, len(self.sizes) - least))
        high = np.ones(len(cost))
        high[-1] = np.inf if peaks else 0.0
        options = {"mip_rel_gap": gap, "time_limit": time_limit_s}
        with _silence():
            return milp(
                cost, constraints=constraints, integrality=self.integral, bounds=Bounds(0, high), options=options
            )

    def choice(self, columns: Floats) -> dict[str, int]:
        """Candidate index of each group at a solution's columns."""
        return {g: int(np.argmax(columns[self.offsets[g] : self.offsets[g] + n])) for g, n in self.sizes.items()}


def lower_bound(found: OptimizeResult) -> float:
    """What no solution of a program costs less than: infinite where it has none, and nothing known is `-inf`."""
    if found.status == INFEASIBLE:
        return np.inf
    if found.mip_dual_bound is not None:
        return float(found.mip_dual_bound)
    return float(found.fun) if found.status == OPTIMAL else -np.inf


def _merged(problem: Problem, sizes: Mapping[str, int]) -> tuple[dict[_Key, Floats], Floats]:
    """Grids `[loads, ...]` summed over costs that touch the same groups, and what is fixed `[loads]`.

    Grids inside a larger one's groups join it. What is left is split into parts per group and the rest, and a rest
    of zero is dropped; not within branches.
    """
    order = {name: i for i, name in enumerate(sizes)}
    every = [load for resource in problem.resources for load in resource.loads]
    fixed = np.asarray([load.fixed for load in every], np.float64)
    costs = [(at, cost) for at, load in enumerate(every) for cost in load.costs]
    grids: dict[_Key, Floats] = {}
    for at, cost in sorted(costs, key=lambda c: -len(c[1].groups)):
        if not cost.groups and not cost.within:
            fixed[at] += float(cost.grid)
            continue
        key = tuple(sorted(cost.groups, key=order.__getitem__))
        grid = np.transpose(cost.grid, [cost.groups.index(g) for g in key])
        joins = len(key) > 1 or cost.within
        home = next((k for k, w in grids if joins and w == cost.within and set(key) <= set(k)), key)
        if (home, cost.within) not in grids:
            grids[home, cost.within] = np.zeros([len(every), *(sizes[g] for g in home)])
        grids[home, cost.within][at] += grid.reshape(tuple(sizes[g] if g in key else 1 for g in home))
    out: dict[_Key, Floats] = {((name,), ()): np.zeros([len(every), n]) for name, n in sizes.items()}
    for (key, within), grid in grids.items():
        if within:
            out[key, within] = grid
            continue
        rest = grid.copy()
        for dim, name in enumerate(key, 1):
            share = rest.min(axis=tuple(d for d in range(1, rest.ndim) if d != dim))
            out[(name,), ()] = out[(name,), ()] + share
            rest -= share.reshape([len(every), *(-1 if d == dim else 1 for d in range(1, rest.ndim))])
        scale = np.maximum(np.abs(grid).reshape(len(every), -1).max(axis=1), 1e-300)
        if len(key) > 1 and (rest.reshape(len(every), -1).max(axis=1) > 1e-12 * scale).any():
            out[key, ()] = rest
    return out, fixed


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
