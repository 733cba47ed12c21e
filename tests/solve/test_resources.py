"""Laws of several limits at once: the choice equals enumeration, stays inside all of them, and says which one binds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import pytest

from cpd_edge.errors import BudgetError, InfeasibleError
from cpd_edge.layout import Layout, Leaf, Prod, Sum, axes, size
from cpd_edge.solve.baselines import BASELINES
from cpd_edge.solve.counted import loads_of
from cpd_edge.solve.infeasible import floor
from cpd_edge.solve.milp import best, reach, solve
from cpd_edge.solve.pose import Elsewhere, candidate_widths, losses, problem_from
from cpd_edge.solve.problem import Load, Problem, RegionCost, Resource, latency
from cpd_edge.types import STRAIGHT, Amount, Importance, Quantity, Region


def choices(problem: Problem) -> Iterator[dict[str, int]]:
    for picks in product(*(range(len(c)) for c in problem.candidates.values())):
        yield dict(zip(problem.groups, picks, strict=True))


def drawn(seed: int) -> Problem:
    """A chain with a branch and a choice of precision, under latency, another device's latency, bytes and a peak."""
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c")
    candidates = {g: candidate_widths(1, int(rng.integers(6, 40)), 3) for g in names}
    loss = {g: losses(rng.lognormal(0, 1, int(c[-1])), c) for g, c in candidates.items()}
    if seed % 3 == 0:  # ties
        loss["b"] = np.zeros_like(loss["b"])
    candidates |= {"branch": np.asarray([0, 1]), "r1:variant": np.asarray([0, 1])}
    loss |= {"branch": np.asarray([rng.lognormal(1, 1), 0.0]), "r1:variant": np.asarray([rng.lognormal(0, 1), 0.0])}

    def cost(name: str, *over: str, within: tuple[str, ...] = (), ways: int = 1) -> RegionCost:
        base = rng.uniform(0.2, 1) + 0.01 * np.asarray(
            np.broadcast_to(sum(np.ix_(*(candidates[g] for g in over))), [len(candidates[g]) for g in over])
        )
        if ways == 1:
            return RegionCost(name, over, base * rng.uniform(0.8, 1.2, base.shape), within)
        return RegionCost(name, (*over, "r1:variant"), np.stack([0.5 * base, base], -1), within)

    def load(ways: int = 1) -> Load:
        regions = (cost("r0", "a", "b"), cost("r1", "b", "c", ways=ways), cost("r2", "c", "a", within=("branch",)))
        return Load(regions, float(rng.uniform(0, 0.2)))

    resources = (
        Resource("latency", "ms", 1.0, (load(2),)),
        Resource("elsewhere", "ms", 1.0, (load(2),)),
        Resource("parameters", "", 1.0, (load(),)),
        Resource("peak memory", "bytes", 1.0, tuple(load() for _ in range(3))),
    )
    names_of = {"r1:variant": ("int8", "fp32")}
    problem = Problem(candidates, loss, resources, {}, names_of)
    least = {r.name: min(problem.used(c)[r.name] for c in choices(problem)) for r in resources}
    dense = problem.used(problem.dense)
    share = rng.uniform(-0.02, 1.0, len(resources))
    return problem.limited(*(least[n] + s * (dense[n] - least[n]) for n, s in zip(dense, share, strict=True)))


def test_several_limits_together_equal_enumeration() -> None:
    """Where a plan exists the choice removes as little as the best of all that fit; where none does, that is proven."""
    solved = refused = 0
    for seed in range(20):
        problem = drawn(seed)
        fits = [c for c in choices(problem) if problem.fits(c)]
        if fits:
            found = solve(problem, gap=1e-9)
            solved += 1
            assert found.objective == pytest.approx(min(map(problem.removed, fits)), rel=1e-6, abs=1e-9), seed
            assert all(found.used[r.name] <= r.limit for r in problem.resources)
            assert found.used == problem.used(found.choice)
            assert found.bound <= found.objective
        else:
            refused += 1
            with pytest.raises(InfeasibleError):
                solve(problem)
    assert solved > 10 and refused > 1


