"""Laws of the choice: it equals enumeration, its certificate holds, and no baseline beats it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from solve.families import FAMILIES, drawn

from cpd_edge.errors import BudgetError, InfeasibleError, TableError, UndecidedError
from cpd_edge.layout import Layout, Leaf, Prod, Sum, axes, size
from cpd_edge.solve import program
from cpd_edge.solve.baselines import BASELINES
from cpd_edge.solve.grids import grid_of
from cpd_edge.solve.infeasible import floor
from cpd_edge.solve.milp import reach, solve
from cpd_edge.solve.pose import candidate_widths, losses, plan_from, problem_from
from cpd_edge.solve.problem import Concat, Floats, Ints, Problem, RegionCost, latency
from cpd_edge.types import STRAIGHT, Bend, Importance, Region


def choices(problem: Problem) -> list[dict[str, int]]:
    ranges = (range(len(c)) for c in problem.candidates.values())
    return [dict(zip(problem.groups, picks, strict=True)) for picks in product(*ranges)]


def enumerated(problem: Problem) -> float:
    """Least loss of any choice inside the limit."""
    return min(problem.removed(c) for c in choices(problem) if problem.latency_ms(c) <= problem.limit_ms)


def bent(problem: Problem, bend: Bend) -> Problem:
    """The problem whose latency is its sum, bent."""
    loads = tuple(replace(load, bend=bend) for load in problem.resources[0].loads)
    return replace(problem, resources=(replace(problem.resources[0], loads=loads),))


@pytest.mark.parametrize("family", FAMILIES)
def test_solver_equals_enumeration(family: str) -> None:
    """The exact choice removes as little as the best of all choices, with a concat over three groups."""
    for seed in range(30):
        problem = drawn(family, seed)
        found = solve(problem, gap=1e-9)
        assert found.objective == pytest.approx(enumerated(problem), rel=1e-6, abs=1e-9), seed
        assert found.latency_ms <= problem.limit_ms
        assert found.latency_ms == problem.latency_ms(found.choice)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_certificate_encloses_the_optimum(family: str) -> None:
    """bound <= optimum <= objective, and the gap is their relative distance."""
    for seed in range(100, 106):
        problem = drawn(family, seed)
        found = solve(problem, gap=0.2)
        assert found.bound <= enumerated(problem) * (1 + 1e-6) + 1e-9
        assert found.gap == pytest.approx((found.objective - found.bound) / found.objective if found.objective else 0)
        assert found.gap <= 0.2 + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_no_baseline_beats_the_solver(family: str) -> None:
    """Every baseline stays inside the limit, and removes at least as much importance."""
    for seed in range(200, 205):
        problem = drawn(family, seed, groups=6)
        best = solve(problem, gap=1e-9).objective
        for name, baseline in BASELINES.items():
            other = baseline(problem)
            assert other.strategy == name
            assert other.latency_ms <= problem.limit_ms
            assert other.objective >= best - 1e-9


@pytest.mark.parametrize("name", ["milp", *BASELINES])
def test_an_impossible_limit_names_the_exact_floor(name: str) -> None:
    """The error carries the lowest latency of any choice, and regions that hold it up, worst first."""
    problem = drawn("launch", 7)
    least = min(problem.latency_ms(c) for c in choices(problem))
    with pytest.raises(InfeasibleError, match="fastest") as caught:
        (solve if name == "milp" else BASELINES[name])(problem.limited(least * 0.999))
    assert caught.value.floor_ms == pytest.approx(least, rel=1e-9)
    held = problem.shares(floor(problem).choice, problem.resources[0])
    assert [held[n] for n in caught.value.binding] == sorted(held.values(), reverse=True)[: len(caught.value.binding)]


def test_what_the_time_does_not_tell_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that ends before a plan or a proof says so, and calls no plan the fastest that it did not prove so."""

    def cut_off(*given: Any, options: dict[str, Any], **more: Any) -> optimize.OptimizeResult:
        """Time is up before the first node: in nodes, which are the same on every machine."""
        return milp(*given, options={"node_limit": 0}, **more)

    def stopped(*given: Any, **more: Any) -> optimize.OptimizeResult:
        """Time is up with a plan, which is not proven to be the best."""
        found = milp(*given, **more)
        if found.x is not None:
            found.status, found.mip_dual_bound = 1, found.fun / 2
        return found

    milp = optimize.milp
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(30)]
    loss = {g: np.sort(rng.random(12))[::-1] for g in names}
    pairs = [(a, b) for a in names for b in rng.choice(names, 3, replace=False).tolist() if a != b]
    costs = tuple(RegionCost(f"{a}-{b}", (a, b), rng.random((12, 12))) for a, b in pairs)
    problem = Problem({g: np.arange(1, 13) for g in names}, loss, (latency(costs, 0.0, 1.0),))
    rough = 0.55 * problem.latency_ms(problem.dense)
    monkeypatch.setattr(program, "milp", cut_off)
    for ask in (solve, reach):
        with pytest.raises(UndecidedError, match=r"not decided in 0\.2 s"):
            ask(problem.limited(rough), time_limit_s=0.2)
    monkeypatch.setattr(program, "milp", stopped)
    with pytest.raises(InfeasibleError, match="the fastest that was found is"):
        solve(drawn("launch", 7).limited(0.01))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_floor_is_proven(family: str) -> None:
    """Its bound is what its plan takes, bent or not, and its gap is none."""
    for bend in (STRAIGHT, Bend(1.07, 5.0)):
        problem = bent(drawn(family, 3), bend)
        found = floor(problem)
        assert (found.bound, found.gap) == (pytest.approx(found.latency_ms, rel=1e-6), pytest.approx(0.0, abs=1e-6))


