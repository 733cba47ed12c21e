"""Laws of constraints and depth: every strategy obeys, and what is left is still solved exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cpd_edge.errors import UsageError
from cpd_edge.layout import Leaf
from cpd_edge.solve.baselines import BASELINES
from cpd_edge.solve.constraints import allowed, protected, tied, ties, untied
from cpd_edge.solve.milp import solve
from cpd_edge.solve.pose import candidate_widths, losses
from cpd_edge.solve.problem import Problem, RegionCost, latency
from cpd_edge.types import Constraints, Group, Groups, Importance, Slot


def slot(tensor: str) -> Slot:
    return Slot(tensor, 0, Leaf("x", 4), reads=False)


GROUPS = Groups(
    (
        Group("stem", 8, (slot("stem.weight"), slot("bn.weight"))),
        Group("attn.0", 4, (slot("attn.0.qkv.weight"),), role="heads"),
        Group("attn.1", 4, (slot("attn.1.qkv.weight"),), role="heads"),
        Group("attn.2", 8, (slot("attn.2.qkv.weight"),), role="heads"),
        Group("attn.0:depth", 1, (), depth=True),
    ),
    (),
)


def deep(seed: int) -> Problem:
    """A stream, two nested branches with a width of their own, and a region that no branch takes along."""
    rng = np.random.default_rng(seed)
    candidates = {g: candidate_widths(1, int(rng.integers(6, 40)), 4) for g in ("stream", "a", "b")}
    loss = {g: losses(rng.lognormal(0, 1, int(c[-1])), c) for g, c in candidates.items()}
    for branch in ("outer", "inner"):
        candidates[branch] = np.asarray([0, 1])
        loss[branch] = np.asarray([float(rng.lognormal(2, 2)), 0.0])

    def cost(name: str, *over: str, within: tuple[str, ...] = ()) -> RegionCost:
        sizes = np.ix_(*(candidates[g].astype(float) for g in over))
        ms = 0.2 + 0.01 * sum(sizes, np.zeros(1)) * rng.uniform(0.5, 2)
        return RegionCost(name, over, np.broadcast_to(ms, [len(candidates[g]) for g in over]).copy(), within)

    costs = (
        cost("stem", "stream"),
        cost("a", "stream", "a", within=("outer",)),
        cost("b", "a", "b", within=("outer", "inner")),
        cost("c", "b", "stream", within=("outer", "inner")),
        RegionCost("norm", (), np.asarray(0.3), ("inner",)),
    )
    problem = Problem(candidates, loss, (latency(costs, 0.1, 1.0),))
    return problem.limited(float(rng.uniform(0.35, 0.95)) * problem.latency_ms(problem.dense))


def best(problem: Problem) -> float:
    """Least loss of any choice inside the limit, by enumeration."""
    ranges = [range(len(c)) for c in problem.candidates.values()]
    every = (dict(zip(problem.groups, picks, strict=True)) for picks in product(*ranges))
    return min(problem.removed(c) for c in every if problem.latency_ms(c) <= problem.limit_ms)


def test_depth_and_width_together_equal_enumeration() -> None:
    """With branches that may go, nested ones too, the exact choice removes as little as the best of all choices."""
    gone = 0
    for seed in range(30):
        problem = deep(seed)
        found = solve(problem, gap=1e-9)
        assert found.objective == pytest.approx(best(problem), rel=1e-6, abs=1e-9), seed
        assert found.latency_ms == problem.latency_ms(found.choice) <= problem.limit_ms
        gone += found.widths["outer"] == 0 or found.widths["inner"] == 0
    assert 0 < gone < 30


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_hold_their_limit_with_branches(name: str) -> None:
    """Every strategy takes a network with branches, stays inside the limit and removes no less."""
    for seed in range(8):
        problem = deep(seed)
        assert BASELINES[name](problem).latency_ms <= problem.limit_ms
        assert BASELINES[name](problem).objective >= best(problem) - 1e-9


def test_a_removed_branch_costs_nothing() -> None:
    """Regions within a branch that goes cost 0; the others cost what they did."""
    problem = deep(1)
    dense, without = problem.dense, problem.dense | {"inner": 0}
    before, after = (problem.shares(c, problem.resources[0]) for c in (dense, without))
    assert {n for n, ms in after.items() if ms == 0} == {"b", "c", "norm"}
    assert all(after[n] == before[n] for n in ("stem", "a"))


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        (Constraints(), set()),
        (Constraints(protect=("stem",)), {"stem"}),
        (Constraints(protect=("bn.*",)), {"stem"}),
        (Constraints(protect=("attn.?", "stem")), {"stem", "attn.0", "attn.1", "attn.2"}),
        (Constraints(depth=False), {"attn.0:depth"}),
    ],
)
def test_patterns_protect_groups(constraints: Constraints, expected: set[str]) -> None:
    """A group stays whole that a pattern names, alone or through a tensor; without depth all branches stay."""
    assert protected(GROUPS, constraints) == expected
    importance = Importance({g.name: np.ones(g.units) for g in GROUPS.groups})
    assert set(importance.by_group) - set(allowed(importance, GROUPS, constraints).by_group) == expected


def test_a_pattern_that_names_nothing_is_refused() -> None:
    """A typing error in a pattern protects nothing, so it is an error that names what there is."""
    with pytest.raises(UsageError, match="names no group"):
        protected(GROUPS, Constraints(protect=("layer9.*",)))


@pytest.mark.parametrize("bad", [{"min_width": 0}, {"multiple_of": 0}, {"heads": "same"}])
def test_bad_constraints_are_refused(bad: Mapping[str, object]) -> None:
    """A constraint that means nothing is an error."""
    with pytest.raises(UsageError):
        Constraints(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "multiple", "expected"),
    [
        (1, 64, 16, [16, 32, 48, 64]),
        (1, 60, 16, [16, 32, 48, 60]),
        (20, 60, 16, [32, 48, 60]),
        (1, 10, 16, [10]),
        (64, 64, 16, [64]),
        (1, 6, 3, [3, 6]),
    ],
)
def test_widths_are_multiples_or_dense(low: int, high: int, multiple: int, expected: list[int]) -> None:
    """All candidates below the widest are multiples."""
    assert candidate_widths(low, high, 16, multiple).tolist() == expected


def test_many_multiples_are_thinned() -> None:
    """Of more multiples than are asked for some are left, multiples still, with both ends of the range."""
    found = candidate_widths(1, 1000, 16, 8)
    assert len(found) <= 16 and found[-1] == 1000 and found[0] == 8 and not (found[:-1] % 8).any()


def test_heads_of_equal_count_are_tied() -> None:
    """With equal heads, layers that have as many keep as many; free heads are not tied."""
    assert ties(GROUPS, Constraints()) == ()
    assert ties(GROUPS, Constraints(heads="equal")) == (("attn.0", "attn.1"),)


def test_what_is_tied_to_a_protected_group_stays_whole_too() -> None:
    """With equal heads, the heads of a layer that are protected keep those of every layer that has as many."""
    given = Constraints(protect=("attn.1",), heads="equal")
    assert protected(GROUPS, given) == {"attn.0", "attn.1"}
    assert protected(GROUPS, replace(given, heads="free")) == {"attn.1"}


def test_tied_groups_keep_equal_widths_at_least_loss() -> None:
    """The tied choice equals enumeration over choices whose tied widths agree."""
    for seed in range(20):
        problem = deep(seed)
        candidates = {**problem.candidates, "b": problem.candidates["a"]}
        rng = np.random.default_rng(seed)
        loss = {**problem.loss, "b": losses(rng.lognormal(0, 1, int(candidates["b"][-1])), candidates["b"])}
        costs = tuple(
            replace(c, grid=0.2 + rng.uniform(0, 1, [len(candidates[g]) for g in c.groups]))
            for c in problem.resources[0].loads[0].costs
        )
        problem = Problem(candidates, loss, (latency(costs, 0.1, 1.6),))
        classes = (("a", "b"),)
        found = untied(solve(tied(problem, classes), gap=1e-9).widths, classes)
        ranges = [range(len(c)) for c in problem.candidates.values()]
        every = [dict(zip(problem.groups, picks, strict=True)) for picks in product(*ranges)]
        fits = [c for c in every if c["a"] == c["b"] and problem.latency_ms(c) <= problem.limit_ms]
        choice = {g: problem.candidates[g].tolist().index(found[g]) for g in problem.groups}
        assert choice["a"] == choice["b"] and problem.latency_ms(choice) <= problem.limit_ms + 1e-9
        assert problem.removed(choice) == pytest.approx(min(map(problem.removed, fits)), rel=1e-6, abs=1e-9)