def test_limits_that_are_what_the_dense_network_takes_keep_it() -> None:
    """Also where the sums that they were derived from were rounded another way; a limit that is below them does not."""
    for seed in range(5):
        problem = drawn(seed)
        own = list(problem.used(problem.dense).values())
        assert solve(problem.limited(*(np.nextafter(used, 0) for used in own))).objective == 0
        assert not problem.limited(*(used * (1 - 1e-9) for used in own)).fits(problem.dense)


@pytest.mark.parametrize("at", range(4))
def test_each_limit_alone_equals_enumeration(at: int) -> None:
    """Any one of the resources may be the only one that is limited."""
    for seed in range(5):
        problem = drawn(seed)
        alone = problem.limited(*(r.limit if i == at else np.inf for i, r in enumerate(problem.resources)))
        fits = [alone.removed(c) for c in choices(alone) if alone.fits(c)]
        assert solve(alone, gap=1e-9).objective == pytest.approx(min(fits), rel=1e-6, abs=1e-9)


def test_what_excludes_what_equals_enumeration() -> None:
    """The error's resource and those beside it exclude each other, and without any one of them a plan is left."""
    alone = together = 0
    for seed in range(16):
        problem = drawn(seed)
        every = [problem.used(c) for c in choices(problem)]
        low = [min(used[r.name] for used in every) for r in problem.resources]
        shares = np.random.default_rng(seed).uniform(0.99, 1.15, len(low))
        problem = problem.limited(*(ms * share for ms, share in zip(low, shares, strict=True)))
        limits = {r.name: r.limit for r in problem.resources}

        def meets(*names: str, every: list[dict[str, float]] = every, limits: Mapping[str, float] = limits) -> bool:
            return any(all(used[n] <= limits[n] for n in names) for used in every)

        if meets(*limits):
            continue
        with pytest.raises(InfeasibleError) as caught:
            solve(problem)
        error = caught.value
        binding = (error.resource, *error.beside)
        assert not meets(*binding)
        assert all(meets(*(n for n in binding if n != name)) for name in binding)
        left = [used for used in every if all(used[n] <= limits[n] for n in error.beside)]
        assert error.floor == pytest.approx(min(used[error.resource] for used in left), rel=1e-9)
        assert all(name in error.what for name in error.beside)
        alone, together = alone + (not error.beside), together + bool(error.beside)
    assert alone > 1 and together > 1


def test_a_limit_below_its_own_floor_is_named_alone() -> None:
    """Of several limits the one that no plan meets is named, with its exact floor and what to type."""
    problem = drawn(1)
    least = min(problem.used(c)["parameters"] for c in choices(problem))
    with pytest.raises(InfeasibleError, match="the least of all is") as caught:
        solve(problem.limited(np.inf, np.inf, 0.9 * least, np.inf))
    assert (caught.value.resource, caught.value.beside) == ("parameters", ())
    assert caught.value.floor == pytest.approx(least, rel=1e-9)
    assert "--max-params" in caught.value.hint and len(caught.value.binding) == 3


def test_the_floor_of_a_peak_is_the_least_of_the_largest() -> None:
    """The floor of a resource with several moments minimises the largest of them."""
    for seed in range(5):
        problem = drawn(seed)
        least = min(problem.used(c)["peak memory"] for c in choices(problem))
        assert floor(problem, "peak memory").used["peak memory"] == pytest.approx(least, rel=1e-9)