def test_a_limit_at_the_floor_is_met() -> None:
    """The fastest plan's own latency is a feasible limit."""
    problem = drawn("noisy", 8)
    least = floor(problem).latency_ms
    assert solve(problem.limited(least)).latency_ms == pytest.approx(least)


def test_a_limit_above_dense_removes_nothing() -> None:
    """Where the dense network fits, the plan is the dense network."""
    problem = drawn("equal", 9)
    found = solve(problem.limited(problem.latency_ms(problem.dense) + 1))
    assert (dict(found.choice), found.objective, found.gap) == (problem.dense, 0.0, 0.0)


def test_among_equal_losses_the_faster_is_taken() -> None:
    """Units without importance go, even where the limit leaves room for them."""
    for seed in range(10):
        problem = drawn("noisy", seed)
        idle = {**problem.loss, "g1": np.zeros_like(problem.loss["g1"])}
        found = solve(replace(problem, loss=idle).limited(problem.latency_ms(problem.dense) + 1))
        same = [{**problem.dense, "g1": i} for i in range(len(idle["g1"]))]
        assert found.objective == 0
        assert found.latency_ms <= min(problem.latency_ms(c) for c in same)


def test_exact_bins_of_a_sum_cost_what_the_grid_costs() -> None:
    """A concat over four groups, described by its extent, gives the optimum of enumeration."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        names = ("a", "b", "c", "d")
        candidates = {g: np.asarray([8, 16, 24, 32]) for g in names}
        loss = {g: losses(rng.lognormal(0, 1, 32), candidates[g]) for g in names}
        reach = np.arange(32, 129, 8)
        concat = Concat(tuple((g, 1) for g in names), 0, reach, reach)
        per_bin = rng.uniform(0, 1, len(reach)) + reach / 32
        costs = (RegionCost("cat", ("sum", "a"), per_bin[:, None] * np.asarray([1.0, 1.3, 1.5, 2.0])),)
        problem = Problem(candidates, loss, (latency(costs, 0.0, 4.5),), {"sum": concat})
        assert solve(problem, gap=1e-9).objective == pytest.approx(enumerated(problem), rel=1e-6)


def test_a_larger_extent_that_costs_less_is_not_taken_for_a_smaller_one() -> None:
    """The extent of a concat is in its own bin and in none above: 1 + 3 costs more than 4 + 1, and stays outside."""
    reach = np.asarray([2, 4, 5, 7])
    concat = Concat((("a", 1), ("b", 1)), 0, reach, reach)
    costs = (RegionCost("cat", ("sum",), np.asarray([1.0, 9.0, 2.0, 9.0])),)
    candidates = {"a": np.asarray([1, 4]), "b": np.asarray([1, 3])}
    loss = {"a": np.asarray([1.0, 0.0]), "b": np.asarray([5.0, 0.0])}
    problem = Problem(candidates, loss, (latency(costs, 0.0, 3.0),), {"sum": concat})
    assert {"a": 4, "b": 1} == solve(problem).widths


def test_what_is_over_the_limit_by_less_than_the_solver_sees_is_not_taken() -> None:
    """HiGHS allows rows 1e-9 of their limit; the plan is the best of those that are inside, not the fastest of all."""
    costs = (RegionCost("r", ("a",), np.asarray([1.0, 1.9, 2.0 * (1 + 5e-10)])),)
    problem = Problem({"a": np.arange(1, 4)}, {"a": np.asarray([3.0, 1.0, 0.0])}, (latency(costs, 0.0, 2.0),))
    assert {"a": 1} == solve(problem).choice


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bent_load_is_solved_exactly(family: str) -> None:
    """Where the whole is more than its sum, limits hold for the whole, and nothing better is inside them."""
    for seed in range(5):
        straight = drawn(family, seed)
        dense_ms = straight.latency_ms(straight.dense)
        bend = Bend(1.15, dense_ms)
        problem = bent(straight, bend)
        assert problem.latency_ms(problem.dense) == pytest.approx(dense_ms)
        found = solve(problem)
        choices = [
            dict(zip(problem.groups, index, strict=True))
            for index in product(*(range(len(problem.candidates[g])) for g in problem.groups))
        ]
        whole = [(bend.whole(straight.latency_ms(c)), problem.removed(c)) for c in choices]
        assert found.latency_ms == pytest.approx(bend.whole(straight.latency_ms(found.choice)))
        assert found.latency_ms <= problem.limit_ms * (1 + 1e-9)
        assert found.objective == pytest.approx(min(loss for ms, loss in whole if ms <= problem.limit_ms), rel=1e-3)
        shares = problem.shares(found.choice, problem.resources[0])
        fixed_ms = problem.resources[0].loads[0].fixed
        pace = found.latency_ms / float(problem.loads(found.choice)[0])
        assert sum(shares.values()) == pytest.approx(found.latency_ms - pace * fixed_ms)


class TrueCost:
    """A table whose region latency is a formula of what it reads and writes."""

    def __init__(self, regions: tuple[Region, ...], ranges: Mapping[str, tuple[int, int]]) -> None:
        self.regions, self.ranges, self.fixed_ms = regions, ranges, 0.25
        self.bend = STRAIGHT

    def points(self, name: str, widths: Mapping[str, np.ndarray]) -> np.ndarray:
        region = next(r for r in self.regions if r.name == name)
        rows = list(zip(*widths.values(), strict=True)) or [()]
        out = []
        for row in rows:
            at = {g: int(w) for g, w in zip(widths, row, strict=True)}
            read, write = (-(-size(layout, at) // 16) for layout in (region.reads, region.writes))
            out.append(0.1 + 0.02 * read * write)
        return np.asarray(out)

    def contained(self, group: str, widths: np.ndarray) -> np.ndarray:
        return np.ones(len(widths), bool)


def region(name: str, reads: Layout, writes: Layout) -> Region:
    return Region(name, "Conv", (name,), reads, writes, (writes, reads), 0)


def dense_block(parts: int) -> tuple[TrueCost, Importance]:
    """Regions that each read the concat of all groups before, as DenseNet's do."""
    rng = np.random.default_rng(5)
    leaf = [Leaf(f"g{i}", 32) for i in range(parts)]
    regions = [region("stem", Prod(()), leaf[0])]
    regions += [region(f"r{i}", Sum(tuple(leaf[:i])), leaf[i]) for i in range(1, parts)]
    regions.append(region("head", Sum(tuple(leaf)), Leaf("classes", 10)))
    table = TrueCost(tuple(regions), {x.axis: (1, 32) for x in leaf})
    return table, Importance({x.axis: rng.lognormal(0, 1, 32) for x in leaf})


