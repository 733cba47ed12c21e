"""What has no rule is frozen and named; a user's own rule makes it prunable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpd_edge.comb import Misaligned, comb, register_rule, relate
from cpd_edge.cut import cut, mask


@torch.library.custom_op("cpd_edge_tests::scaled", mutates_args=())
def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


@scaled.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = scaled(self.first(x), 2.0)
        return self.third(self.second(x)).mean((2, 3))


def test_an_unknown_op_freezes_what_it_touches_and_names_the_line() -> None:
    """Never a wrong cut, never a crash: the axes around the call are frozen, the others stay prunable."""
    combed = comb(Custom(), (3, 8, 8))
    assert [g.name for g in combed.groups.groups] == ["second"]
    (frozen,) = [f for f in combed.groups.frozen if f.axis == "first"]
    assert "scaled" in frozen.reason
    assert "no rule" in frozen.reason
    assert "test_unknown_ops.py" in frozen.source
    assert frozen.params == sum(p.numel() for p in Custom().first.parameters())


def test_a_registered_rule_makes_it_prunable(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line tells comb that the op keeps its dims."""
    monkeypatch.setattr(relate, "RULES", dict(relate.RULES))
    register_rule("scaled")(lambda r, n: r.dims(n.args[0]))
    combed = comb(Custom().double(), (3, 8, 8))
    assert [g.name for g in combed.groups.groups] == ["first", "second"]
    keep = {"first": np.array([0, 5]), "second": np.array([1, 2, 7])}
    x = combed.network.example()
    assert torch.allclose(cut(combed, keep)(x), mask(combed, keep)(x), atol=1e-12)


@pytest.mark.parametrize("rule", [lambda r, n: r.dims(n.args[0])[:2], lambda r, n: 1 / 0])
def test_a_wrong_rule_freezes_or_says_so(rule: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule whose layouts do not have the traced shape freezes; a rule that raises is not hidden."""
    monkeypatch.setattr(relate, "RULES", {**relate.RULES, "scaled": rule})
    try:
        combed = comb(Custom(), (3, 8, 8))
    except ZeroDivisionError:
        return
    assert [g.name for g in combed.groups.groups] == ["second"]


def test_a_rule_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Misaligned` freezes, with the rule's own reason."""

    def refuse(r: object, n: object) -> None:
        raise Misaligned("only even factors")

    monkeypatch.setattr(relate, "RULES", {**relate.RULES, "scaled": refuse})
    reasons = [f.reason for f in comb(Custom(), (3, 8, 8)).groups.frozen]
    assert any("only even factors" in reason for reason in reasons)


class Constant(nn.Module):
    """Adds a tensor that is neither parameter nor buffer, and scales by a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.offset = torch.arange(4.0).view(1, 4, 1, 1)
        self.register_buffer("scale", torch.arange(1.0, 5.0).view(1, 4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale + self.offset).mean((2, 3))


def test_constants_are_cut_with_the_channels_they_meet() -> None:
    """A constant tensor and an unsaved buffer follow the units they are combined with."""
    combed = comb(Constant(), (3, 4, 4))
    keep = {"first": np.array([1, 3])}
    x = combed.network.example()
    assert torch.allclose(cut(combed, keep)(x), mask(combed, keep)(x), atol=1e-6)
    assert [g.name for g in combed.groups.groups] == ["first"]
