"""The oracle of the whole project: a cut network equals the network whose readers ignore what was cut."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from drawn import INPUT, Drawn, inputs, integer

from cpd_edge.comb import comb, relate
from cpd_edge.comb.rules.arguments import positive
from cpd_edge.cut import cut, expand, mask
from cpd_edge.layout import Keep, Sum
from cpd_edge.network import Combed

SEEDS = range(24)


def drawn_keep(combed: Combed, seed: int, share: float = 1.0) -> Keep:
    """Some units of about `share` of the groups, at least one of each."""
    rng = random.Random(seed)
    chosen = [g for g in combed.groups.groups if rng.random() < share]
    return {g.name: np.array(sorted(rng.sample(range(g.units), rng.randint(1, g.units)))) for g in chosen}


def agree(seed: int, share: float = 1.0) -> bool:
    model = integer(Drawn(seed), seed)
    combed = comb(model, INPUT)
    keep = drawn_keep(combed, seed, share)
    return torch.equal(cut(combed, keep)(inputs(seed)), mask(combed, keep)(inputs(seed)))


@pytest.mark.parametrize("seed", SEEDS)
def test_cutting_all_groups_at_once_equals_masking_bit_for_bit(seed: int) -> None:
    """pruned == masked, over conv, norm, depthwise, grouped, residual, concat, split, gate and flatten."""
    assert agree(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_cutting_some_groups_equals_masking_bit_for_bit(seed: int) -> None:
    """pruned == masked for every subset of groups."""
    assert agree(seed + 1000, share=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_each_group_alone_equals_masking(seed: int) -> None:
    """pruned == masked, group by group."""
    combed = comb(integer(Drawn(seed), seed), INPUT)
    for group in combed.groups.groups:
        keep = {group.name: np.arange(group.units)[:: 2 if group.units > 2 else 1][:-1]}
        assert torch.equal(cut(combed, keep)(inputs(seed)), mask(combed, keep)(inputs(seed))), group.name


def test_cuts_change_the_output() -> None:
    """The oracle is no tautology: most cuts change what the network computes."""
    changed = 0
    for seed in SEEDS:
        combed = comb(integer(Drawn(seed), seed), INPUT)
        changed += not torch.equal(cut(combed, drawn_keep(combed, seed))(inputs(seed)), combed.network(inputs(seed)))
    assert changed > len(SEEDS) * 0.8


def test_keeping_all_units_changes_nothing() -> None:
    """A cut that keeps everything is the identity."""
    combed = comb(integer(Drawn(3), 3), INPUT)
    keep = {g.name: np.arange(g.units) for g in combed.groups.groups}
    assert torch.equal(cut(combed, keep)(inputs(3)), combed.network(inputs(3)))


@pytest.mark.parametrize("seed", range(4))
def test_two_cuts_from_original_coordinates_are_one(seed: int) -> None:
    """A cut of an expanded cut network equals one cut at once."""
    combed = comb(integer(Drawn(seed), seed), INPUT)
    first = drawn_keep(combed, seed)
    second = {name: units[: max(1, len(units) // 2)] for name, units in first.items()}
    again = cut(combed, second, expand(combed, first, cut(combed, first)))
    assert torch.equal(again(inputs(seed)), cut(combed, second)(inputs(seed)))


def without_coupling(r, n):  # type: ignore[no-untyped-def]
    """Mistake: batch norm does not say that its parameters follow the channels."""
    return r.dims(n.args[0])


def swapped_concat(r, n):  # type: ignore[no-untyped-def]
    """Mistake: concat lays its parts in the wrong order."""
    parts = [r.dims(t) for t in n.args[0]]
    dim = positive(n.args[1], len(parts[0]))
    return (*parts[0][:dim], Sum(tuple(p[dim] for p in reversed(parts))), *parts[0][dim + 1 :])


def loose_add(r, n):  # type: ignore[no-untyped-def]
    """Mistake: the two sides of an addition may be cut apart."""
    return r.dims(n.args[0])


@pytest.mark.parametrize(
    ("operation", "mistake"), [("batch_norm", without_coupling), ("cat", swapped_concat), ("add", loose_add)]
)
def test_a_wrong_rule_is_caught(
    operation: str, mistake: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each seeded coupling mistake makes cut and mask differ, or the cut network fail to run."""
    monkeypatch.setitem(relate.RULES, operation, mistake)
    caught = 0
    for seed in SEEDS:
        try:
            caught += not agree(seed)
        except (RuntimeError, ValueError):
            caught += 1
    assert caught > 0