@pytest.mark.parametrize("parts", [4, 7])
def test_concats_of_many_groups_are_never_underestimated(parts: int) -> None:
    """What the problem says a plan takes is at least what the table says, and the limit holds for both."""
    table, importance = dense_block(parts)
    problem = problem_from(table, importance, 1.0)
    dense = problem.latency_ms(problem.dense)
    found = solve(problem.limited(0.6 * dense), gap=0.3)
    rng = np.random.default_rng(0)
    drawn_choices = [{g: int(rng.integers(len(c))) for g, c in problem.candidates.items()} for _ in range(100)]
    for choice in [found.choice, problem.dense, *drawn_choices]:
        at = {g: np.asarray([w]) for g, w in problem.widths(choice).items()}
        true = table.fixed_ms
        for r in table.regions:
            here = {g: at[g] for g in axes(r.reads, r.writes) if g in at}
            true += float(table.points(r.name, here)[0])
        assert true <= problem.latency_ms(choice) * (1 + 1e-9)
    assert found.latency_ms <= 0.6 * dense


def test_widths_at_which_regions_elsewhere_run_otherwise_are_not_offered() -> None:
    """What a region costs over its own groups is then the whole of it; where no width would be left, all are."""
    table, importance = dense_block(3)
    table.contained = lambda group, widths: (widths % 4 == 0) | (group != "g1") | (widths == 32)  # type: ignore[method-assign]
    problem = problem_from(table, importance, 1.0)
    assert all(width % 4 == 0 for width in problem.candidates["g1"])
    assert any(width % 4 for width in problem.candidates["g0"])
    table.contained = lambda group, widths: np.zeros(len(widths), bool)  # type: ignore[method-assign]
    assert len(problem_from(table, importance, 1.0).candidates["g1"]) == 16


