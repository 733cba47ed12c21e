"""Laws of what is measured next, and of what a fit does not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from formula_runtime import GROUPS, Device, measured

from cpd_edge.profile.draws import draws, further

SEEN = {"samples": 26, "holdout": 4}


def test_draws_hold_both_ends_and_every_part_of_a_range() -> None:
    """Dense and smallest come first; fit samples visit every quarter of each group; most widths are aligned."""
    found = draws(GROUPS, 48, 10, 0)
    assert (found[0].widths, found[1].widths) == (GROUPS, dict.fromkeys(GROUPS, 1))
    assert (sum(not d.held_out for d in found), sum(d.held_out for d in found)) == (48, 10)
    assert found == draws(GROUPS, 48, 10, 0) != draws(GROUPS, 48, 10, 1)
    for group, units in GROUPS.items():
        widths = np.asarray([d.widths[group] for d in found])
        assert widths.min() >= 1
        assert widths.max() <= units
        assert set(np.minimum(4 * (widths - 1) // units, 3)) == {0, 1, 2, 3}
        assert (widths % 8 == 0).mean() > 0.4


def test_branches_are_left_out_of_held_out_networks_alone() -> None:
    """Now and then: a table is judged by plans without them, and each region is fitted on every network."""
    found = draws({**GROUPS, "deep": 1, "deeper": 1}, 48, 60, 0)
    gone = {held_out: [d.widths["deep"] == 0 for d in found if d.held_out is held_out] for held_out in (True, False)}
    assert 0.05 < np.mean(gone[True]) < 0.3
    assert not any(gone[False])
    assert all(d.widths[g] > 0 for d in found for g in GROUPS)


def test_some_networks_are_small_or_large_as_a_whole() -> None:
    """Of groups drawn apart the sum hardly varies; plans do not look like that, and half of the fit does not."""
    many = {f"g{i}": 64 for i in range(40)}
    share = [np.mean([d.widths[g] / 64 for g in many]) for d in draws(many, 50, 0, 0)[2:]]
    assert np.std(share[0::2]) < 0.06
    assert np.std(share[1::2]) > 0.15


def test_the_next_networks_are_those_that_are_least_certain() -> None:
    """Where one group was only seen wide, networks in which it is narrow come first."""
    table = measured(Device(noise=0.02), **SEEN)
    narrow = [{"a": 32, "b": 64, "c": 64, "d": 2 + i} for i in range(3)]
    wide = [{"a": 32, "b": 64, "c": 64, "d": 120 - i} for i in range(3)]
    few = replace(table, samples=tuple(s for s in table.samples if s.widths["d"] > 60 or s.held_out))
    assert few.unsure([*wide, *narrow], 1)[0] >= 3


def test_what_will_be_measured_anyway_is_known() -> None:
    """The same choice among others, once the first of it is promised."""
    table = measured(Device(noise=0.02), **SEEN)
    rng = np.random.default_rng(0)
    pool = [{g: int(rng.integers(1, n + 1)) for g, n in GROUPS.items()} for _ in range(30)]
    first, second = table.unsure(pool, 2)
    assert table.unsure(pool, 1, known=[pool[first]]) == [second]


def test_plans_of_a_solver_are_among_the_next() -> None:
    """A third of them at most, with the branches that they leave out put back, none that was measured."""
    table = measured(Device(noise=0.02), **SEEN)
    seen = dict(table.samples[0].widths)
    plans = [seen, *({"a": 8, "b": 16, "c": 16, "d": 16 * i} for i in (1, 2, 3, 4, 5))]
    found = [dict(d.widths) for d in further(table, 12, 0, lambda t: plans)]
    assert len(found) == 12
    assert found[:4] == plans[1:5]
    assert plans[5] not in found
    assert found == [dict(d.widths) for d in further(table, 12, 0, lambda t: plans)]
    assert not any(d.held_out for d in further(table, 12, 0))


@pytest.mark.parametrize("count", [1, 5])
def test_no_more_than_was_asked_for(count: int) -> None:
    table = measured(Device(), samples=12, holdout=4)
    assert len(further(table, count, 0, lambda t: [{"a": 3}] * 9)) == count
