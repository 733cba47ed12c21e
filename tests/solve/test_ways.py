"""Laws of widths and ways chosen together: the choice equals enumeration, and costs what its regions cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cpd_edge.errors import InfeasibleError, TableError
from cpd_edge.layout import Leaf, Prod, Sum, size
from cpd_edge.solve.milp import solve
from cpd_edge.solve.pose import Elsewhere, losses, plan_from, problem_from
from cpd_edge.solve.ways import PLAIN, Variant, Ways
from cpd_edge.types import STRAIGHT, Amount, Bend, Importance, Passage, Region

X, Y, Z = Leaf("x", 8), Leaf("y", 6), Leaf("z", 5)
CLASSES = Leaf("classes", 3)


def region(name: str, reads: Leaf | Sum | Prod, writes: Leaf | Sum, within: tuple[str, ...] = ()) -> Region:
    return Region(name, "Conv", (name,), reads, writes, (writes, reads), reads.extent * writes.extent, "", within)


REGIONS = (
    region("stem", Prod(()), X),
    region("pool", X, X),
    region("a", X, Y, ("deep",)),
    region("b", Y, X, ("deep",)),
    region("cat", Sum((X, X)), Sum((X, X))),
    region("c", Sum((X, X)), Z),
    region("head", Z, CLASSES),
)
RANGES = {"x": (2, 8), "y": (2, 6), "z": (2, 5), "deep": (0, 1)}
PAIRS = (("stem", "pool"), ("pool", "a"), ("a", "b"), ("b", "cat"), ("pool", "cat"), ("cat", "c"), ("c", "head"))
BY_NAME = {r.name: r for r in REGIONS}
INT8 = ("stem", "a", "b", "c")


class Simulated:
    """An exact table: a region costs a launch and its products, and nothing within a branch that goes."""

    def __init__(self, pace: Mapping[str, float], regions: tuple[Region, ...] = REGIONS) -> None:
        self.regions, self.ranges, self.fixed_ms, self.pace = regions, RANGES, 0.2, pace
        self.bend = STRAIGHT

    def contained(self, group: str, widths: np.ndarray) -> np.ndarray:
        return np.ones(len(widths), bool)

    def points(self, name: str, widths: Mapping[str, np.ndarray]) -> np.ndarray:
        r = BY_NAME[name]
        ms = self.pace[name] * (0.1 + 0.01 * size(r.reads, widths) * size(r.writes, widths))
        for branch in r.within:
            ms = ms * (np.asarray(widths.get(branch, 1)) > 0)
        return np.asarray(ms, np.float64)


def passage(before: str, after: str) -> Passage:
    within = tuple({*BY_NAME[before].within, *BY_NAME[after].within})
    return Passage(before, after, Amount(4.0, (BY_NAME[before].writes,), within, after))


FLOATS = Simulated(dict.fromkeys(BY_NAME, 1.0))
INTEGERS = Simulated({name: 1.3 if name == "stem" else 0.3 for name in BY_NAME})
WAYS = Ways(
    variants=(Variant("int8", INTEGERS, pace=1.25),),
    follows={"pool": ("stem", "a", "c"), "cat": ("b", "c")},
    pressed={"b": ("a", "c")},
    passages=tuple(passage(*pair) for pair in PAIRS),
    each_ms=0.02,
    element_ms=0.001,
)  # fmt: skip


def importance(seed: int) -> Importance:
    rng = np.random.default_rng(seed)
    units = {g: rng.lognormal(0, 1, high) for g, (_, high) in RANGES.items()}
    return Importance(units, otherwise={"int8": {name: float(rng.lognormal(-1, 1)) for name in INT8}})


def truth(widths: Mapping[str, int], chosen: Mapping[str, str], ways: Ways) -> float:
    """Latency of a network, region by region [ms]."""
    at = {g: np.asarray([w]) for g, w in widths.items()}
    runs = {}
    for name in BY_NAME:
        led = {chosen.get(x, "fp32") for x in ways.follows.get(name, (name,))}
        runs[name] = "int8" if led == {"int8"} else "fp32"
    total = FLOATS.fixed_ms
    for name, way in runs.items():
        ms = float(np.asarray((INTEGERS if way == "int8" else FLOATS).points(name, at)).reshape(-1)[0])
        total += ms * (1.25 if way == "int8" else 1.0)
    for p in ways.passages:
        stands = all(widths[b] for b in p.elements.within)
        total += stands * (runs[p.before] != runs[p.after]) * (ways.each_ms + ways.element_ms * p.elements.at(widths))
    return total


def possible(chosen: Mapping[str, str]) -> bool:
    """Whether the runtime leaves `b` in floats."""
    return chosen["b"] == "int8" or not chosen["a"] == chosen["c"] == "int8"


def networks() -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    spans = (range(low, high + 1) for low, high in RANGES.values())
    for sizes in product(*spans):
        for picks in product(("int8", "fp32"), repeat=len(INT8)):
            chosen = dict(zip(INT8, picks, strict=True))
            if possible(chosen):
                yield dict(zip(RANGES, sizes, strict=True)), chosen


def lost(scores: Importance, widths: Mapping[str, int], chosen: Mapping[str, str]) -> float:
    out = sum(v for name, v in scores.otherwise["int8"].items() if chosen[name] == "int8")
    for group, values in scores.by_group.items():
        kept = np.asarray([widths[group]])
        out += float(losses(values, kept)[0] if len(values) > 1 else values[0] * (1 - widths[group]))
    return out


@pytest.fixture(scope="module")
def every() -> list[tuple[dict[str, int], dict[str, str], float]]:
    return [(widths, chosen, truth(widths, chosen, WAYS)) for widths, chosen in networks()]


def test_the_problem_says_of_every_network_what_it_costs(
    every: list[tuple[dict[str, int], dict[str, str], float]],
) -> None:
    """Regions in the way that is chosen, those that follow, and what is converted between them."""
    problem = problem_from(FLOATS, importance(0), 1.0, ways=WAYS)
    at = {g: {int(w): i for i, w in enumerate(c)} for g, c in problem.candidates.items()}
    for widths, chosen, ms in every[::37]:
        choice = {g: at[g][w] for g, w in widths.items()}
        choice |= {f"{n}:variant": problem.variants[f"{n}:variant"].index(way) for n, way in chosen.items()}
        assert problem.latency_ms(choice) == pytest.approx(ms, rel=1e-9)
        assert problem.removed(choice) == pytest.approx(lost(importance(0), widths, chosen), rel=1e-9)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.3])
def test_widths_and_ways_together_equal_enumeration(
    share: float, every: list[tuple[dict[str, int], dict[str, str], float]]
) -> None:
    """No network inside the limit loses less; a region that gains nothing in integers, and any without need, stays."""
    scores = importance(int(share * 10))
    dense = truth({g: high for g, (_, high) in RANGES.items()}, {}, WAYS)
    problem = problem_from(FLOATS, scores, share * dense, ways=WAYS)
    fits = [lost(scores, widths, chosen) for widths, chosen, ms in every if ms <= share * dense]
    plan = plan_from(solve(problem, gap=1e-9), scores, share * dense)
    assert plan.objective == pytest.approx(min(fits), rel=1e-6)
    assert set(plan.variants) == set(INT8) and plan.variants["stem"] == "fp32"
    assert plan.predicted_ms <= share * dense
    assert plan.predicted_ms == pytest.approx(truth(plan.widths, plan.variants, WAYS), rel=1e-9)


def test_the_whole_of_a_mixture_is_bent_as_the_plain_table_is() -> None:
    """What regions and conversions add up to, bent once; the problem says the same."""
    bent = Simulated(FLOATS.pace)
    bent.bend = Bend(1.1, 2.0)
    chosen = {"stem": "int8", "a": "fp32", "b": "fp32", "c": "int8"}
    widths = {"x": 6, "y": 4, "z": 3, "deep": 1}
    flat = WAYS.predict(FLOATS, widths, chosen)
    assert flat == pytest.approx(truth(widths, chosen, WAYS))
    assert WAYS.predict(bent, widths, chosen) == pytest.approx(bent.bend.whole(flat)) != pytest.approx(flat)


def test_integers_are_chosen_where_widths_alone_do_not_reach_the_limit() -> None:
    """Below the floor of all widths in floats there are still plans, down to a floor that is lower."""
    scores = importance(0)
    with pytest.raises(InfeasibleError) as floats:
        solve(problem_from(FLOATS, scores, 0.01))
    limit = 0.9 * floats.value.floor_ms
    found = solve(problem_from(FLOATS, scores, limit, ways=WAYS), gap=1e-9)
    assert found.latency_ms <= limit and "int8" in found.variants.values()
    with pytest.raises(InfeasibleError) as mixed:
        solve(problem_from(FLOATS, scores, 0.01, ways=WAYS))
    assert mixed.value.floor_ms < floats.value.floor_ms


def test_where_nothing_must_be_gained_all_stays_plain() -> None:
    """Dense and in floats; and so it is without a known loss, whatever is measured."""
    scores = importance(0)
    found = solve(problem_from(FLOATS, scores, 1e9, ways=WAYS))
    assert (set(found.variants.values()), found.objective) == ({"fp32"}, 0.0)
    tight = problem_from(FLOATS, replace(scores, otherwise={}), 1.0, ways=WAYS)
    assert (tight.variants, PLAIN.options(scores.otherwise)) == ({}, {})


def test_neighbours_run_alike_where_converting_costs() -> None:
    """Of two regions that lose alike, the one beside integers goes first: its values need not be converted."""
    scores = replace(importance(0), by_group={}, otherwise={"int8": {"a": 0.1, "b": 0.1, "c": 0.1}})
    ways = replace(WAYS, follows={}, pressed={}, each_ms=0.3, element_ms=0.0)
    alone = problem_from(FLOATS, scores, np.inf, ways=ways)
    names = [f"{n}:variant" for n in "abc"]

    def ms(*picks: int) -> float:
        return alone.latency_ms(dict(zip(names, picks, strict=True)))

    assert ms(0, 0, 1) - ms(0, 1, 1) == pytest.approx(1.25 * 0.3 * 0.58 - 0.58)  # no further conversion
    assert ms(0, 1, 0) - ms(0, 1, 1) == pytest.approx(1.25 * 0.3 * 0.9 - 0.9 + 0.6)  # two more


def test_what_the_runtime_would_not_leave_plain_is_never_chosen() -> None:
    """Though it would lose least: `b` between integers is in integers as well, or one of them is not."""
    scores = replace(importance(0), by_group={}, otherwise={"int8": {"stem": 1.0, "a": 0.1, "b": 9.0, "c": 0.1}})
    limits = np.linspace(4.8, 6.0, 7)
    free, held = (
        [solve(problem_from(FLOATS, scores, ms, ways=replace(WAYS, pressed=p)), gap=1e-9) for ms in limits]
        for p in ({}, WAYS.pressed)
    )
    ways = [[{n.split(":")[0]: way for n, way in f.variants.items()} for f in found] for found in (free, held)]
    assert not all(map(possible, ways[0])) and all(map(possible, ways[1]))


def test_a_region_that_was_not_measured_so_is_refused() -> None:
    """A table that lacks a region in the other precision is an error, never a zero."""
    half = Ways(variants=(Variant("int8", Simulated(INTEGERS.pace, REGIONS[:2])),))
    with pytest.raises(TableError, match="a: the int8 table"):
        problem_from(FLOATS, importance(0), 1.0, ways=half)


class Refusing(Simulated):
    """One in which regions elsewhere run otherwise at one width of x."""

    def __init__(self, width: int) -> None:
        super().__init__(dict.fromkeys(BY_NAME, 1.0))
        self.width = width

    def contained(self, group: str, widths: np.ndarray) -> np.ndarray:
        return np.asarray((group != "x") | (widths != self.width))


def test_a_width_is_offered_where_every_table_takes_it() -> None:
    """This device's, another one's and another precision's each refuse one of their own."""
    ways, board = replace(WAYS, variants=(Variant("int8", Refusing(7)),)), Elsewhere("board", Refusing(5), 1e9)
    found = problem_from(Refusing(3), importance(0), 1.0, elsewhere=[board], ways=ways).candidates
    assert (found["x"].tolist(), found["y"].tolist()) == ([2, 4, 6, 8], [2, 3, 4, 5, 6])