def test_three_groups_become_an_exact_grid() -> None:
    """A region that reads a concat of two groups and writes a third keeps its true cost in every cell."""
    table, importance = dense_block(3)
    problem = problem_from(table, importance, 1.0)
    cost = next(c for c in problem.resources[0].loads[0].costs if c.name == "r2")
    assert not problem.sums
    assert cost.groups == ("g0", "g1", "g2")
    mesh = np.meshgrid(*(problem.candidates[g] for g in cost.groups), indexing="ij")
    true = table.points("r2", {g: m.reshape(-1) for g, m in zip(cost.groups, mesh, strict=True)})
    assert (cost.grid.reshape(-1) == true).all()


def test_of_four_groups_that_multiply_three_have_a_grid() -> None:
    """Attention goes by heads, widths of a head and tokens at once: what changes the cost least counts as dense."""
    leaves = [Leaf(name, extent) for name, extent in (("a", 16), ("b", 16), ("c", 12), ("d", 16))]
    candidates = {leaf.axis: np.arange(1, leaf.extent + 1) for leaf in leaves}
    weights = {"a": 3.0, "b": 0.01, "c": 2.0, "d": 5.0}

    def at(widths: Mapping[str, Ints]) -> Floats:
        return np.asarray(sum(w * widths[g] for g, w in weights.items()) + widths["a"] * widths["d"])

    cost, sums = grid_of("attention", [Prod(tuple(leaves[:2])), Prod(tuple(leaves[2:]))], at, candidates)
    assert cost.groups == ("a", "c", "d")
    assert not sums
    mesh = np.meshgrid(*(candidates[g] for g in cost.groups), indexing="ij")
    told = dict(zip(cost.groups, mesh, strict=True))
    assert (cost.grid == at({**told, "b": np.asarray(16)})).all()
    same, _ = grid_of("attention", [Prod(tuple(leaves[:2])), Prod(tuple(leaves[2:]))], at, candidates, ("a", "b", "c"))
    assert same.groups == ("a", "b", "c"), "where another grid of the region has those"


