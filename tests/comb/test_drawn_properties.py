"""pruned == masked on networks drawn at random: every group alone, all at once, and with branches left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from corpus import TOLERANCE, lively, merged, some
from drawn import INPUT, Drawn, integer
from drawn_tokens import ATTENTIONS, STEPS, Attention, Tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpd_edge.comb import comb
from cpd_edge.cut import cut, mask
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network
from cpd_edge.types import Group

LIGHT = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def no_bookkeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut does not bring recorded shapes up to date, which takes longer than all else and changes no number."""
    monkeypatch.setattr(Network, "refresh", Network.recompile)


def plans(combed: Combed, seed: int) -> list[tuple[Keep, bool]]:
    """Each group alone, all exact ones at once, the same without branches, and all groups; and whether it is exact."""
    rng = np.random.default_rng(seed)

    def drawn(group: Group) -> Keep:
        count = rng.integers(1, group.units) if group.units > 1 else 0
        return some(group) if group.depth else {group.name: np.sort(rng.permutation(group.units)[:count])}

    groups = combed.groups.groups
    widths, branches = [g for g in groups if not g.depth], [g for g in groups if g.depth]
    exact = [g for g in widths if g.exact]
    out = [(drawn(g), g.exact) for g in groups]
    out += [(merged(map(drawn, some_of)), True) for some_of in (exact, [*exact, *branches], branches)]
    return [*out, (merged(map(drawn, groups)), len(exact) == len(widths))]


@torch.no_grad()
def check(combed: Combed, seed: int, bit_for_bit: bool = False) -> None:
    """Raises AssertionError where a cut is not its mask, is not finite or is not smaller."""
    dense = sum(p.numel() for p in combed.network.parameters())
    for keep, exact in plans(combed, seed):
        small, masked = cut(combed, keep), mask(combed, keep)
        assert not keep or sum(p.numel() for p in small.parameters()) < dense, keep
        for batch in (1, 3):
            x = combed.network.example(batch, seed)
            x = x.round() if bit_for_bit else x
            got = small(x)
            assert got.isfinite().all(), keep
            if exact and bit_for_bit:
                assert torch.equal(got, masked(x)), keep
            elif exact:
                wanted = masked(x)
                assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp(min=1), keep


@LIGHT
@given(seed=SEEDS)
def test_maps_are_cut_like_they_are_masked_bit_for_bit(seed: int) -> None:
    """Convolutions of every kind, residuals, concats, splits, shuffles, gates and scales, in integers."""
    check(comb(integer(Drawn(seed, steps=3), seed), INPUT), seed, bit_for_bit=True)


@LIGHT
@given(seed=SEEDS)
def test_tokens_are_cut_like_they_are_masked(seed: int) -> None:
    """Four steps of a transformer or a hybrid, no two seeds alike."""
    check(comb(lively(Tokens(seed)), INPUT), seed)


@pytest.mark.parametrize(("kind", "heads"), [*((kind, 4) for kind in ATTENTIONS), ("fused", 1), ("module", 1)])
def test_attention_is_cut_alike_however_it_is_spelled(kind: str, heads: int) -> None:
    """Heads, the width of queries and keys, and the width of values are three groups, all exact, each spelling."""
    model = Tokens(heads, ("feed",))
    model.layers["attend0"] = Attention(model.dim, heads, model.dim // heads, kind)
    combed = comb(lively(model), INPUT)
    check(combed, heads)
    found = [g for g in combed.groups.groups if g.name.startswith("layers.attend0") and not g.depth]
    wanted = [heads] * (heads > 1) + [model.dim // heads] * 2
    assert sorted(g.units for g in found) == sorted(wanted)
    assert all(g.exact for g in found)


@pytest.mark.parametrize("kind", STEPS)
def test_each_step_by_itself(kind: str) -> None:
    """What a drawn network is made of holds without the others, so that a failure has a name."""
    combed = comb(lively(Tokens(len(kind), (kind,))), INPUT)
    check(combed, len(kind))
    assert combed.groups.groups
