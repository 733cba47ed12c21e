"""The axis algebra: what unifying, splitting and factoring say about units."""

from __future__ import annotations

import pytest

from cpd_edge.comb.axes import UNIT, Axes, Misaligned
from cpd_edge.layout import Leaf, Prod, Sum, axes


def test_unified_axes_are_one() -> None:
    """Unifying is an equivalence: a ~ b and b ~ c make a ~ c."""
    system = Axes()
    a, b, c = (system.new(6) for _ in range(3))
    system.unify(a, b)
    system.unify(b, c)
    assert system.resolve(a) == system.resolve(c)


def test_a_concat_refines_the_axis_it_meets() -> None:
    """An axis unified with a concat falls apart at the concat's boundaries."""
    system = Axes()
    whole, left, right = system.new(10), system.new(4), system.new(6)
    system.unify(whole, Sum((left, right)))
    assert system.resolve(whole) == Sum((system.resolve(left), system.resolve(right)))


def test_concats_with_other_boundaries_meet_in_the_finest() -> None:
    """4 + 6 against 7 + 3 gives 4 + 3 + 3."""
    system = Axes()
    parts = [system.new(n) for n in (4, 6, 7, 3)]
    system.unify(Sum((parts[0], parts[1])), Sum((parts[2], parts[3])))
    found = system.resolve(Sum((parts[0], parts[1])))
    assert isinstance(found, Sum)
    assert [p.extent for p in found.parts] == [4, 3, 3]


def test_products_meet_in_their_common_factors() -> None:
    """2 x 6 against 4 x 3 gives 2 x 2 x 3."""
    system = Axes()
    a, b = Prod((system.new(2), system.new(6))), Prod((system.new(4), system.new(3)))
    system.unify(a, b)
    found = system.resolve(a)
    assert isinstance(found, Prod)
    assert [p.extent for p in found.parts] == [2, 2, 3]
    assert found == system.resolve(b)


def test_packed_tensors_share_their_inner_axes() -> None:
    """Reshaping a concat of q, k, v into 3 x width makes the three widths one axis, and the 3 uncuttable."""
    system = Axes()
    q, k, v = (system.new(8) for _ in range(3))
    outer, inner = system.factor(Sum((q, k, v)), [3, 8])
    assert system.resolve(q) == system.resolve(k) == system.resolve(v) == inner
    assert set(axes(outer)) <= set(system.frozen)


def test_splitting_a_product_splits_its_outer_axis() -> None:
    """A boundary on a multiple of the inner extent cuts the outer axis; any other is refused."""
    system = Axes()
    heads, width = system.new(4), system.new(8)
    first, second = system.split(Prod((heads, width)), [8, 24])
    assert [first.extent, second.extent] == [8, 24]
    assert system.resolve(width) in (first, *getattr(first, "parts", ()))
    with pytest.raises(Misaligned, match="inner extent of 8"):
        system.split(Prod((system.new(4), width)), [10, 22])


def test_freezing_reaches_later_refinements() -> None:
    """What a frozen axis is made of is frozen, whichever came first."""
    system = Axes()
    whole, left, right = system.new(10), system.new(4), system.new(6)
    system.freeze(whole, "because")
    system.unify(whole, Sum((left, right)))
    assert {leaf for leaf in axes(system.resolve(whole))} == set(system.frozen)


def test_extents_that_differ_do_not_unify() -> None:
    """5 is not 6."""
    system = Axes()
    with pytest.raises(Misaligned, match="extent 5 against 6"):
        system.unify(system.new(5), system.new(6))


def test_an_axis_does_not_contain_itself() -> None:
    """a = a + b has no solution."""
    system = Axes()
    a = system.new(4)
    with pytest.raises(Misaligned, match="extent"):
        system.unify(a, Sum((a, system.new(2))))


def test_a_dim_of_one_has_no_axis() -> None:
    """Broadcast dims carry nothing that could be cut."""
    assert Axes().new(1) == UNIT
    assert axes(UNIT) == ()
    assert isinstance(Axes().new(2), Leaf)