def test_what_is_furthest_inside_is_found() -> None:
    """`reach` minimises the largest share of a limit that is used."""
    for seed in range(5):
        problem = drawn(seed).limited(*(9.0 for _ in range(4)))
        worst = min(float((problem.loads(c) / problem.limits).max()) for c in choices(problem))
        assert float((problem.loads(reach(problem)) / problem.limits).max()) == pytest.approx(worst, rel=1e-9)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_stay_inside_every_limit(name: str) -> None:
    """Every strategy takes several limits, stays inside all, and never removes less than the solver."""
    tried = 0
    for seed in range(14):
        problem = drawn(seed)
        if any(problem.fits(c) for c in choices(problem)):
            tried += 1
            found = BASELINES[name](problem)
            assert problem.fits(found.choice)
            assert found.objective >= solve(problem, gap=1e-9).objective - 1e-9
    assert tried > 3


def test_the_best_plans_are_the_best_that_differ() -> None:
    """Each of the k best removes as little as the best of those that differ enough from all before it."""
    for seed in range(6):
        problem = drawn(seed).limited(np.inf, np.inf, np.inf)
        found = best(problem, 4, differ=2, gap=1e-9)
        for k, plan in enumerate(found[1:], 1):
            left = [
                problem.removed(c)
                for c in choices(problem)
                if problem.fits(c) and all(sum(c[g] != f.choice[g] for g in c) >= 2 for f in found[:k])
            ]
            assert plan.objective == pytest.approx(min(left), rel=1e-6, abs=1e-9)


def test_there_may_be_fewer_plans_than_asked_for() -> None:
    """Where no other plan differs enough, the search ends."""
    flat = Problem({"a": np.asarray([1, 2])}, {"a": np.asarray([1.0, 0.0])}, (latency((), 0.5, 1.0),))
    assert [f.widths["a"] for f in best(flat, 5, differ=1)] == [2, 1]


class Formula:
    """A table whose region latency is a formula of what it reads and writes."""

    def __init__(self, regions: tuple[Region, ...], ranges: Mapping[str, tuple[int, int]], pace: float = 1.0) -> None:
        self.regions, self.ranges, self.fixed_ms, self.pace = regions, ranges, 0.25, pace
        self.bend = STRAIGHT

    def contained(self, group: str, widths: np.ndarray) -> np.ndarray:
        return np.ones(len(widths), bool)

    def points(self, name: str, widths: Mapping[str, np.ndarray]) -> np.ndarray:
        region = next(r for r in self.regions if r.name == name)
        rows = list(zip(*widths.values(), strict=True)) or [()]
        at = [{g: int(w) for g, w in zip(widths, row, strict=True)} for row in rows]
        return np.asarray([self.pace * (0.1 + 0.01 * size(region.reads, w) * size(region.writes, w)) for w in at])


def region(name: str, reads: Layout, writes: Layout, within: tuple[str, ...] = ()) -> Region:
    return Region(name, "Conv", (name,), reads, writes, (writes, reads), reads.extent * writes.extent, "", within)


X, Y, Z, OUT = Leaf("x", 12), Leaf("y", 10), Leaf("z", 8), Leaf("classes", 3)
REGIONS = (
    region("stem", Prod(()), X),
    region("up", X, Y, ("deep",)),
    region("down", Y, X, ("deep",)),
    region("cat", Sum((X, Y)), Z),
    region("head", Sum((X, Y, Z)), OUT),
    region("last", OUT, OUT),
)
RANGES = {"x": (1, 12), "y": (1, 10), "z": (1, 8), "deep": (0, 1)}
SCORES = Importance({g: np.random.default_rng(i).lognormal(0, 1, n) for i, (g, (_, n)) in enumerate(RANGES.items())})
MACS = Quantity("MACs", "", (tuple(Amount(49.0, r.weight, r.within, r.name) for r in REGIONS),))
PEAK = Quantity(
    "peak memory",
    "bytes",
    (
        (Amount(3136.0), Amount(196.0, (X,))),
        (Amount(196.0, (X,), ("deep",)), Amount(196.0, (Y,), ("deep",))),
        (Amount(196.0, (Sum((X, Y)),)), Amount(98.0, (Z,))),
        (Amount(98.0, (Z,)), Amount(4.0, (OUT,))),
    ),
)