def test_what_a_grid_leaves_out_beside_a_long_sum_counts_at_its_most() -> None:
    """Of too many combinations to look at all, those with the widths that it has no dim for are among the members."""
    leaves = [Leaf(f"s{i}", 32) for i in range(5)] + [Leaf(name, 16) for name in "xyz"]
    candidates = {leaf.axis: np.arange(1, leaf.extent + 1) for leaf in leaves}

    def at(widths: Mapping[str, Ints]) -> Floats:
        return np.asarray(sum(widths[leaf.axis] for leaf in leaves), np.float64)

    cost, sums = grid_of("cat", [Sum(tuple(leaves[:5])), *leaves[5:]], at, candidates)
    (name, concat), left_out = *sums.items(), {"x", "y", "z"} - set(cost.groups)
    assert 1 == len(left_out)
    rng = np.random.default_rng(0)
    for _ in range(50):
        choice = {g: int(rng.integers(len(c))) for g, c in candidates.items()} | dict.fromkeys(left_out, 15)
        widths = {g: candidates[g][i] for g, i in choice.items()}
        index = {**choice, name: int(concat.bin(widths))}
        assert at(widths) <= cost.grid[tuple(index[g] for g in cost.groups)]


def test_the_plan_keeps_the_most_important_units() -> None:
    """Kept units are the top ones, ascending, as many as the width says; their loss is no less than the rest's sum."""
    table, importance = dense_block(3)
    problem = problem_from(table, importance, 1.0, at_most={"g1": 20})
    found = solve(problem.limited(0.7 * problem.latency_ms(problem.dense)))
    plan = plan_from(found, importance, 0.5)
    assert plan.widths == found.widths
    assert plan.widths["g1"] <= 20
    removed = expected = 0.0
    for group, values in importance.by_group.items():
        left = np.setdiff1d(np.arange(32), plan.keep[group])
        assert not len(left) or values[left].max() <= values[list(plan.keep[group])].min()
        assert list(plan.keep[group]) == sorted(plan.keep[group])
        removed += values[left].sum()
        expected += losses(values, np.asarray([plan.widths[group]]))[0]
    assert plan.objective == pytest.approx(expected)
    assert plan.objective >= removed - 1e-9


def test_a_small_loss_is_the_sum_of_what_is_removed() -> None:
    """To first order the loss of a width is the importance of the units that go; it never falls as more go."""
    values = np.random.default_rng(2).lognormal(0, 1, 1000)
    loss = losses(values, np.arange(1, 1001))
    assert loss[-1] == 0
    assert (np.diff(loss) <= 0).all()
    assert loss[-2] == pytest.approx(values.min(), rel=1e-3)


def test_a_large_loss_is_more_than_the_sum_of_what_is_removed() -> None:
    """-T log(kept / T): half of the importance costs log 2 of it all, and the last unit has no price."""
    loss = losses(np.asarray([1.0, 2.0, 3.0]), np.asarray([0, 1, 2, 3]))
    assert loss[1:].tolist() == pytest.approx([6 * np.log(2), 6 * np.log(6 / 5), 0.0])
    assert loss[0] > 100


@pytest.mark.parametrize(("units", "most"), [(1, 16), (10, 16), (16, 16), (64, 16), (100, 16), (2048, 16), (33, 4)])
def test_candidates_hold_both_ends_and_fit(units: int, most: int) -> None:
    """Widths ascend from 1 to dense, no more than asked for; where some are left out, most are multiples of 8."""
    widths = candidate_widths(1, units, most)
    assert (widths[0], widths[-1]) == (1, units)
    assert (np.diff(widths) > 0).all()
    assert len(widths) <= most
    if units >= 128:
        assert sum(w % 8 == 0 for w in widths) >= len(widths) - 2


def test_a_group_the_table_never_saw_is_refused() -> None:
    """A missing entry is an error that says what to measure, never zero."""
    table, importance = dense_block(3)
    with pytest.raises(TableError, match="g9 of 32 units"):
        problem_from(table, Importance({**importance.by_group, "g9": np.ones(32)}), 1.0)
    with pytest.raises(BudgetError, match="above 0"):
        problem_from(table, importance, 0.0)


def test_stdout_stays_the_callers(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What the solver library prints past Python does not reach stdout, where `--json` prints one object."""

    def chatty(*arguments: object, **options: object) -> object:
        os.write(1, b"tmpSolver.run();")
        return optimize.milp(*arguments, **options)

    monkeypatch.setattr("cpd_edge.solve.program.milp", chatty)
    solve(drawn("equal", 0))
    print("mine")
    assert capfd.readouterr().out == "mine\n"
