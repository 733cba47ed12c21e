"""Layouts: sizes, kept indices and occupants agree with counting index by index."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cpd_edge.layout import Layout, Leaf, Prod, Sum, axes, from_json, kept, leaves, narrowed, occupants, size, to_json

EXTENTS = {"a": 2, "b": 3, "c": 4}
LEAF = st.sampled_from([Leaf(name, n) for name, n in EXTENTS.items()])
LAYOUT = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda p: Sum(tuple(p)))
        | st.lists(inner, min_size=0, max_size=2).map(lambda p: Prod(tuple(p)))
    ),
    max_leaves=4,
)
KEEP = st.fixed_dictionaries(
    {n: st.sets(st.integers(0, e - 1), min_size=1).map(lambda s: np.array(sorted(s))) for n, e in EXTENTS.items()}
)


def membership(layout: Layout) -> list[set[tuple[str, int]]]:
    """Index by index, the units that an index belongs to: the definition, counted out."""
    if isinstance(layout, Leaf):
        return [{(layout.axis, i)} for i in range(layout.extent)]
    if isinstance(layout, Sum):
        return [units for part in layout.parts for units in membership(part)]
    return [set().union(*combination) for combination in itertools.product(*(membership(p) for p in layout.parts))]


@given(LAYOUT, KEEP)
def test_an_index_goes_when_any_unit_it_belongs_to_goes(layout: Layout, keep: dict[str, np.ndarray]) -> None:
    """The law of layouts."""
    stays = [i for i, units in enumerate(membership(layout)) if all(unit in keep[axis] for axis, unit in units)]
    assert kept(layout, keep).tolist() == stays


@given(LAYOUT, KEEP)
def test_size_is_the_number_of_kept_indices(layout: Layout, keep: dict[str, np.ndarray]) -> None:
    """Sizes need only widths, and agree with the lists."""
    assert size(layout, {axis: len(units) for axis, units in keep.items()}) == len(kept(layout, keep))


@given(LAYOUT, KEEP)
def test_narrowed_units_sit_where_the_kept_ones_went(layout: Layout, keep: dict[str, np.ndarray]) -> None:
    """In a cut tensor, a unit occupies what is left of the indices it had."""
    small, stays = narrowed(layout, {axis: len(units) for axis, units in keep.items()}), kept(layout, keep)
    assert small.extent == len(stays)
    for axis in axes(layout):
        for new, old in enumerate(keep[axis]):
            left = set(occupants(layout, axis)[old].tolist()) & set(stays.tolist())
            assert {int(stays[i]) for i in occupants(small, axis)[new]} == left


@given(LAYOUT)
def test_occupants_are_the_indices_that_hold_a_unit(layout: Layout) -> None:
    """Row u of `occupants` lists the indices that belong to unit u."""
    members = membership(layout)
    for axis in axes(layout):
        found = occupants(layout, axis)
        for unit in range(EXTENTS[axis]):
            wanted = {i for i, units in enumerate(members) if (axis, unit) in units}
            assert set(found[unit].tolist()) == wanted


@given(LAYOUT)
def test_extent_counts_all_indices(layout: Layout) -> None:
    """Nothing kept out, nothing gone."""
    assert layout.extent == len(membership(layout)) == len(kept(layout, {}))


@given(LAYOUT)
def test_json_round_trip(layout: Layout) -> None:
    """load(save(x)) == x."""
    assert from_json(to_json(layout)) == layout


def test_leaves_come_in_order_and_repeat() -> None:
    """An axis that stands twice comes twice."""
    a, b = Leaf("a", 2), Leaf("b", 3)
    assert list(leaves(Sum((a, Prod((b, a)))))) == [a, b, a]