@pytest.mark.parametrize("quantity", [MACS, PEAK], ids=lambda q: q.name)
def test_quantities_are_counted_exactly(quantity: Quantity) -> None:
    """What a problem says a plan takes of a quantity is what the quantity is at the plan's widths."""
    problem = problem_from(Formula(REGIONS, RANGES), SCORES, np.inf, counted=[(quantity, 1e9)])
    rng = np.random.default_rng(0)
    for _ in range(200):
        choice = {g: int(rng.integers(len(c))) for g, c in problem.candidates.items()}
        assert problem.used(choice)[quantity.name] == quantity.at(problem.widths(choice))


def test_moments_that_never_peak_are_left_out() -> None:
    """A moment that another one outweighs at all widths is no load; the peak is the same."""
    problem = problem_from(Formula(REGIONS, RANGES), SCORES, np.inf, counted=[(PEAK, 1e9)])
    assert len(problem.resources[1].loads) < len(PEAK.moments)


def test_a_moment_within_a_branch_outweighs_none_outside() -> None:
    """Where the branch goes, only the smaller one is left to peak."""
    inside, outside = Amount(10.0, (X,), ("deep",)), Amount(8.0, (X,))
    loads, _ = loads_of(Quantity("peak", "", ((inside,), (outside,))), {"x": np.arange(1, 13), "deep": np.arange(2)})
    assert 2 == len(loads)
    loads, _ = loads_of(Quantity("peak", "", ((outside,), (inside,))), {"x": np.arange(1, 13)})
    assert 1 == len(loads), "where it cannot go"


def test_one_network_two_devices() -> None:
    """With two tables and two limits the plan is inside both, and equals enumeration."""
    here, there = Formula(REGIONS, RANGES), Formula(REGIONS[::-1], {**RANGES, "z": (4, 8)}, pace=3.0)
    scores = Importance({g: v for g, v in SCORES.by_group.items() if g != "x"})
    loose = problem_from(here, scores, np.inf, elsewhere=[Elsewhere("board", there, 1e9)], max_candidates=6)
    dense = loose.used(loose.dense)
    assert loose.candidates["z"][0] == 4
    assert dense["board"] == pytest.approx(3 * (dense["latency"] - 0.25) + 0.25)
    problem = loose.limited(0.8 * dense["latency"], 0.7 * dense["board"])
    fits = [problem.removed(c) for c in choices(problem) if problem.fits(c)]
    assert solve(problem, gap=1e-9).objective == pytest.approx(min(fits), rel=1e-6)


def test_a_limit_of_nothing_is_refused() -> None:
    """Every limit is above 0."""
    with pytest.raises(BudgetError, match="above 0"):
        problem_from(Formula(REGIONS, RANGES), SCORES, 1.0, counted=[(MACS, 0.0)])


def test_a_concat_of_many_groups_is_never_counted_short() -> None:
    """Where a product touches too many groups for a grid, its count is never below the truth."""
    leaf = [Leaf(f"g{i}", 16) for i in range(6)]
    wide = Quantity("MACs", "", ((Amount(9.0, (Sum(tuple(leaf[:5])), leaf[5])), Amount(2.0, (Sum(tuple(leaf)),))),))
    scores = Importance({x.axis: np.arange(1.0, 17.0) for x in leaf})
    table = Formula((region("r", Prod(()), leaf[0]),), {x.axis: (1, 16) for x in leaf})
    problem = problem_from(table, scores, np.inf, counted=[(wide, 1e9)])
    rng = np.random.default_rng(0)
    for _ in range(100):
        choice = {g: int(rng.integers(len(c))) for g, c in problem.candidates.items()}
        true = wide.at(problem.widths(choice))
        assert true <= problem.used(choice)["MACs"] * (1 + 1e-12) <= 1.35 * true
    assert axes(*wide.moments[0][0].dims) == tuple(x.axis for x in leaf)
